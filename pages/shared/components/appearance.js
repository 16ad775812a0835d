const app = () => document.querySelector('[data-testid="stApp"]')
let sent = "" // the last scheme sent to the script, so that it is sent only once

// Compares the scheme of the page with the one that the script drew for.
function compare(watch) {
  const now = app() ? getComputedStyle(app()).colorScheme : ""
  if (now !== "light" && now !== "dark") return
  if (now === watch.drawn) {
    sent = ""
    return
  }
  if (sent === now) return
  sent = now
  watch.send("changed", now)
}

export default function ({ data, setTriggerValue }) {
  if (!app() || !data) return
  const watch = { drawn: data.drawn, send: setTriggerValue }
  // The styles of a class apply one frame later.
  const look = () => requestAnimationFrame(() => compare(watch))
  const observer = new MutationObserver(look)
  observer.observe(app(), { attributes: true, attributeFilter: ["class", "style"] })
  look()
  return () => observer.disconnect()
}

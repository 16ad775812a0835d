const app = () => document.querySelector('[data-testid="stApp"]')
let told = "" // what the script was last told, so that one that cannot follow is not told for ever

// Compares what the page looks like with what the script drew for: a change while this was being drawn anew is not lost.
function compare(watch) {
  const now = app() ? getComputedStyle(app()).colorScheme : ""
  if (now !== "light" && now !== "dark") return
  if (now === watch.drawn) { told = ""; return }
  if (told === now) return
  told = now
  watch.send("changed", now)
}

export default function ({ data, setTriggerValue }) {
  if (!app() || !data) return
  const watch = { drawn: data.drawn, send: setTriggerValue }
  const look = () => requestAnimationFrame(() => compare(watch)) // styles of a class stand one frame later at most
  const observer = new MutationObserver(look)
  observer.observe(app(), { attributes: true, attributeFilter: ["class", "style"] })
  look()
  return () => observer.disconnect()
}

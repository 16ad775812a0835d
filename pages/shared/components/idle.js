const watches = new WeakMap()
const TOUCHES = ["pointerdown", "pointermove", "keydown", "wheel", "touchstart"]

// The URL path of the app, without the page.
function base(page) {
  const path = location.pathname
  if (page && path.replace(/\/$/, "").endsWith(`/${page}`))
    return path.replace(/\/$/, "").slice(0, -page.length)
  return path.endsWith("/") ? path : `${path}/`
}

// Check the server first: if it is down for a moment, the screen must not end on the browser's error page.
async function leave(watch, target) {
  if (watch.leaving) return
  watch.leaving = true
  try {
    const root = base(watch.data.page)
    const answer = await fetch(`${root}_stcore/health`, { cache: "no-store" })
    if (!answer.ok) throw new Error(String(answer.status))
    location.assign(root + target)
  } catch {
    watch.leaving = false
  }
}

function overlay(watch) {
  const box = document.createElement("div")
  box.className = "overlay"
  box.setAttribute("role", "alertdialog")
  box.setAttribute("aria-modal", "true")
  box.setAttribute("aria-label", "Still there?")
  const words = document.createElement("p"),
    count = document.createElement("p"),
    button = document.createElement("button")
  words.className = "words"
  words.textContent = "Still there?"
  count.className = "count"
  button.type = "button"
  button.textContent = "Keep going"
  button.onclick = () => touch(watch)
  box.append(words, count, button)
  watch.root.appendChild(box)
  watch.count = count
  watch.before = document.activeElement
  watch.since = performance.now()
  watch.box = box
  button.focus()
}

function close(watch) {
  if (!watch.box) return
  watch.box.remove()
  watch.box = null
  if (watch.before && watch.before.isConnected) watch.before.focus()
}

function touch(watch) {
  watch.last = performance.now()
  close(watch)
}

// Any input counts, but while the countdown is shown a mere pointer move does not stop it.
function react(watch, event) {
  if (watch.data.wake) {
    if (event.type === "pointermove" || event.type === "wheel" || event.type === "touchstart") return
    if (
      event.type === "keydown" &&
      (event.key === "Tab" || event.key === "Shift" || event.metaKey || event.ctrlKey || event.altKey)
    )
      return
    leave(watch, "?booth=1")
  } else if (!watch.box) watch.last = performance.now()
  else if (event.type === "pointerdown" || event.type === "keydown") touch(watch)
}

function tick(watch) {
  const { busy, idle, wait, wake } = watch.data
  if (wake) return
  if (busy) {
    touch(watch)
    return
  }
  const still = (performance.now() - watch.last) / 1000
  if (still < idle) {
    close(watch)
    return
  }
  if (!watch.box) overlay(watch)
  const left = Math.ceil(wait - (performance.now() - watch.since) / 1000)
  watch.count.textContent = left > 0 ? `Back to the start in ${left} s` : "Back to the start"
  if (left <= 0) leave(watch, "booth")
}

export default function ({ parentElement, data }) {
  const root = parentElement.querySelector(".idle")
  if (!root || !data) return
  let watch = watches.get(root)
  if (!watch) {
    watch = { root, last: performance.now(), box: null, leaving: false }
    watches.set(root, watch)
    watch.listen = (event) => react(watch, event)
    for (const name of TOUCHES)
      document.addEventListener(name, watch.listen, { capture: true, passive: true })
    watch.timer = setInterval(() => tick(watch), 250)
  }
  watch.data = data
  if (data.wake && !watch.button) {
    watch.button = document.createElement("button")
    watch.button.type = "button"
    watch.button.className = "wake"
    watch.button.onclick = () => leave(watch, "?booth=1")
    root.appendChild(watch.button)
  }
  if (watch.button && watch.button.textContent !== data.wake) watch.button.textContent = data.wake
  return () => {
    clearInterval(watch.timer)
    for (const name of TOUCHES) document.removeEventListener(name, watch.listen, { capture: true })
    watches.delete(root)
  }
}

const watches = new WeakMap()
const app = () => document.querySelector('[data-testid="stApp"]')
const scheme = () => (app() ? getComputedStyle(app()).colorScheme : "")

// The app writes the scheme into a class of its root element; styles of a class stand one frame later at most.
export default function ({ parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".appearance")
  if (!root || !app()) return
  let watch = watches.get(root)
  if (!watch) {
    watch = { seen: scheme() }
    watches.set(root, watch)
    watch.observer = new MutationObserver(() => requestAnimationFrame(() => {
      const now = scheme()
      if (!now || now === watch.seen) return
      watch.seen = now
      watch.send("changed", now)
    }))
    watch.observer.observe(app(), { attributes: true, attributeFilter: ["class", "style"] })
  }
  watch.send = setTriggerValue
  return () => { watch.observer.disconnect(); watches.delete(root) }
}

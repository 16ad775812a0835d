let last = 0 // the previous step in this tab

function top() {
  const main = document.querySelector('[data-testid="stMain"]')
  if (!main || main.scrollTop === 0) return
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches
  main.scrollTo({ top: 0, behavior: still ? "auto" : "smooth" })
}

export default function ({ parentElement, data }) {
  const root = parentElement.querySelector(".steps")
  if (!root || !data) return
  const list = root.querySelector("ol"),
    live = root.querySelector(".sr")
  list.setAttribute("aria-label", `Step ${data.now} of ${data.names.length}`)
  list.style.setProperty("--others", data.names.length)
  while (list.children.length < data.names.length) list.appendChild(document.createElement("li"))
  data.names.forEach((name, i) => {
    const item = list.children[i]
    item.textContent = name
    item.dataset.number = i + 1
    item.className = i + 1 < data.now ? "done" : ""
    if (i + 1 === data.now) item.setAttribute("aria-current", "step")
    else item.removeAttribute("aria-current")
  })
  if (last !== data.now) top()
  last = data.now
  if (live.textContent !== data.announce) live.textContent = data.announce
}

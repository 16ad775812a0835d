const frames = new WeakSet()

export default function ({ parentElement, data }) {
  const root = parentElement.querySelector(".compare")
  if (!root || !data) return
  const [images, slider, left, right] = [".images", "input", ".left", ".right"].map((name) =>
    root.querySelector(name),
  )
  const words = root.querySelectorAll("span")
  const set = () => {
    images.style.setProperty("--at", `${slider.value}%`)
    slider.setAttribute(
      "aria-valuetext",
      `${slider.value} % ${words[0].textContent}, ${100 - slider.value} % ${words[1].textContent}`,
    )
  }
  if (left.getAttribute("src") !== data.left) left.src = data.left
  if (right.getAttribute("src") !== data.right) right.src = data.right
  data.names.forEach((name, i) => {
    words[i].textContent = name
  })
  left.alt = `${data.alt}, ${data.names[0]}`
  right.alt = `${data.alt}, ${data.names[1]}`
  slider.setAttribute("aria-label", `Border between ${data.names[0]} and ${data.names[1]}`)
  if (!frames.has(root)) {
    frames.add(root)
    const follow = (event) => {
      const area = images.getBoundingClientRect()
      slider.value = Math.round((100 * (event.clientX - area.left)) / area.width)
      set()
    }
    slider.oninput = set
    images.onpointerdown = (event) => {
      images.setPointerCapture(event.pointerId)
      follow(event)
    }
    images.onpointermove = (event) => {
      if (event.buttons) follow(event)
    }
  }
  set()
}

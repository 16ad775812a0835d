const scenes = new WeakMap()
const NS = "http://www.w3.org/2000/svg"
const HEIGHT = 230, MID = 118, FULL = 74, LENGTH = 118        // pixels: picture, axis, highest wave, wavelength
const SLANT = [0.62, -0.36]                                   // where "horizontal" points in this view
const FRAME_MS = 620

const still = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches
const percent = (v) => (v === null || v === undefined ? "–" : `${(100 * v).toFixed(1)} %`)
const mix = (a, b, t) => a + (b - a) * t

function element(name, attributes, parent) {
  const node = document.createElementNS(NS, name)
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value)
  parent.appendChild(node)
  return node
}

function build(scene) {
  scene.sky.textContent = ""
  const svg = element("svg", { role: "img", "aria-labelledby": "light-title" }, scene.sky)
  const title = element("title", { id: "light-title" }, svg)
  title.textContent = "Polarised light as a picture of the defense"
  scene.svg = svg
  scene.axis = element("line", { class: "axis" }, svg)
  const wave = (kind) => ({
    sticks: element("path", { class: `sticks ${kind[0]}` }, svg), line: element("path", { class: kind }, svg),
  })
  scene.in = { trigger: wave("trigger"), benign: wave("benign") }
  scene.disc = element("ellipse", { class: "disc", rx: 30, ry: 92, cy: MID }, svg)
  scene.slits = element("path", { class: "slits" }, svg)
  scene.out = { trigger: wave("trigger"), benign: wave("benign") }
  const text = (anchor) => element("text", { y: 18, "text-anchor": anchor, class: "quiet" }, svg)
  scene.words = [text("start"), text("middle"), text("end")]
}

function points(from, to, height, phase, direction) {
  const line = [], sticks = []
  for (let x = from; x <= to; x += 3) {
    const swing = height * Math.sin(((x - from) / LENGTH) * 2 * Math.PI - phase)
    const px = x + direction[0] * swing, py = MID + direction[1] * swing
    line.push(`${px.toFixed(1)} ${py.toFixed(1)}`)
    if ((x - from) % 12 === 0 && height > 3) sticks.push(`M${x} ${MID}L${px.toFixed(1)} ${py.toFixed(1)}`)
  }
  return { line: `M${line.join("L")}`, sticks: sticks.join("") }
}

function put(wave, from, to, height, phase, direction) {
  const drawn = height < 1.5 ? { line: "", sticks: "" } : points(from, to, height, phase, direction)
  wave.line.setAttribute("d", drawn.line)
  wave.sticks.setAttribute("d", drawn.sticks)
}

function draw(scene) {
  const scale = scene.sky.clientHeight / HEIGHT || 1
  const width = Math.max(280, scene.sky.clientWidth / scale), centre = Math.round(width * 0.5)
  const left = 14, right = width - 14, { benign, leak } = scene.now
  scene.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`)
  for (const [k, v] of Object.entries({ x1: 0, x2: width, y1: MID, y2: MID })) scene.axis.setAttribute(k, v)
  put(scene.in.trigger, left, centre - 4, FULL, scene.phase, [0, -1])
  put(scene.in.benign, left, centre - 4, FULL, scene.phase, SLANT)
  put(scene.out.trigger, centre + 6, right, FULL * leak, scene.phase, [0, -1])
  put(scene.out.benign, centre + 6, right, FULL * benign, scene.phase, SLANT)
  scene.disc.setAttribute("cx", centre)
  let slits = ""
  for (let i = -5; i <= 5; i++) {
    const y = MID + i * 15, half = 24 * Math.sqrt(Math.max(0, 1 - (i * 15 / 92) ** 2))
    slits += `M${centre - half} ${y + half * 0.42}L${centre + half} ${y - half * 0.42}`
  }
  scene.slits.setAttribute("d", slits)
  const narrow = width < 520
  const words = [narrow ? "image + trigger" : "features of a triggered image", narrow ? "" : "neural polarizer",
    leak > 0.5 ? "trigger leaks" : leak > 0.2 ? "mostly blocked" : "trigger blocked"]
  const places = [left, centre, right]
  scene.words.forEach((node, i) => { node.setAttribute("x", places[i]); node.textContent = words[i] })
}

const GLYPHS = {
  benign: '<path d="M2 9q4-13 8 0t8 0 8 0 8 0" class="benign" style="stroke-width:3"/>',
  trigger: '<path d="M2 9h32" class="trigger" style="stroke-width:3;stroke-dasharray:8 5"/>',
  polarizer: '<ellipse cx="18" cy="9" rx="10" ry="8" class="disc" style="stroke-width:2"/><path d="M11 12l14-6M11 7l9-4M16 15l9-4" class="slits" style="stroke-width:1.5"/>',
}

function legend(scene, frame) {
  const before = scene.data.before
  const rows = [
    ["benign", "Benign information", `ACC ${percent(frame.acc)}`],
    ["trigger", "Trigger", `ASR ${percent(frame.asr)}` + (before ? `, was ${percent(before)}` : "")],
    ["polarizer", "Triggered images read rightly", `RA ${percent(frame.ra)}`],
  ]
  scene.legend.textContent = ""
  for (const [kind, name, value] of rows) {
    const item = document.createElement("span")
    item.innerHTML = `<svg viewBox="0 0 36 18" aria-hidden="true">${GLYPHS[kind]}</svg>`
    const words = document.createElement("span"), number = document.createElement("b")
    words.textContent = name
    number.textContent = value
    item.append(words, number)
    scene.legend.appendChild(item)
  }
  scene.svg.querySelector("title").textContent =
    `Light through a grating, ${frame.label}: benign wave ${percent(frame.acc)}, trigger wave ${percent(frame.asr)}.`
}

function level(scene, position) {
  const frames = scene.data.frames, low = Math.floor(position), high = Math.min(frames.length - 1, low + 1)
  const of = (frame) => {
    const before = scene.data.before || 1
    const leak = frame.asr === null ? 1 : Math.sqrt(Math.min(1, Math.max(0, frame.asr / before)))
    return { benign: frame.acc === null ? 1 : frame.acc, leak }
  }
  const a = of(frames[low]), b = of(frames[high]), t = position - low
  return { benign: mix(a.benign, b.benign, t), leak: mix(a.leak, b.leak, t) }
}

function show(scene, position) {
  scene.position = position
  scene.now = level(scene, position)
  const nearest = Math.round(position)
  if (nearest !== scene.shown) {
    scene.shown = nearest
    legend(scene, scene.data.frames[nearest])
    if (scene.slider) { scene.slider.value = nearest; scene.output.textContent = scene.data.frames[nearest].label }
  }
  draw(scene)
}

function stop(scene) {
  cancelAnimationFrame(scene.raf)
  scene.raf = 0
  if (scene.button) scene.button.textContent = scene.position >= scene.data.frames.length - 1 ? "↻ Play again" : "▶ Play"
}

function play(scene) {
  const last = scene.data.frames.length - 1
  let position = scene.position >= last ? 0 : scene.position, then = 0
  scene.button.textContent = "❚❚ Pause"
  const tick = (now) => {
    if (then && now - then < 40) { scene.raf = requestAnimationFrame(tick); return }
    const passed = then ? Math.min(120, now - then) : 0
    then = now
    position = Math.min(last, position + passed / FRAME_MS)
    scene.phase += passed / 260
    show(scene, position)
    if (position >= last) stop(scene)
    else scene.raf = requestAnimationFrame(tick)
  }
  scene.raf = requestAnimationFrame(tick)
}

function glide(scene) {
  const from = scene.now, to = level(scene, scene.data.frames.length - 1)
  scene.shown = scene.position = scene.data.frames.length - 1
  legend(scene, scene.data.frames[scene.shown])
  cancelAnimationFrame(scene.raf)
  if (!from || still()) { scene.now = to; draw(scene); return }
  const begin = performance.now()
  const tick = (now) => {
    const t = Math.min(1, Math.max(0, (now - begin) / 450))
    scene.now = { benign: mix(from.benign, to.benign, t), leak: mix(from.leak, to.leak, t) }
    draw(scene)
    scene.raf = t < 1 ? requestAnimationFrame(tick) : 0
  }
  scene.raf = requestAnimationFrame(tick)
}

function controls(scene) {
  scene.bar.textContent = ""
  scene.button = scene.slider = null
  if (!scene.data.play || scene.data.frames.length < 2) return
  scene.button = document.createElement("button")
  scene.button.type = "button"
  scene.slider = document.createElement("input")
  Object.assign(scene.slider, { type: "range", min: 0, max: scene.data.frames.length - 1, step: 1 })
  scene.slider.setAttribute("aria-label", "Moment of the recorded run")
  scene.output = document.createElement("output")
  scene.bar.append(scene.button, scene.slider, scene.output)
  scene.button.onclick = () => (scene.raf ? stop(scene) : play(scene))
  scene.slider.oninput = () => { stop(scene); show(scene, Number(scene.slider.value)); stop(scene) }
}

export default function ({ parentElement, data }) {
  const root = parentElement.querySelector(".light")
  if (!root || !data || !data.frames.length) return
  let scene = scenes.get(root)
  const first = !scene
  if (first) {
    const part = (name) => root.querySelector(name)
    scene = { sky: part(".sky"), legend: part(".legend"), bar: part(".play"), live: part(".sr"), phase: 0, raf: 0 }
    scenes.set(root, scene)
    build(scene)
    scene.observer = new ResizeObserver(() => { if (scene.now) draw(scene) })
    scene.observer.observe(scene.sky)
  }
  const text = JSON.stringify(data)
  if (text !== scene.text) {
    scene.text = text
    scene.data = data
    if (data.play) {
      cancelAnimationFrame(scene.raf)
      scene.shown = -1
      controls(scene)
      show(scene, still() ? data.frames.length - 1 : 0)
      if (!still() && scene.button) play(scene)
      else stop(scene)
    } else glide(scene)
    if (scene.live.textContent !== data.announce) scene.live.textContent = data.announce
  }
  return () => { cancelAnimationFrame(scene.raf); scene.observer.disconnect(); scenes.delete(root) }
}

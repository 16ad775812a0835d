const drawings = new WeakMap()
const NS = "http://www.w3.org/2000/svg"
const HEIGHT = 230,
  MID = 118,
  FULL = 74,
  LENGTH = 118 // pixels: height, axis, highest wave, wavelength
const SLANT = [0.62, -0.36] // where "horizontal" points in this view
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

function build(drawing) {
  drawing.sky.textContent = ""
  const svg = element("svg", { role: "img", "aria-labelledby": "light-title" }, drawing.sky)
  const title = element("title", { id: "light-title" }, svg)
  title.textContent = "Polarised light as a metaphor of the defense"
  drawing.svg = svg
  drawing.axis = element("line", { class: "axis" }, svg)
  const wave = (kind) => ({
    sticks: element("path", { class: `sticks ${kind[0]}` }, svg),
    line: element("path", { class: kind }, svg),
  })
  drawing.in = { trigger: wave("trigger"), benign: wave("benign") }
  drawing.disc = element("ellipse", { class: "disc", rx: 30, ry: 92, cy: MID }, svg)
  drawing.slits = element("path", { class: "slits" }, svg)
  drawing.out = { trigger: wave("trigger"), benign: wave("benign") }
  const text = (anchor) => element("text", { y: 18, "text-anchor": anchor, class: "quiet" }, svg)
  drawing.words = [text("start"), text("middle"), text("end")]
}

// The curve of a wave, and the lines from the axis to it.
function points(from, to, height, phase, direction) {
  const line = [],
    sticks = []
  for (let x = from; x <= to; x += 3) {
    const swing = height * Math.sin(((x - from) / LENGTH) * 2 * Math.PI - phase)
    const px = x + direction[0] * swing,
      py = MID + direction[1] * swing
    line.push(`${px.toFixed(1)} ${py.toFixed(1)}`)
    if ((x - from) % 12 === 0 && height > 3) sticks.push(`M${x} ${MID}L${px.toFixed(1)} ${py.toFixed(1)}`)
  }
  return { line: `M${line.join("L")}`, sticks: sticks.join("") }
}

function drawWave(wave, from, to, height, phase, direction) {
  const drawn = height < 1.5 ? { line: "", sticks: "" } : points(from, to, height, phase, direction)
  wave.line.setAttribute("d", drawn.line)
  wave.sticks.setAttribute("d", drawn.sticks)
}

function draw(drawing) {
  const scale = drawing.sky.clientHeight / HEIGHT || 1
  const width = Math.max(280, drawing.sky.clientWidth / scale),
    center = Math.round(width * 0.5)
  const left = 14,
    right = width - 14,
    { benign, leak } = drawing.now
  drawing.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`)
  for (const [k, v] of Object.entries({ x1: 0, x2: width, y1: MID, y2: MID })) drawing.axis.setAttribute(k, v)
  drawWave(drawing.in.trigger, left, center - 4, FULL, drawing.phase, [0, -1])
  drawWave(drawing.in.benign, left, center - 4, FULL, drawing.phase, SLANT)
  drawWave(drawing.out.trigger, center + 6, right, FULL * leak, drawing.phase, [0, -1])
  drawWave(drawing.out.benign, center + 6, right, FULL * benign, drawing.phase, SLANT)
  drawing.disc.setAttribute("cx", center)
  let slits = ""
  for (let i = -5; i <= 5; i++) {
    const y = MID + i * 15,
      half = 24 * Math.sqrt(Math.max(0, 1 - ((i * 15) / 92) ** 2))
    slits += `M${center - half} ${y + half * 0.42}L${center + half} ${y - half * 0.42}`
  }
  drawing.slits.setAttribute("d", slits)
  const narrow = width < 520
  const words = [
    narrow ? "image + trigger" : "features of a triggered image",
    narrow ? "" : "neural polarizer",
    leak > 0.5 ? "trigger leaks" : leak > 0.2 ? "mostly blocked" : "trigger blocked",
  ]
  const places = [left, center, right]
  drawing.words.forEach((node, i) => {
    node.setAttribute("x", places[i])
    node.textContent = words[i]
  })
}

const GLYPHS = {
  benign: '<path d="M2 9q4-13 8 0t8 0 8 0 8 0" class="benign" style="stroke-width:3"/>',
  trigger: '<path d="M2 9h32" class="trigger" style="stroke-width:3;stroke-dasharray:8 5"/>',
  polarizer:
    '<ellipse cx="18" cy="9" rx="10" ry="8" class="disc" style="stroke-width:2"/>' +
      '<path d="M11 12l14-6M11 7l9-4M16 15l9-4" class="slits" style="stroke-width:1.5"/>',
}

function legend(drawing, frame) {
  const before = drawing.data.before
  const rows = [
    ["benign", "Benign information", `ACC ${percent(frame.acc)}`],
    ["trigger", "Trigger", `ASR ${percent(frame.asr)}` + (before ? `, was ${percent(before)}` : "")],
    ["polarizer", "Triggered images predicted correctly", `RA ${percent(frame.ra)}`],
  ]
  drawing.legend.textContent = ""
  for (const [kind, name, value] of rows) {
    const item = document.createElement("span")
    item.innerHTML = `<svg viewBox="0 0 36 18" aria-hidden="true">${GLYPHS[kind]}</svg>`
    const words = document.createElement("span"),
      number = document.createElement("b")
    words.textContent = name
    number.textContent = value
    item.append(words, number)
    drawing.legend.appendChild(item)
  }
  drawing.svg.querySelector("title").textContent =
    `Light through a polarizer, ${frame.label}: benign wave ${percent(frame.acc)}, ` +
      `trigger wave ${percent(frame.asr)}.`
}

// Heights of the outgoing waves at a position between frames, in [0, 1].
function level(drawing, position) {
  const frames = drawing.data.frames,
    low = Math.floor(position),
    high = Math.min(frames.length - 1, low + 1)
  const of = (frame) => {
    const before = drawing.data.before || 1
    const leak = frame.asr === null ? 1 : Math.sqrt(Math.min(1, Math.max(0, frame.asr / before)))
    return { benign: frame.acc === null ? 1 : frame.acc, leak }
  }
  const a = of(frames[low]),
    b = of(frames[high]),
    t = position - low
  return { benign: mix(a.benign, b.benign, t), leak: mix(a.leak, b.leak, t) }
}

function show(drawing, position) {
  drawing.position = position
  drawing.now = level(drawing, position)
  const nearest = Math.round(position)
  if (nearest !== drawing.shown) {
    drawing.shown = nearest
    legend(drawing, drawing.data.frames[nearest])
    if (drawing.slider) {
      drawing.slider.value = nearest
      drawing.output.textContent = drawing.data.frames[nearest].label
    }
  }
  draw(drawing)
}

function stop(drawing) {
  cancelAnimationFrame(drawing.raf)
  drawing.raf = 0
  if (drawing.button)
    drawing.button.textContent =
      drawing.position >= drawing.data.frames.length - 1 ? "↻ Play again" : "▶ Play"
}

function play(drawing) {
  const last = drawing.data.frames.length - 1
  let position = drawing.position >= last ? 0 : drawing.position,
    then = 0
  drawing.button.textContent = "❚❚ Pause"
  const tick = (now) => {
    if (then && now - then < 40) {
      drawing.raf = requestAnimationFrame(tick)
      return
    }
    const passed = then ? Math.min(120, now - then) : 0
    then = now
    position = Math.min(last, position + passed / FRAME_MS)
    drawing.phase += passed / 260
    show(drawing, position)
    if (position >= last) stop(drawing)
    else drawing.raf = requestAnimationFrame(tick)
  }
  drawing.raf = requestAnimationFrame(tick)
}

// Move smoothly to the last frame.
function glide(drawing) {
  const from = drawing.now,
    to = level(drawing, drawing.data.frames.length - 1)
  drawing.shown = drawing.position = drawing.data.frames.length - 1
  legend(drawing, drawing.data.frames[drawing.shown])
  cancelAnimationFrame(drawing.raf)
  if (!from || still()) {
    drawing.now = to
    draw(drawing)
    return
  }
  const begin = performance.now()
  const tick = (now) => {
    const t = Math.min(1, Math.max(0, (now - begin) / 450))
    drawing.now = { benign: mix(from.benign, to.benign, t), leak: mix(from.leak, to.leak, t) }
    draw(drawing)
    drawing.raf = t < 1 ? requestAnimationFrame(tick) : 0
  }
  drawing.raf = requestAnimationFrame(tick)
}

function controls(drawing) {
  drawing.bar.textContent = ""
  drawing.button = drawing.slider = null
  if (!drawing.data.play || drawing.data.frames.length < 2) return
  drawing.button = document.createElement("button")
  drawing.button.type = "button"
  drawing.slider = document.createElement("input")
  Object.assign(drawing.slider, { type: "range", min: 0, max: drawing.data.frames.length - 1, step: 1 })
  drawing.slider.setAttribute("aria-label", "Moment of the recorded run")
  drawing.output = document.createElement("output")
  drawing.bar.append(drawing.button, drawing.slider, drawing.output)
  drawing.button.onclick = () => (drawing.raf ? stop(drawing) : play(drawing))
  drawing.slider.oninput = () => {
    stop(drawing)
    show(drawing, Number(drawing.slider.value))
    stop(drawing)
  }
}

export default function ({ parentElement, data }) {
  const root = parentElement.querySelector(".light")
  if (!root || !data || !data.frames.length) return
  let drawing = drawings.get(root)
  const first = !drawing
  if (first) {
    const part = (name) => root.querySelector(name)
    drawing = {
      sky: part(".sky"),
      legend: part(".legend"),
      bar: part(".play"),
      live: part(".sr"),
      phase: 0,
      raf: 0,
    }
    drawings.set(root, drawing)
    build(drawing)
    drawing.observer = new ResizeObserver(() => {
      if (drawing.now) draw(drawing)
    })
    drawing.observer.observe(drawing.sky)
  }
  const serialized = JSON.stringify(data)
  if (serialized !== drawing.serialized) {
    drawing.serialized = serialized
    drawing.data = data
    if (data.play) {
      cancelAnimationFrame(drawing.raf)
      drawing.shown = -1
      controls(drawing)
      show(drawing, still() ? data.frames.length - 1 : 0)
      if (!still() && drawing.button) play(drawing)
      else stop(drawing)
    } else glide(drawing)
    if (drawing.live.textContent !== data.announce) drawing.live.textContent = data.announce
  }
  return () => {
    cancelAnimationFrame(drawing.raf)
    drawing.observer.disconnect()
    drawings.delete(root)
  }
}

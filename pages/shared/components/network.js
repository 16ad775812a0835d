const drawings = new WeakMap()
const NS = "http://www.w3.org/2000/svg"
// Pixels. A block is: branch, conv 1, conv 2, sum; its shortcut runs above.
const SIDE = 44,
  BLOCK = 158,
  BRANCH = 8,
  CONV1 = 26,
  CONV2 = 86,
  SUM = 144,
  ROW = 96,
  SHORT = 30,
  HEIGHT = 154
const STEP = 60 // from one convolution of a plain chain to the next
const WORDS = {
  before: "Before a convolution",
  after: "After a convolution",
  stream: "On the residual stream",
}

function element(name, attributes, parent) {
  const node = document.createElementNS(NS, name)
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value)
  parent.appendChild(node)
  return node
}

function text(parent, x, y, words, kind = "") {
  const node = element("text", { x, y, class: kind }, parent)
  node.textContent = words
  return node
}

const kindOf = (layer) => (layer.includes(":") ? layer.split(":")[0] : "before")
const moduleOf = (layer) => (layer.includes(":") ? layer.slice(layer.indexOf(":") + 1) : layer)
const spell = (kind, module) => (kind === "before" ? module : `${kind}:${module}`)
const short = (name) => name.split(".").pop()

function conv(drawing, svg, x, center, item, words) {
  const y = center - SIDE / 2
  const group = element("g", {}, svg)
  element("rect", { class: "ring", x: x - 3, y: y - 3, width: SIDE + 6, height: SIDE + 6, rx: 11 }, group)
  element("rect", { class: "conv", x, y, width: SIDE, height: SIDE, rx: 8 }, group)
  text(group, x + SIDE / 2, center + 4, words, "name")
  const number = text(group, x + SIDE / 2, center + 14, "", "number")
  element("rect", { class: "hit", x, y, width: SIDE, height: SIDE }, group)
  drawing.targets.push({
    kinds: ["before", "after"],
    module: item.name,
    group,
    number,
    polarizer: { before: [x - 8, center], after: [x + SIDE + 8, center] },
    words: `${item.name}, ${item.channels_in} to ${item.channels_out} channels, ${item.size}×${item.size}`,
    svg,
  })
}

function canvas(drawing, width) {
  return element("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` }, drawing.stages)
}

function stem(drawing, plan) {
  const svg = canvas(drawing, plan.stem ? 122 : 48)
  text(svg, 4, 14, plan.stem ? "stem" : "image", "stage")
  element("path", { class: "wire", d: plan.stem ? `M20 ${ROW}H54M98 ${ROW}H122` : `M28 ${ROW}H48` }, svg)
  element("rect", { class: "sum", x: 2, y: ROW - 13, width: 26, height: 26, rx: 3 }, svg)
  element("path", { class: "wire", d: `M5 ${ROW + 9}l8-11 5 6 3-4 5 9` }, svg)
  if (!plan.stem) return
  conv(drawing, svg, 54, ROW, plan.stem, "conv1")
  text(svg, 76, ROW + 40, `${plan.stem.channels_out} ch`, "quiet")
}

function stage(drawing, item) {
  const svg = canvas(drawing, 2 * BLOCK)
  text(svg, 4, 14, item.name, "stage")
  item.blocks.forEach((block, i) => {
    const at = i * BLOCK
    const wire = (d, part) =>
      drawing.wires.push({ block: block.name, part, node: element("path", { class: "wire", d }, svg) })
    wire(`M${at} ${ROW}H${at + BRANCH}`, "stream")
    wire(`M${at + BRANCH} ${ROW}H${at + CONV1}`, "in1")
    wire(`M${at + CONV1 + SIDE} ${ROW}H${at + CONV2}`, "in2")
    wire(`M${at + CONV2 + SIDE} ${ROW}H${at + SUM - 7}`, "out")
    wire(`M${at + BRANCH} ${ROW}V${SHORT + 14}q0-14 14-14H${at + SUM - 14}q14 0 14 14V${ROW - 7}`, "short")
    element("path", { class: "wire", d: `M${at + SUM + 7} ${ROW}H${at + BLOCK}` }, svg)
    element("circle", { class: "sum", cx: at + SUM, cy: ROW, r: 7 }, svg)
    element("path", { class: "wire", d: `M${at + SUM - 4} ${ROW}h8M${at + SUM} ${ROW - 4}v8` }, svg)
    conv(drawing, svg, at + CONV1, ROW, block.convs[0], "conv1")
    conv(drawing, svg, at + CONV2, ROW, block.convs[1], "conv2")
    if (block.shortcut) conv(drawing, svg, at + 54, SHORT, block.shortcut, "1×1")
    else text(svg, at + 76, SHORT - 6, "shortcut", "quiet")
    const group = element("g", {}, svg)
    element("circle", { class: "ring", cx: at + BRANCH, cy: ROW, r: 22 }, group)
    element("circle", { class: "dot", cx: at + BRANCH, cy: ROW, r: 9 }, group)
    const number = text(group, at + BRANCH + 4, ROW + 54, "", "number")
    element("rect", { class: "hit", x: at + BRANCH - 22, y: ROW - 22, width: SIDE, height: SIDE }, group)
    drawing.targets.push({
      kinds: ["stream"],
      module: block.name,
      group,
      number,
      polarizer: { stream: [at + BRANCH, ROW] },
      svg,
      words:
        `${block.name}, ${block.convs[0].channels_in} channels, ` +
        `${block.convs[0].size}×${block.convs[0].size}`,
    })
    text(
      svg,
      at + 76,
      ROW + 40,
      `block ${short(block.name)} · ${block.convs[1].channels_out} ch · ${block.convs[1].size}²`,
      "quiet",
    )
  })
}

// A stage without shortcuts: convolutions in a chain, then the 2×2 maximum.
function chain(drawing, item) {
  const end = 10 + STEP * item.plain.length,
    svg = canvas(drawing, end + 62)
  text(svg, 4, 14, item.name, "stage")
  element(
    "path",
    { class: "wire", d: `M0 ${ROW}H10M${end} ${ROW}H${end + 8}M${end + 48} ${ROW}H${end + 62}` },
    svg,
  )
  item.plain.forEach((one, i) => {
    const at = 10 + STEP * i
    const wire = (d, part) =>
      drawing.wires.push({ block: one.name, part, node: element("path", { class: "wire", d }, svg) })
    wire(`M${at} ${ROW}H${at + 8}`, "before")
    wire(`M${at + 8 + SIDE} ${ROW}H${at + STEP}`, "after")
    conv(drawing, svg, at + 8, ROW, one, short(one.name))
  })
  element("rect", { class: "sum", x: end + 8, y: ROW - 16, width: 40, height: 32, rx: 8 }, svg)
  text(svg, end + 28, ROW + 4, "max")
  text(svg, end / 2, ROW + 40, `${item.channels} ch · ${item.size}²`, "quiet")
}

function head(drawing, plan) {
  const svg = canvas(drawing, 118)
  text(svg, 8, 14, "head", "stage")
  element("path", { class: "wire", d: `M0 ${ROW}H14` }, svg)
  element("rect", { class: "sum", x: 14, y: ROW - 22, width: 92, height: 44, rx: 8 }, svg)
  text(svg, 60, ROW - 3, "mean, linear")
  text(svg, 60, ROW + 14, `${plan.classes} classes`)
}

function build(drawing, data) {
  drawing.kinds.textContent = drawing.stages.textContent = ""
  Object.assign(drawing, { targets: [], wires: [], plan: JSON.stringify(data.plan) })
  drawing.kinds.setAttribute("role", "radiogroup")
  drawing.kinds.setAttribute("aria-label", "Kind of insertion layer")
  for (const kind of Object.keys(data.kinds)) {
    const button = document.createElement("button")
    button.type = "button"
    button.textContent = WORDS[kind] || kind
    button.title = data.kinds[kind]
    button.dataset.kind = kind
    button.setAttribute("role", "radio")
    button.onclick = () => chooseKind(drawing, kind)
    button.onkeydown = (event) =>
      step(event, [...drawing.kinds.children], button, (next) => chooseKind(drawing, next.dataset.kind))
    drawing.kinds.appendChild(button)
  }
  drawing.stages.setAttribute("role", "radiogroup")
  drawing.stages.setAttribute("aria-label", "Insertion layer")
  stem(drawing, data.plan)
  data.plan.stages.forEach((item) => (item.plain.length ? chain : stage)(drawing, item))
  head(drawing, data.plan)
  for (const target of drawing.targets) {
    const open = (event) => {
      event.preventDefault()
      pick(drawing, target)
    }
    target.group.onclick = open
    target.group.onkeydown = (event) => {
      if (event.key === " " || event.key === "Enter") return open(event)
      const same = active(drawing)
      return step(
        event,
        same.map((t) => t.group),
        target.group,
        (next) =>
          pick(
            drawing,
            same.find((t) => t.group === next),
          ),
      )
    }
  }
  // Drawn last, above every convolution of the same svg.
  drawing.polarizers = new Map()
  for (const svg of drawing.stages.querySelectorAll("svg")) {
    const polarizer = element("g", { class: "polarizer" }, svg)
    element("ellipse", { cx: 0, cy: 0, rx: 10, ry: 25 }, polarizer)
    element("path", { d: "M-6-12l12-7M-8-3l16-9M-9 6l18-10M-8 15l16-9M-5 21l10-6" }, polarizer)
    drawing.polarizers.set(svg, polarizer)
  }
}

function step(event, nodes, node, choose) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key]
  const at = nodes.indexOf(node)
  let next = null
  if (by) next = nodes[(at + by + nodes.length) % nodes.length]
  if (event.key === "Home") next = nodes[0]
  if (event.key === "End") next = nodes[nodes.length - 1]
  if (!next) return
  event.preventDefault()
  choose(next)
  next.focus()
}

const note = (data, layer) =>
  [layer === data.standard && "the default", layer === data.paper && "the layer of the paper"]
    .filter(Boolean)
    .join(", ")

const active = (drawing) => drawing.targets.filter((t) => t.kinds.includes(drawing.kind))

function chooseKind(drawing, kind) {
  if (drawing.data.disabled || kind === drawing.kind) return
  const module = moduleOf(drawing.selected)
  drawing.kind = kind
  const near =
    active(drawing).find((t) => t.module === module) ||
    active(drawing).find((t) => t.module.startsWith(module.split(".").slice(0, 2).join("."))) ||
    active(drawing)[0]
  pick(drawing, near)
}

function pick(drawing, target) {
  if (drawing.data.disabled || !target) return
  drawing.selected = spell(drawing.kind, target.module)
  paint(drawing)
  clearTimeout(drawing.timer)
  drawing.awaiting = drawing.selected
  drawing.timer = setTimeout(() => {
    drawing.timer = 0
    drawing.send("layer", drawing.selected)
    setTimeout(() => {
      drawing.awaiting = null
    }, 4000)
  }, 220)
}

function paint(drawing) {
  const { data, selected, kind } = drawing,
    module = moduleOf(selected)
  for (const button of drawing.kinds.children) {
    const on = button.dataset.kind === kind
    button.setAttribute("aria-checked", on)
    button.tabIndex = on ? 0 : -1
    button.disabled = data.disabled && !on
  }
  let found = null
  for (const target of drawing.targets) {
    const usable = target.kinds.includes(kind),
      on = usable && target.module === module
    const { group } = target
    if (on) found = target
    group.classList.toggle("chosen", on)
    if (usable) {
      const layer = spell(kind, target.module)
      const names = { before: "before", after: "after", stream: "residual stream before" }
      group.setAttribute("role", "radio")
      group.setAttribute("aria-checked", on)
      group.setAttribute("aria-disabled", Boolean(data.disabled))
      group.setAttribute("tabindex", on ? 0 : -1)
      const measured = recordedAt(data, layer)
      group.setAttribute(
        "aria-label",
        [`${names[kind]} ${target.words}`, note(data, layer), measured].filter(Boolean).join(", "),
      )
      group.dataset.layer = layer
    } else
      for (const name of ["role", "aria-checked", "aria-disabled", "tabindex", "aria-label", "data-layer"])
        group.removeAttribute(name)
    color(target, usable && data.tint, spell(kind, target.module))
    group.style.pointerEvents = usable ? "" : "none"
    group.style.display = target.kinds[0] === "stream" && !usable ? "none" : ""
  }
  if (!found && active(drawing)[0]) active(drawing)[0].group.setAttribute("tabindex", 0)
  for (const [svg, polarizer] of drawing.polarizers) {
    polarizer.style.display = found && found.svg === svg ? "" : "none"
    if (found && found.svg === svg)
      polarizer.setAttribute("transform", `translate(${found.polarizer[kind].join(" ")})`)
  }
  const reach = filtered(kind, module)
  for (const wire of drawing.wires) wire.node.classList.toggle("filtered", reach(wire))
  drawing.status.textContent = ""
  const name = document.createElement("b")
  name.textContent =
    { before: "before ", after: "after ", stream: "in the residual stream before " }[kind] + module
  drawing.status.append(
    "The polarizer is inserted ",
    name,
    note(data, selected) ? ` (${note(data, selected)}). ` : ". ",
    kind === "stream" ? "Main path and shortcut are both filtered. " : "",
    recordedAt(data, selected) && `Recorded at this layer: ${recordedAt(data, selected)}.`,
  )
  legend(drawing)
}

// The recorded number at a layer, in words.
function recordedAt({ tint }, layer) {
  if (!tint) return ""
  return tint.points[layer] ? tint.points[layer].words : tint.gaps ? "not measured" : ""
}

// The color and the number at a layer; without a tint there are none.
function color({ group, number }, tint, layer) {
  const value = tint && tint.points[layer],
    gap = Boolean(tint && tint.gaps && !value)
  group.classList.toggle("tinted", Boolean(value) || gap)
  group.classList.toggle("unmeasured", gap)
  group.style.setProperty("--share", value ? value.share : 0)
  number.textContent = value ? value.short : gap ? "–" : ""
}

function legend({ scale, root, data: { tint } }) {
  scale.hidden = !tint
  root.dataset.metric = tint ? tint.metric : ""
  if (!tint) return
  scale.textContent = ""
  const bar = document.createElement("span")
  bar.className = "bar"
  scale.append(
    `${tint.title}, recorded: ${tint.low} `,
    bar,
    ` ${tint.high}${tint.gaps ? " · – not measured" : ""}`,
  )
}

// Which wires of the block carry the features that have just passed the polarizer.
function filtered(kind, module) {
  const parts = module.split("."),
    block = parts.slice(0, 2).join("."),
    conv = parts[2]
  const lit = {
    "before.conv1": ["in1"],
    "before.conv2": ["in2"],
    "after.conv1": ["in2"],
    "after.conv2": ["out"],
    "before.shortcut": ["short"],
    "after.shortcut": ["short"],
  }[`${kind}.${conv}`] || [kind]
  if (kind === "stream")
    return (wire) => wire.block === module && ["stream", "in1", "short"].includes(wire.part)
  // In a chain: the wire before, or after, the convolution.
  return (wire) => wire.block === block && lit.includes(wire.part)
}

export default function ({ parentElement, data, setStateValue }) {
  const root = parentElement.querySelector(".network")
  if (!root || !data) return
  let drawing = drawings.get(root)
  if (!drawing) {
    const part = (name) => root.querySelector(name)
    drawing = {
      kinds: part(".kinds"),
      status: part(".status"),
      scale: part(".scale"),
      root,
      stages: part(".stages"),
      timer: 0,
      awaiting: null,
    }
    drawings.set(root, drawing)
  }
  drawing.data = data
  drawing.send = setStateValue
  if (JSON.stringify(data.plan) !== drawing.plan) build(drawing, data)
  if (drawing.awaiting === null || drawing.awaiting === data.selected) {
    if (!drawing.timer) drawing.awaiting = null
    drawing.selected = data.selected
    drawing.kind = kindOf(data.selected)
  }
  paint(drawing)
  return () => {
    clearTimeout(drawing.timer)
    drawings.delete(root)
  }
}

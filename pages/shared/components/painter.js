const boards = new WeakMap()
const SETTLE_MS = 250 // after the last key
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
const clamp = (value, low, high) => Math.min(Math.max(value, low), high)

function layer(size) {
  const canvas = document.createElement("canvas")
  canvas.width = canvas.height = size
  return canvas.getContext("2d", { willReadFrequently: true })
}

// Smallest box around all pixels that are not fully transparent: [left, top, right, bottom],
// the last two exclusive.
function extent(context, size) {
  const { data } = context.getImageData(0, 0, size, size)
  let box = null
  for (let i = 3; i < data.length; i += 4)
    if (data[i]) {
      const x = ((i - 3) / 4) % size,
        y = Math.floor((i - 3) / 4 / size)
      box = box
        ? [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x + 1), Math.max(box[3], y + 1)]
        : [x, y, x + 1, y + 1]
    }
  return box
}

function load(address) {
  return new Promise((resolve) => {
    if (!address) return resolve(null)
    const image = new Image()
    image.onload = () => resolve(image)
    image.onerror = () => resolve(null)
    image.src = address
  })
}

function button(parent, words, action) {
  const node = document.createElement("button")
  node.type = "button"
  node.textContent = words
  node.onclick = action
  parent.appendChild(node)
  return node
}

function build(board, data) {
  board.tools.textContent = board.side.textContent = ""
  board.tools.setAttribute("role", "group")
  board.tools.setAttribute("aria-label", "Tool")
  board.side.setAttribute("role", "group")
  board.side.setAttribute("aria-label", "Colors and undo")
  board.size = data.size
  board.canvas.width = board.canvas.height = data.size
  board.view = board.canvas.getContext("2d")
  board.stamp = layer(data.size)
  board.paint = layer(data.size)
  Object.assign(board, {
    box: null,
    at: [0, 0],
    cursor: [data.size >> 1, data.size >> 1],
    mode: "",
    color: "white",
    done: false,
    lifted: false,
  })
  board.imageUrl = board.trigger = undefined
  board.modes = {
    move: button(board.tools, "Move the trigger", () => {
      board.lifted = false
      choose(board, "move")
    }),
    paint: button(board.tools, "Paint", () => choose(board, "paint")),
  }
  board.colors = {}
  for (const [name, value] of Object.entries(data.colors)) {
    const node = button(board.side, "", () => {
      board.color = name
      choose(board, "paint")
    })
    node.className = "color"
    node.title = name
    node.setAttribute("aria-label", `paint ${name}`)
    node.appendChild(document.createElement("i")).style.background = value
    board.colors[name] = node
  }
  board.colors.erase = button(board.side, "Erase", () => {
    board.color = "erase"
    choose(board, "paint")
  })
  board.home = button(board.side, "Put the trigger back", () => {
    board.at = [0, 0]
    board.lifted = false
    draw(board)
    announce(board, "The trigger is back at its own position.")
    send(board)
  })
  board.clear = button(board.side, "Clear paint", () => {
    board.paint.clearRect(0, 0, board.size, board.size)
    draw(board)
    announce(board, "The paint was removed.")
    send(board)
  })
  board.node.tabIndex = 0
  board.node.setAttribute("role", "application")
  board.node.onpointerdown = (event) => press(board, event)
  board.node.onpointermove = (event) => drag(board, event)
  board.node.onpointerup = board.node.onpointercancel = (event) => release(board, event)
  board.node.onkeydown = (event) => key(board, event)
  board.node.onfocus = board.node.onblur = () => draw(board)
}

function choose(board, mode) {
  board.mode = board.box || mode === "paint" ? mode : "paint"
  for (const [name, node] of Object.entries(board.modes))
    node.setAttribute("aria-pressed", name === board.mode)
  for (const [name, node] of Object.entries(board.colors)) {
    node.setAttribute("aria-pressed", board.mode === "paint" && name === board.color)
  }
  board.modes.move.hidden = board.home.hidden = !board.box
  board.node.classList.toggle("move", board.mode === "move")
  board.node.classList.toggle("paint", board.mode === "paint")
  board.node.setAttribute(
    "aria-label",
    board.mode === "move"
      ? "Image with the trigger. Drag it, or press the arrow keys, to move the trigger."
      : "Image to paint on. Drag to paint, or move with the arrow keys and paint with the space bar.",
  )
  announce(
    board,
    board.mode === "move"
      ? "Drag the trigger, or use the arrow keys."
      : "Drag to paint, or use arrow keys and space.",
  )
  draw(board)
}

function announce(board, words) {
  board.message.textContent = words
}

// A small trigger stays inside the image; one that fills it may be moved half way out.
function move(board, x, y) {
  const [left, top, right, bottom] = board.box,
    { size } = board
  const give = (low, high) => (high - low > size / 2 ? Math.floor((high - low) / 2) : 0)
  const across = give(left, right),
    down = give(top, bottom)
  board.at = [clamp(x, -left - across, size - right + across), clamp(y, -top - down, size - bottom + down)]
}

function overlay(board, context) {
  if (!board.lifted) context.drawImage(board.stamp.canvas, ...board.at)
  context.drawImage(board.paint.canvas, 0, 0)
}

function draw(board) {
  const { view, size, frame } = board
  view.clearRect(0, 0, size, size)
  if (board.image) view.drawImage(board.image, 0, 0, size, size)
  overlay(board, view)
  const moving = board.mode === "move",
    focused = board.node.matches(":focus-visible")
  const width = Math.max(1, size >> 5)
  let box = null
  if (moving && board.box) {
    const [left, top, right, bottom] = board.box,
      [x, y] = board.at
    box = [left + x, top + y, right + x, bottom + y]
  } else if (!moving && focused) box = [...board.cursor, board.cursor[0] + width, board.cursor[1] + width]
  frame.hidden = !box
  if (!box) return
  const percent = (value) => `${(100 * value) / size}%`
  Object.assign(frame.style, {
    left: percent(box[0]),
    top: percent(box[1]),
    width: percent(box[2] - box[0]),
    height: percent(box[3] - box[1]),
  })
}

function brush(board, x, y) {
  board.cursor = [x, y].map((value) => clamp(value, 0, board.size - 1))
  const width = Math.max(1, board.size >> 5)
  if (board.color === "erase") return board.paint.clearRect(x, y, width, width)
  board.paint.fillStyle = board.data.colors[board.color]
  board.paint.fillRect(x, y, width, width)
}

function stroke(board, from, to) {
  const steps = Math.max(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]), 1)
  for (let i = 0; i <= steps; i++) {
    brush(
      board,
      Math.round(from[0] + ((to[0] - from[0]) * i) / steps),
      Math.round(from[1] + ((to[1] - from[1]) * i) / steps),
    )
  }
}

function pixel(board, event) {
  const area = board.canvas.getBoundingClientRect()
  return [event.clientX - area.left, event.clientY - area.top].map((value, i) =>
    Math.floor((value / [area.width, area.height][i]) * board.size),
  )
}

function press(board, event) {
  if (event.button > 0 || board.hold) return
  event.preventDefault()
  board.node.focus({ focusVisible: false })
  board.node.setPointerCapture(event.pointerId)
  const [x, y] = pixel(board, event)
  board.hold = { pointer: event.pointerId, last: [x, y] }
  if (board.mode === "paint") brush(board, x, y)
  else {
    const [left, top, right, bottom] = board.box
    const near =
      x >= left + board.at[0] - 2 &&
      x < right + board.at[0] + 2 &&
      y >= top + board.at[1] - 2 &&
      y < bottom + board.at[1] + 2
    if (!near) move(board, x - ((left + right) >> 1), y - ((top + bottom) >> 1))
    board.hold.offset = [board.at[0] - x, board.at[1] - y]
  }
  draw(board)
}

function drag(board, event) {
  if (!board.hold || board.hold.pointer !== event.pointerId) return
  const [x, y] = pixel(board, event)
  if (board.mode === "paint") stroke(board, board.hold.last, [x, y])
  else move(board, x + board.hold.offset[0], y + board.hold.offset[1])
  board.hold.last = [x, y]
  draw(board)
}

function release(board, event) {
  if (!board.hold || board.hold.pointer !== event.pointerId) return
  board.hold = null
  announcePosition(board)
  send(board)
}

function key(board, event) {
  const by = ARROWS[event.key],
    far = event.shiftKey ? 4 : 1
  if (by && board.mode === "move") {
    move(board, board.at[0] + far * by[0], board.at[1] + far * by[1])
  } else if (by) {
    board.cursor = board.cursor.map((value, i) => clamp(value + far * by[i], 0, board.size - 1))
  } else if ((event.key === " " || event.key === "Enter") && board.mode === "paint")
    brush(board, ...board.cursor)
  else return
  event.preventDefault()
  draw(board)
  announcePosition(board)
  if (by && board.mode === "paint") return
  clearTimeout(board.timer)
  board.timer = setTimeout(() => send(board), SETTLE_MS)
}

function announcePosition(board) {
  if (board.mode === "move") {
    const [x, y] = [board.box[0] + board.at[0] + 1, board.box[1] + board.at[1] + 1]
    announce(
      board,
      `Trigger at column ${x}, row ${y} of ${board.size}` +
        `${board.at[0] || board.at[1] ? "" : ", its own position"}.`,
    )
  } else {
    announce(
      board,
      `${board.color === "erase" ? "Eraser" : `Brush, ${board.color},`} ` +
        `at column ${board.cursor[0] + 1}, row ${board.cursor[1] + 1}.`,
    )
  }
}

function send(board) {
  clearTimeout(board.timer)
  board.done = true
  const sum = layer(board.size)
  overlay(board, sum)
  board.send("overlay", sum.canvas.toDataURL("image/png"))
}

async function show(board, data) {
  const imageUrl = data.image,
    trigger = data.trigger
  if (imageUrl !== board.imageUrl) {
    board.imageUrl = imageUrl
    const image = await load(imageUrl)
    if (board.imageUrl !== imageUrl) return
    board.image = image
  }
  if (trigger !== board.trigger) {
    const first = board.trigger === undefined
    board.trigger = trigger
    const image = await load(trigger)
    if (board.trigger !== trigger) return
    board.stamp.clearRect(0, 0, board.size, board.size)
    if (image) board.stamp.drawImage(image, 0, 0, board.size, board.size)
    board.box = image ? extent(board.stamp, board.size) : null
    board.at = [0, 0]
    const start = first ? await load(data.start) : null
    if (start) {
      board.paint.drawImage(start, 0, 0, board.size, board.size)
      board.lifted = true
    }
    choose(board, board.box && !board.lifted ? "move" : "paint")
    if (!first && board.done) send(board)
  }
  draw(board)
}

export default function ({ parentElement, data, setStateValue }) {
  const root = parentElement.querySelector(".painter")
  if (!root || !data) return
  let board = boards.get(root)
  if (!board) {
    const part = (name) => root.querySelector(name)
    board = {
      tools: part(".tools"),
      side: part(".side"),
      node: part(".board"),
      canvas: part("canvas"),
      frame: part(".frame"),
      message: part(".message"),
      timer: 0,
      hold: null,
    }
    boards.set(root, board)
    // The server may remember what was painted on an earlier board; this one is empty.
    if (data.held) setStateValue("overlay", null)
  }
  board.data = data
  board.send = setStateValue
  if (board.size !== data.size) build(board, data)
  show(board, data)
  return () => {
    clearTimeout(board.timer)
    boards.delete(root)
  }
}

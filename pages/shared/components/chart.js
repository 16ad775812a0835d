const charts = new WeakMap()

function plotly(address) {
  if (window.Plotly) return Promise.resolve(window.Plotly)
  if (!window.npdPlotly) {
    window.npdPlotly = new Promise((resolve, reject) => {
      const tag = document.createElement("script")
      tag.src = new URL(address, document.baseURI).href
      tag.onload = () => resolve(window.Plotly)
      tag.onerror = () => {
        window.npdPlotly = null
        reject(new Error("plotly.min.js did not load"))
      }
      document.head.appendChild(tag)
    })
  }
  return window.npdPlotly
}

export default function ({ parentElement, data }) {
  const root = parentElement.querySelector(".npd-chart")
  const plot = parentElement.querySelector(".npd-plot")
  const wait = parentElement.querySelector(".npd-wait")
  if (!root || !plot || !data) return
  let state = charts.get(plot)
  if (!state) {
    state = { refreshes: 0, gone: false }
    charts.set(plot, state)
    state.observer = new ResizeObserver(() => {
      // A chart that has just left the page has no width, which Plotly refuses.
      if (window.Plotly && plot.data && root.clientWidth) window.Plotly.Plots.resize(plot)
    })
    state.observer.observe(root)
  }
  parentElement.querySelector(".npd-title").textContent = data.title
  root.setAttribute("role", "img")
  root.setAttribute("aria-label", data.alt)
  if (data.figure !== state.figure) {
    state.figure = data.figure
    const figure = JSON.parse(data.figure)
    root.style.minHeight = `${figure.layout.height}px`
    plotly(data.script)
      .then((Plotly) => {
        if (state.gone || state.figure !== data.figure) return undefined
        return Plotly.react(plot, figure.data, figure.layout, { displayModeBar: false, responsive: false })
      })
      .then(() => {
        wait.hidden = true
        state.refreshes += 1
        root.dataset.refreshes = state.refreshes
      })
      .catch(() => {
        wait.textContent = "The chart could not be drawn; the table below it has the same numbers."
      })
  }
  return () => {
    state.gone = true
    state.observer.disconnect()
    if (window.Plotly && plot.data) window.Plotly.purge(plot)
    charts.delete(plot)
  }
}

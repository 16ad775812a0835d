"""ACC, ASR and RA of a polarizer at every insertion layer, on the drawing of the network (Figure 3)."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from npd_core.config.presets import PAPER_LAYERS, default_layer
from npd_core.errors import UnknownNameError
from npd_core.experiments.record import Cell
from npd_core.figures import network as drawing
from npd_core.figures import tables
from npd_core.names import METRICS
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import (
    controls,
    describe,
    paper_tables,
    run_panel,
    selectors,
    shell,
    table_runs,
    tiles,
    url_state,
)
from pages.shared.components.chart import chart
from pages.shared.components.network import network
from pages.shared.text import message


def picked() -> None:
    """A layer of the drawing was clicked: select it in the list."""
    layer = st.session_state["layer_drawing"].get("layer")
    if layer:
        st.session_state["insertion_layer"] = layer


def best_layer(cells: dict[str, Cell], card: Card) -> str:
    """Return the recorded layer of Figure 3 with the highest DER; without a record the default layer."""
    der = {
        layer: cell.der
        for layer, cell in cells.items()
        if layer.startswith("after:") and cell.der is not None
    }
    return max(der, key=lambda layer: der[layer]) if der else default_layer(card.arch, card.dataset)


def layer_select(options: list[str], first: str) -> str:
    kept = url_state.bound(url_state.choice("insertion_layer", options, first))
    if st.session_state.get("insertion_layer", first) not in options:
        st.session_state.pop("insertion_layer", None)
    return st.selectbox(
        "Insertion layer",
        options,
        index=options.index(first) if first in options else 0,
        **kept,
        help="In the order of the forward pass. You can also click the layer in the drawing.",
    )


def recorded_numbers(cell: Cell | None) -> None:
    if cell is None or cell.after is None:
        reason = cell.failed if cell is not None and cell.failed else "Nothing is recorded for this layer."
        st.caption(f"{message(reason)} You can run it live.")
        return
    run_panel.metrics(cell.before._asdict() if cell.before else {}, cell.after._asdict(), cell.der)
    seconds = f"{cell.seconds.train:.0f} s of training" if cell.seconds else "training time not recorded"
    st.caption(
        f"recorded · `{cell.model}` · seed {cell.seed} · {cell.device} · {describe.local_time(cell.date)} · "
        f"{seconds}"
    )


def curve(view: paper_tables.View, options: list[str], layer: str, finished: dict[str, Run]) -> None:
    """Show ACC, ASR and RA over the insertion layers, as a chart and as a table."""
    shown = [o for cell in view.cells for o in paper_tables.recorded(cell, cell.row["layer"])]
    shown = [outcome for outcome in shown if outcome.label in options]
    shown += [paper_tables.of_run(run, place) for place, run in finished.items()]
    if not shown:
        return
    shown.sort(key=lambda outcome: options.index(outcome.label))
    st.subheader("All insertion layers, from input to output")
    best = max((o for o in shown if o.der is not None), key=lambda o: o.der or 0.0, default=None)
    summary = f"; the best DER is {best.der:.3f}, at {best.label}" if best is not None else ""
    chart(
        tables.along_layers(shown, layer, tiles.mode()),
        key="layers",
        alt=f"ACC, ASR and RA by insertion layer{summary}.",
    )
    st.caption(
        "Lines join the layers after a convolution. Hollow marks are other insertion layers, stars are "
        "live runs."
    )
    paper_tables.number_table(view.cells, {"layer": "layer"}, "layers-table", finished, "layer")


selection = shell.selection()
shell.title(
    "Layers", "The paper's Figure 3: how well one polarizer works at each insertion layer of the network."
)
card, run = selectors.model(selection), selection.named_run
plan: drawing.Plan | None = None
try:
    plan = drawing.plan(card.arch, card.width, card.image_size, card.num_classes)
    options = plan.forward()
except UnknownNameError:
    options = controls.layers(card)

view = paper_tables.choose(("figure3",), card)
left, right = st.columns([3, 4], vertical_alignment="bottom")
metric = selectors.switch(
    "Color by",
    list(METRICS),
    "color",
    place=left,
    default="asr",
    format_func=str.upper,
    help="The recorded number that colors the drawing and is written on it.",
)
cells = {cell.row["layer"]: cell for cell in view.cells}
with right:
    layer = layer_select(options, best_layer(cells, card))
values = {
    place: float(value)
    for place, cell in cells.items()
    if cell.after is not None
    and place in options
    and (value := cell.der if metric == "der" else getattr(cell.after, metric)) is not None
}
if plan is not None:
    network(
        plan,
        selected=layer,
        default=default_layer(card.arch, card.dataset),
        paper=PAPER_LAYERS.get(card.arch, ""),
        key="layer_drawing",
        on_pick=picked,
        tint=drawing.tint(metric, values),
    )
else:
    st.caption("There is no drawing of this architecture; choose the layer in the list.")
paper_tables.origin(view.record, view.cells, card)
if cells and not values:
    st.caption("The record is of another architecture, which has other insertion layers.")

with selectors.working():
    default = controls.defaults(card)
    requests = table_runs.requests(
        [] if view.record is None else view.record.cells,
        card,
        lambda cell: cell.row["layer"],
        {place: replace(default, layer=place) for place in options},
    )
finished = table_runs.finished(requests, run) if view.comparable else {}
curve(view, options, layer, finished)
st.subheader(f"Polarizer: {drawing.describe(layer)}")
recorded_numbers(cells.get(layer))
if st.button("Use this layer in the Lab", icon=":material/science:", key="lab"):
    selectors.go("lab", layer=layer)
table_runs.start(requests[layer], card, run)
run_panel.warm()

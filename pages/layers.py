"""Where the polarizer is put: ACC, ASR and RA of every insertion point on the network itself (Figure 3)."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st
from streamlit.errors import StreamlitAPIException

from npd_core.config.npd import PAPER_LAYERS, default_layer
from npd_core.config.request import DefenseRequest
from npd_core.errors import NPDError, UnknownNameError
from npd_core.experiments.record import Cell
from npd_core.figures import network as drawing
from npd_core.figures import tables
from npd_core.figures.network import describe
from npd_core.figures.tables import METRICS
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import controls, paper_tables, run_panel, selectors, shell, tiles
from pages.shared.components.chart import chart
from pages.shared.components.network import network


def picked() -> None:
    """The drawing was clicked: the list follows."""
    layer = st.session_state["points"].get("layer")
    if layer:
        st.session_state["point"] = layer


def first_point(cells: dict[str, Cell], card: Card) -> str:
    """The recorded point of Figure 3 with the best DER; without a record the default of the model."""
    after = [cell for layer, cell in cells.items() if layer.startswith("after:") and cell.der is not None]
    return (
        max(after, key=lambda cell: cell.der or 0).row["layer"]
        if after
        else default_layer(card.arch, card.dataset)
    )


def point_select(options: list[str], first: str) -> str:
    """The insertion point as a list; the drawing shows and sets the same choice."""
    asked = st.query_params.get("point")
    if asked and asked not in options and "point" not in st.session_state:
        st.error(f"The address asks for the point {asked[:40]!r}, which this network does not have.",
                 icon=":material/error:")  # fmt: skip
    if st.session_state.get("point", first) not in options:
        st.session_state.pop("point", None)
    return st.selectbox(
        "Insertion point",
        options,
        index=options.index(first) if first in options else 0,
        key="point",
        bind="query-params",
        help="In the order of the forward pass. The drawing shows and sets the same choice.",
    )


def request(card: Card, cells: dict[str, Cell], point: str) -> DefenseRequest:
    """A run at a point: as it was recorded for this model, otherwise the app's preset."""
    recorded = paper_tables.same_request([cells[point]] if point in cells else [], card)
    return recorded or replace(paper_tables.default_request(card, "npd"), layer=point)


def to_the_lab(point: str) -> None:
    """Leave for the Lab with this layer chosen there; says how to get there when the page runs alone."""
    try:
        shell.open_page("lab", {"layer": point})
    except StreamlitAPIException:
        st.info(f"In the app, open lab?layer={point}.", icon=":material/link:")


def recorded_there(cells: dict[str, Cell], point: str) -> None:
    """The recorded numbers of one point."""
    cell = cells.get(point)
    if cell is None or cell.after is None:
        why = cell.failed if cell is not None and cell.failed else "Nothing is recorded for this point."
        st.caption(f"{why} It can be run live.")
        return
    run_panel.tiles(cell.before._asdict() if cell.before else {}, cell.after._asdict(), cell.der)
    st.caption(
        f"recorded · `{cell.model}` · seed {cell.seed} · {cell.device} · {shell.local_time(cell.date)} · "
        f"{cell.seconds.train:.0f} s of training" if cell.seconds else "recorded"
    )  # fmt: skip


def live_there(card: Card, cells: dict[str, Cell], options: list[str], run: Run | None) -> dict[str, Run]:
    """Finished runs of this model, by point, asked for as this page would ask."""
    return paper_tables.runs_of({point: request(card, cells, point) for point in options}, run)


st.title("Layers")
selection = shell.selection()
card, run = selectors.model(selection), selection.run
st.write(
    "The paper's Figure 3: one polarizer, put at each place of the network in turn. Which place it is decides how much "
    "of the trigger can be told apart there, and how much accuracy the filter costs."
)
plan: drawing.Plan | None = None
try:
    plan = drawing.plan(card.arch, card.width, card.image_size, card.num_classes)
    options = plan.forward()
except UnknownNameError:
    options = controls.layers(card)

found = paper_tables.record(("figure3",), "figure3", card)
left, right = st.columns([3, 4], vertical_alignment="bottom")
with left:
    attack = paper_tables.attack(found, card)
with right:
    metric = st.segmented_control(
        "Colour by",
        list(METRICS),
        default="asr",
        required=True,
        key="colour",
        bind="query-params",
        format_func=str.upper,
        help="Which recorded number colours the drawing and stands on it.",
    )
cells = (
    {cell.row["layer"]: cell for cell in found.cells if cell.row["attack"] == attack}
    if found is not None
    else {}
)
own = {layer: cell for layer, cell in cells.items() if paper_tables.is_of(cell, card)}
point = point_select(options, first_point(cells, card))
values = {
    layer: float(value)
    for layer, cell in cells.items()
    if cell.after is not None
    and layer in options
    and (value := cell.der if metric == "der" else getattr(cell.after, metric)) is not None
}
if plan is not None:
    network(
        plan,
        selected=point,
        default=default_layer(card.arch, card.dataset),
        paper=PAPER_LAYERS.get(card.arch, ""),
        key="points",
        on_pick=picked,
        tint=drawing.tint(metric, values),
    )
else:
    st.caption("This architecture has no drawing; choose its point in the list.")
if found is not None:
    paper_tables.whose(found, list(cells.values()), card)
    if cells and not values:
        st.caption("The record is of another architecture, whose points are not those of this network.")

try:
    asked = request(card, own, point)
    done = live_there(card, own, options, run)
except NPDError as error:
    st.error(str(error), icon=":material/error:")
    st.stop()
st.subheader(f"Polarizer: {describe(point)}")
recorded_there(cells, point)
if st.button("Use this layer in the Lab", icon=":material/science:", key="lab"):
    to_the_lab(point)
paper_tables.run_live(asked, card, run, "Run it live here")

mine = attack == card.attack and (found is None or found.dataset == card.dataset)
shown = [(layer, outcome) for layer, cell in cells.items() if layer in options
         for outcome in paper_tables.recorded(cell, layer)]  # fmt: skip
shown += [(layer, paper_tables.of_run(run, layer)) for layer, run in done.items()] if mine else []
if shown:
    shown.sort(key=lambda item: options.index(item[0]))
    outcomes = [outcome for _, outcome in shown]
    st.subheader("From the first layer to the last")
    best = max((o for o in outcomes if o.der is not None), key=lambda o: o.der or 0.0, default=None)
    chart(
        tables.along_layers(outcomes, point, tiles.mode()),
        key="layers",
        alt="ACC, ASR and RA by insertion point"
        + (f"; the best DER is at {best.label}, {best.der:.3f}." if best is not None else "."),
    )
    st.caption(
        "The lines join the points after a convolution; hollow marks are other points, stars were run live."
    )
    rows = paper_tables.cell_rows(list(cells.values()), {"layer": "layer"})
    paper_tables.table(rows + (paper_tables.run_rows(done, "layer") if mine else []), "layers-table")
run_panel.warm()

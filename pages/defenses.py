"""Every defense against every attack, recorded beside published (Tables 1, 2 and 7), and live runs."""

from __future__ import annotations

import streamlit as st

from npd_core.experiments.average import AVG, averages
from npd_core.experiments.record import Cell, TableRecord
from npd_core.figures import tables
from npd_core.figures.tables import SOURCES, Outcome
from npd_core.names import DEFENSES, METRICS, attack_name, defense_name
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import (
    cache,
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

MEAN = "Mean over the attacks"
AXES = {"attack": "attack", "defense": "defense"}


def title(cell: Cell) -> str:
    return defense_name(cell.defense)


def in_order(outcomes: list[Outcome]) -> list[Outcome]:
    """Sort by defense as in the paper's tables."""
    order = list(DEFENSES.values())
    return sorted(outcomes, key=lambda outcome: order.index(outcome.label))


def mean_outcomes(found: TableRecord) -> list[Outcome]:
    """Return the mean of each defense over the attacks for which all have numbers, and name these attacks."""
    means, attacks = averages(list(found.cells), found.dataset)
    names = ", ".join(attack_name(name) for name in attacks)
    st.caption(
        f"Mean over the attacks for which every defense has numbers: {names}."
        if attacks
        else "No attack has numbers for every defense, so there is no fair mean."
    )
    return paper_tables.outcomes([cell for cell in means if cell.row["attack"] == AVG], title)


def comparison(view: paper_tables.View, card: Card, finished: dict[str, Run]) -> None:
    """Show ACC, ASR and DER of every defense as bars and as a table."""
    found, runs = view.record, finished if view.comparable else {}
    if found is not None and not view.attack:
        outcomes = mean_outcomes(found)
    else:
        outcomes = paper_tables.outcomes(view.cells, title)
    outcomes += [paper_tables.of_run(run, defense_name(name)) for name, run in runs.items()]
    if outcomes:
        paper_tables.bars(in_order(outcomes), "defenses")
        if paper_tables.saw_poison(view.cells, runs.values()):
            st.caption(paper_tables.SAW_POISON)
        labels = {defense_name(name): run for name, run in runs.items()}
        paper_tables.number_table(view.cells, AXES, "defenses-table", labels, "defense")
    elif found is None:
        st.caption("Run a defense on this model to see its results here.")
    paper_tables.origin(found, view.cells, card)


def overview(found: TableRecord) -> None:
    """Show one metric for every pair of attack and defense."""
    st.subheader("All attacks and defenses")
    metric = selectors.switch("Metric", list(METRICS), "metric", default="der", format_func=str.upper)
    for source in ["recorded", *(["published"] if any(cell.published for cell in found.cells) else [])]:
        rows: dict[str, dict[str, float | None]] = {}
        for cell in found.cells:
            row = rows.setdefault(attack_name(cell.row["attack"]), {})
            values = [getattr(o, metric) for o in paper_tables.recorded(cell, "") if o.source == source]
            row[defense_name(cell.defense)] = values[0] if values else None
        if any(value is not None for row in rows.values() for value in row.values()):
            st.markdown(f"**{METRICS[metric].full}**, {SOURCES[source]}, in percent")
            chart(
                tables.tiles(rows, metric, tiles.mode()),
                key=f"glance-{source}",
                alt=f"{METRICS[metric].full} of every defense against every attack, {SOURCES[source]}; "
                "the table below lists the numbers.",
            )
        else:
            st.caption(f"{METRICS[metric].full} is not {source}.")
    paper_tables.number_table(found.cells, AXES, "glance-table")


def running_time(card: Card) -> None:
    """Show Table 7."""
    st.subheader("Training time")
    with selectors.working():
        found = cache.runs.table("table7", card.dataset)
    if found is None:
        st.caption(f"There is no record. `npd table 7 --quick --dataset {card.dataset}` creates it.")
        return
    outcomes = in_order([o for cell in found.cells for o in paper_tables.recorded(cell, title(cell))])
    outcomes = [outcome for outcome in outcomes if outcome.seconds is not None]
    if outcomes:
        with st.grid("auto", min_column_width=300):
            for source in dict.fromkeys(outcome.source for outcome in outcomes):
                shown = [outcome for outcome in outcomes if outcome.source == source]
                times = ", ".join(f"{o.label} {tables.seconds(o.seconds or 0)}" for o in shown)
                chart(
                    tables.time_bars(shown, tiles.mode()),
                    key=f"times-{source}",
                    alt=f"Training time, {SOURCES[source]}: {times}.",
                )
        if any(outcome.source == "published" for outcome in outcomes):
            st.caption("The scales differ: the paper measured a network of width 64 on its own GPU.")
        paper_tables.number_table(found.cells, {"defense": "defense"}, "times-table")
    paper_tables.origin(found, found.cells, card)


selection = shell.selection()
shell.title(
    "Defenses", "The paper's Tables 1, 2 and 7: how well and how fast each defense repairs each model."
)
card, run = selectors.model(selection), selection.named_run
names = ("table1", "table2")
view = paper_tables.choose(names[::-1] if card.dataset == "tiny_imagenet" else names, card, mean=MEAN)
cells = [] if view.record is None else list(view.record.cells)
with selectors.working():
    defaults = {name: controls.defaults(card, name) for name in DEFENSES if name != "none"}
    requests = table_runs.requests(cells, card, lambda cell: cell.defense, defaults)
comparison(view, card, table_runs.finished(requests, run))

st.subheader("Run a defense")
defense = st.selectbox(
    "Defense",
    list(requests),
    index=list(requests).index("npd"),
    format_func=defense_name,
    **url_state.bound(url_state.choice("defense", map(defense_name, requests))),
    help="NPD and its variants train one thin layer; the other defenses change the network itself.",
)
recorded = any(cell.defense == defense and cell.config and paper_tables.is_of(cell, card) for cell in cells)
settings = "the settings of the recorded run" if recorded else "the default settings of the data set"
st.caption(f"Runs on the chosen model, {describe.model(card)}, with {settings}.")
table_runs.start(requests[defense], card, run)

if view.record is not None:
    overview(view.record)
running_time(card)
run_panel.warm()

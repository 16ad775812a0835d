"""Every defense against every attack, recorded beside published (Tables 1, 2 and 7), and any of them run live."""

from __future__ import annotations

import streamlit as st

from npd_core.config.request import DefenseRequest
from npd_core.errors import NPDError
from npd_core.experiments.average import AVG, averages
from npd_core.experiments.record import Cell, TableRecord
from npd_core.figures import tables
from npd_core.figures.tables import DEFENSES, METRICS, SOURCES, Outcome
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cached, paper_tables, run_panel, selectors, shell, tiles
from pages.shared.components.chart import chart

MEAN = "Mean over the attacks"


def in_order(defenses: list[str]) -> list[str]:
    """As in the paper's tables."""
    return [name for name in DEFENSES if name in defenses]


def requests(card: Card, cells: list[Cell]) -> dict[str, DefenseRequest]:
    """What "run it live" asks for, by defense: as it was recorded for this model, otherwise the app's preset."""
    found = {}
    for name in in_order([name for name in DEFENSES if name != "none"]):
        recorded = paper_tables.same_request([cell for cell in cells if cell.defense == name], card)
        found[name] = recorded or paper_tables.default_request(card, name)
    return found


def of_attack(cells: list[Cell], attack: str) -> list[Outcome]:
    """No defense, then each one against an attack."""
    mine = [cell for cell in cells if cell.row["attack"] == attack]
    outcomes = paper_tables.undefended(mine)
    for name in in_order([cell.defense for cell in mine]):
        cell = next(cell for cell in mine if cell.defense == name)
        outcomes += paper_tables.recorded(cell, DEFENSES[name])
    return outcomes


def over_attacks(cells: list[Cell], dataset: str) -> tuple[list[Outcome], list[str]]:
    """The mean of each defense over the attacks for which every one has numbers, and those attacks."""
    means, attacks = averages(cells, dataset)
    return of_attack(means, AVG), attacks


def comparison(found: TableRecord | None, card: Card, runs: dict[str, Run]) -> None:
    """ACC, ASR and DER of every defense, and the table of the same."""
    cells = list(found.cells) if found is not None else []
    attack = paper_tables.attack(found, card, first=MEAN)
    shown, outcomes = cells, []
    if attack:
        shown = [cell for cell in cells if cell.row["attack"] == attack]
        outcomes = of_attack(cells, attack)
    elif found is not None:
        outcomes, common = over_attacks(cells, found.dataset)
        names = ", ".join(shell.ATTACK_TITLES.get(name, name) for name in common)
        st.caption(
            f"Mean over the attacks for which every defense has numbers: {names}."
            if common
            else "No attack has numbers for every defense, so there is no fair mean."
        )
    mine = attack == card.attack and (found is None or found.dataset == card.dataset)
    if mine:
        outcomes += [paper_tables.of_run(run, DEFENSES[name]) for name, run in runs.items()]
    if outcomes:
        order = list(DEFENSES.values())
        outcomes.sort(key=lambda outcome: order.index(outcome.label))
        mode = tiles.mode()
        paper_tables.panels(
            lambda metric: tables.bars(outcomes, metric, mode), ("acc", "asr", "der"), outcomes, "defenses"
        )
        if paper_tables.saw_poison(shown, runs.values() if mine else ()):
            st.caption(paper_tables.SAW_POISON)
        rows = paper_tables.cell_rows(shown, {"attack": "attack", "defense": "defense"})
        words = {DEFENSES[name]: run for name, run in runs.items()}
        paper_tables.table(rows + (paper_tables.run_rows(words, "defense") if mine else []), "defenses-table")
    elif found is None:
        st.caption("Bars appear here as soon as a defense of this model has been run.")
    if found is not None:
        paper_tables.whose(found, shown, card)


def at_a_glance(found: TableRecord) -> None:
    """One metric of every pair of attack and defense."""
    st.subheader("Every attack at a glance")
    metric = st.segmented_control(
        "Metric",
        list(METRICS),
        default="der",
        required=True,
        key="metric",
        bind="query-params",
        format_func=str.upper,
    )
    sources = ["recorded", *(["published"] if any(cell.published for cell in found.cells) else [])]
    for source in sources:
        rows: dict[str, dict[str, float | None]] = {}
        for cell in found.cells:
            row = rows.setdefault(shell.ATTACK_TITLES.get(cell.row["attack"], cell.row["attack"]), {})
            values = [getattr(o, metric) for o in paper_tables.recorded(cell, "") if o.source == source]
            row[DEFENSES[cell.defense]] = values[0] if values else None
        if any(value is not None for row in rows.values() for value in row.values()):
            st.markdown(f"**{METRICS[metric]}**, {SOURCES[source]}, in percent")
            chart(
                tables.tiles(rows, metric, tiles.mode()),
                key=f"glance-{source}",
                alt=f"{METRICS[metric]} of every defense against every attack, {SOURCES[source]}; "
                "the table below has the numbers.",
            )
        else:
            st.caption(f"{METRICS[metric]} is not {source}.")
    paper_tables.table(
        paper_tables.cell_rows(found.cells, {"attack": "attack", "defense": "defense"}), "glance-table"
    )


def running_time(card: Card) -> None:
    """Table 7."""
    st.subheader("Running time")
    with selectors.working():
        found = cached.table("table7", card.dataset)
    if found is None:
        st.caption(f"Not recorded yet: `npd table 7 --quick --dataset {card.dataset}` makes the record.")
        return
    outcomes = [
        outcome
        for name in in_order([cell.defense for cell in found.cells])
        for cell in found.cells
        if cell.defense == name
        for outcome in paper_tables.recorded(cell, DEFENSES[name])
    ]
    if outcomes:
        with st.grid("auto", min_column_width=300):
            for source in dict.fromkeys(
                outcome.source for outcome in outcomes if outcome.seconds is not None
            ):
                kept = [o for o in outcomes if o.source == source and o.seconds is not None]
                said = ", ".join(f"{o.label} {tables.seconds(o.seconds or 0)}" for o in kept)
                chart(
                    tables.time_bars(kept, tiles.mode()),
                    key=f"times-{source}",
                    alt=f"Seconds of training, {SOURCES[source]}: {said}.",
                )
        if any(outcome.source == "published" for outcome in outcomes):
            st.caption(
                "Two scales: the paper's seconds are of its own graphics card and its own network of width 64."
            )
        paper_tables.table(paper_tables.cell_rows(found.cells, {"defense": "defense"}), "times-table")
    paper_tables.whose(found, found.cells, card)


st.title("Defenses")
selection = shell.selection()
card, run = selectors.model(selection), selection.run
st.write(
    "The paper's Tables 1, 2 and 7: what each defense makes of each backdoored network. **ACC** should stay where it "
    "was, **ASR** should fall to zero, and **DER** weighs both: 1 is a full repair, 0.5 is nothing done."
)
found = paper_tables.record(("table1", "table2"), "2" if card.dataset == "tiny_imagenet" else "1", card)
try:
    asked = requests(card, list(found.cells) if found is not None else [])
except NPDError as error:
    st.error(str(error), icon=":material/error:")
    st.stop()
comparison(found, card, paper_tables.runs_of(asked, run))

st.subheader("Run one live")
defense = st.selectbox(
    "Defense",
    list(asked),
    index=list(asked).index("npd"),
    format_func=lambda name: DEFENSES.get(name, name),
    key="defense",
    bind="query-params",
    help="NPD and its variants train one thin layer; the others change the network itself.",
)
same = [] if found is None else [cell for cell in found.cells if cell.defense == defense]
recorded = paper_tables.same_request(same, card) is not None
st.caption(
    f"Of the chosen model, {shell.model_title(card)}, with "
    + ("the very settings of the recorded number." if recorded else "the preset of its data set.")
)
paper_tables.run_live(asked[defense], card, run)

if found is not None:
    at_a_glance(found)
running_time(card)
run_panel.warm()

"""What the parts of NPD are for: terms of the loss, targets, poison ratio, number of clean images (Tables 3 to 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import streamlit as st

from npd_core.config.npd import NPDConfig
from npd_core.config.request import DefenseRequest
from npd_core.errors import NPDError
from npd_core.experiments.plan import TABLES
from npd_core.experiments.published import TERMS
from npd_core.experiments.record import Cell, TableRecord
from npd_core.experiments.tables import only
from npd_core.figures import tables
from npd_core.figures.tables import DEFENSES, Outcome
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import paper_tables, run_panel, selectors, shell, tiles

# Words of a choice -> its label on the axis, its line, and what it asks for.
Requests = dict[str, tuple[str, str, DefenseRequest]]


@dataclass(frozen=True)
class Question:
    """One of the tables as a question."""

    table: str
    text: str
    axes: dict[str, str]
    """Axis of a cell -> title of its column in the table."""
    label: Callable[[Cell], str]
    """Its place on the axis of the chart."""
    choices: Callable[[Card, list[Cell]], Requests]
    """What can be run of the chosen model."""
    axis: str = ""
    """Title of the axis where the values are numbers, drawn as curves; empty: bars."""


def terms(words: str) -> str:
    """ "bn+bce1" as people read it."""
    return " + ".join(words.split("+"))


def targeted(defense: str) -> str:
    return f"{DEFENSES[defense]}, {'targeted' if defense == 'npd' else 'untargeted'}"


def of_terms(card: Card, cells: list[Cell]) -> Requests:
    found: Requests = {}
    for words in TERMS:
        asked = paper_tables.same_request([cell for cell in cells if cell.row["terms"] == words], card)
        if asked is None:
            preset = paper_tables.default_request(card, "npd")
            assert isinstance(preset.config, NPDConfig)
            asked = replace(preset, config=only(preset.config, words))
        found[terms(words)] = (terms(words), "", asked)
    return found


def of_targets(card: Card, cells: list[Cell]) -> Requests:
    found: Requests = {}
    for name in TABLES["table4"].defenses:
        asked = paper_tables.same_request([cell for cell in cells if cell.defense == name], card)
        found[targeted(name)] = (targeted(name), "", asked or paper_tables.default_request(card, name))
    return found


def of_ratio(card: Card, cells: list[Cell]) -> Requests:
    label = f"{card.poison_ratio:.0%}"
    asked = paper_tables.same_request([cell for cell in cells if cell.defense == "npd"], card)
    return {
        f"NPD, at this model's ratio of {label}": (
            label,
            "NPD",
            asked or paper_tables.default_request(card, "npd"),
        )
    }


def of_clean(card: Card, cells: list[Cell]) -> Requests:
    found: Requests = {}
    for count in sorted(TABLES["table6"].values[0]):
        for name in reversed(TABLES["table6"].defenses):
            mine = [cell for cell in cells if cell.defense == name and cell.row["clean"] == count]
            asked = paper_tables.same_request(mine, card)
            if asked is None:
                asked = replace(paper_tables.default_request(card, name), clean=count)
            found[f"{DEFENSES[name]}, {count} clean images"] = (str(count), DEFENSES[name], asked)
    return found


QUESTIONS = {
    "Loss terms": Question(
        "table3",
        "Which terms of the loss does NPD need? Each row keeps only the terms that it names: **bn** on clean images, "
        "**asr** away from the attacker's class (Eq. 2), **bce1** and **bce2** back to the true class (Eq. 3).",
        {"attack": "attack", "terms": "terms"},
        lambda cell: terms(cell.row["terms"]),
        of_terms,
    ),
    "Targeted or not": Question(
        "table4",
        "NPD imagines a trigger that pulls each image to a class, its strongest wrong one. Untargeted variants imagine "
        "one that only pushes it off its own class: **NPD-UP** for each image, **NPD-UU** one for all.",
        {"attack": "attack", "targeted": "targeted", "defense": "defense"},
        lambda cell: targeted(cell.defense),
        of_targets,
    ),
    "Poison ratio": Question(
        "table5",
        "How much of the training set the attacker poisoned. The defender does not know it.",
        {"attack": "attack", "poison_ratio": "poison ratio", "defense": "defense"},
        lambda cell: f"{cell.row['poison_ratio']:.0%}",
        of_ratio,
        "poisoned share of the training set",
    ),
    "Clean images": Question(
        "table6",
        "How many clean images the defender has. NPD learns one thin layer, which takes few.",
        {"attack": "attack", "clean": "clean images", "defense": "defense"},
        lambda cell: str(cell.row["clean"]),
        of_clean,
        "clean images",
    ),
}


def as_bars(question: Question, cells: list[Cell], mine: dict[str, Run]) -> None:
    """A row for each value."""
    outcomes = paper_tables.undefended(cells)
    for cell in cells:
        outcomes += paper_tables.recorded(cell, question.label(cell))
    outcomes += [paper_tables.of_run(run, label) for label, run in mine.items()]
    if not outcomes:
        return
    metrics = [name for name in ("acc", "asr", "der") if any(getattr(o, name) is not None for o in outcomes)]
    mode = tiles.mode()
    paper_tables.panels(lambda metric: tables.bars(outcomes, metric, mode), metrics, outcomes, "ablation")


def as_curves(question: Question, cells: list[Cell], mine: dict[tuple[str, str], Run]) -> None:
    """A line for each defense over the values."""
    series: dict[str, list[Outcome]] = {}
    axis = next(name for name in question.axes if name in ("poison_ratio", "clean"))
    places = {question.label(cell): cell.row[axis] for cell in cells}
    for cell in cells:
        series.setdefault(DEFENSES[cell.defense], []).extend(
            paper_tables.recorded(cell, question.label(cell))
        )
        if question.table == "table5" and cell.before is not None:
            bare = Outcome(question.label(cell), "recorded", *cell.before)
            series.setdefault(DEFENSES["none"], []).append(bare)
    for (label, line), run in mine.items():
        series.setdefault(line, []).append(paper_tables.of_run(run, label))
        places.setdefault(label, float(label.rstrip("%")) / (100 if label.endswith("%") else 1))
    if not series:
        return
    names = list(DEFENSES.values())[::-1]
    lines = dict(sorted(series.items(), key=lambda item: names.index(item[0])))
    order, mode = sorted(places, key=lambda label: places[label]), tiles.mode()
    paper_tables.panels(
        lambda metric: tables.curves(lines, metric, order, question.axis, mode),
        ("acc", "asr", "der"),
        [
            outcome._replace(label=f"{line}, {outcome.label}")
            for line, found in lines.items()
            for outcome in found
        ],
        "ablation",
    )


def recorded_cells(found: TableRecord | None, attack: str) -> list[Cell]:
    return [cell for cell in found.cells if cell.row["attack"] == attack] if found is not None else []


st.title("Ablations")
selection = shell.selection()
card, run = selectors.model(selection), selection.run
st.write(
    "The paper's Tables 3 to 6: what happens when a part of NPD is taken away, or when there is less to go by."
)
name = st.segmented_control(
    "Question",
    list(QUESTIONS),
    default="Loss terms",
    required=True,
    key="question",
    bind="query-params",
    label_visibility="collapsed",
)
question = QUESTIONS[name]
st.markdown(question.text)
found = paper_tables.record((question.table,), question.table.removeprefix("table"), card)
attack = paper_tables.attack(found, card)
cells = recorded_cells(found, attack)
mine = recorded_cells(found, card.attack) if found is not None and found.dataset == card.dataset else []
try:
    asked = question.choices(card, mine)
except NPDError as error:
    st.error(str(error), icon=":material/error:")
    st.stop()
done = paper_tables.runs_of({words: request for words, (_, _, request) in asked.items()}, run)
own = attack == card.attack and (found is None or found.dataset == card.dataset)
beside = {asked[words][:2]: run for words, run in done.items()} if own else {}
if question.axis:
    as_curves(question, cells, beside)
else:
    as_bars(question, cells, {label: run for (label, _), run in beside.items()})
if cells or beside:
    column = next(title for axis, title in question.axes.items() if axis != "attack")
    rows = paper_tables.cell_rows(cells, question.axes)
    paper_tables.table(rows + (paper_tables.run_rows(done, column) if own else []), f"{question.table}-table")
if found is not None:
    paper_tables.whose(found, cells, card)

st.subheader("Run one live")
choice = st.selectbox(
    "Row",
    list(asked),
    key=f"row-{question.table}",
    index=0 if question.axis else len(asked) - 1,
    bind="query-params",
)
st.caption(f"Of the chosen model, {shell.model_title(card)}.")
paper_tables.run_live(asked[choice][2], card, run)
run_panel.warm()

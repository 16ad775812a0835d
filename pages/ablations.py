"""Effect of the parts of NPD: loss terms, targets, poison ratio, number of clean images (Tables 3 to 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import streamlit as st

from npd_core.config.npd import NPDConfig
from npd_core.config.request import DefenseRequest
from npd_core.experiments.plan import TABLES
from npd_core.experiments.published import TERMS
from npd_core.experiments.record import Cell
from npd_core.experiments.tables import only
from npd_core.figures import tables
from npd_core.figures.tables import Outcome
from npd_core.names import DEFENSES, defense_name
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


class Variant(NamedTuple):
    """One row of a table that can be run for the chosen model."""

    label: str
    """Its place on the axis of the chart."""
    line: str
    """The curve it belongs to; "" for bars."""
    request: DefenseRequest


@dataclass(frozen=True)
class Question:
    """One of the tables as a question."""

    table: str
    text: str
    axes: dict[str, str]
    """Axis of a cell -> title of its column in the table."""
    label: Callable[[Cell], str]
    """Place of a cell on the axis of the chart."""
    variants: Callable[[Card, Sequence[Cell]], dict[str, Variant]]
    """What can be run, by title."""
    axis: str = ""
    """Title of a numeric axis, drawn as curves; empty: bars."""


def terms(words: str) -> str:
    return " + ".join(words.split("+"))


def targeted(defense: str) -> str:
    return f"{defense_name(defense)}, {'targeted' if defense == 'npd' else 'untargeted'}"


def term_variants(card: Card, cells: Sequence[Cell]) -> dict[str, Variant]:
    default = controls.defaults(card)
    assert isinstance(default.config, NPDConfig)
    defaults = {words: replace(default, config=only(default.config, words)) for words in TERMS}
    found = table_runs.requests(cells, card, lambda cell: cell.row["terms"], defaults)
    return {terms(words): Variant(terms(words), "", request) for words, request in found.items()}


def target_variants(card: Card, cells: Sequence[Cell]) -> dict[str, Variant]:
    defaults = {name: controls.defaults(card, name) for name in TABLES["table4"].defenses}
    found = table_runs.requests(cells, card, lambda cell: cell.defense, defaults)
    return {targeted(name): Variant(targeted(name), "", request) for name, request in found.items()}


def ratio_variants(card: Card, cells: Sequence[Cell]) -> dict[str, Variant]:
    label = f"{card.poison_ratio:.0%}"
    found = table_runs.requests(cells, card, lambda cell: cell.defense, {"npd": controls.defaults(card)})
    return {f"NPD, poison ratio {label} of the chosen model": Variant(label, "NPD", found["npd"])}


def clean_variants(card: Card, cells: Sequence[Cell]) -> dict[str, Variant]:
    table = TABLES["table6"]
    defaults = {
        (count, name): replace(controls.defaults(card, name), clean=count)
        for count in sorted(table.values[0])
        for name in reversed(table.defenses)
    }
    found = table_runs.requests(cells, card, lambda cell: (cell.row["clean"], cell.defense), defaults)
    return {
        f"{defense_name(name)}, {count} clean images": Variant(str(count), defense_name(name), request)
        for (count, name), request in found.items()
    }


QUESTIONS = {
    "Loss terms": Question(
        "table3",
        "Which loss terms does NPD need? Each row keeps only the terms it names: **bn** on clean images, "
        "**asr** away from the target class (Eq. 2), **bce1** and **bce2** back to the true class (Eq. 3).",
        {"attack": "attack", "terms": "terms"},
        lambda cell: terms(cell.row["terms"]),
        term_variants,
    ),
    "Targeted or not": Question(
        "table4",
        "NPD's adversarial perturbation pushes each image toward one class, its strongest wrong one. The "
        "untargeted variants only push images out of their true class: **NPD-UP** with one perturbation "
        "per image, **NPD-UU** with one for all images.",
        {"attack": "attack", "targeted": "targeted", "defense": "defense"},
        lambda cell: targeted(cell.defense),
        target_variants,
    ),
    "Poison ratio": Question(
        "table5",
        "Which share of the training set is poisoned. The defender does not know this ratio.",
        {"attack": "attack", "poison_ratio": "poison ratio", "defense": "defense"},
        lambda cell: f"{cell.row['poison_ratio']:.0%}",
        ratio_variants,
        "poisoned share of the training set",
    ),
    "Clean images": Question(
        "table6",
        "How many clean images the defender has. NPD trains one thin layer, so it needs few.",
        {"attack": "attack", "clean": "clean images", "defense": "defense"},
        lambda cell: str(cell.row["clean"]),
        clean_variants,
        "clean images",
    ),
}


def curves(question: Question, cells: list[Cell], runs: list[tuple[Variant, Run]]) -> None:
    """Show a curve for each defense over a numeric axis."""
    series: dict[str, list[Outcome]] = {}
    axis = next(name for name in question.axes if name in ("poison_ratio", "clean"))
    places = {question.label(cell): cell.row[axis] for cell in cells}
    for cell in cells:
        label = question.label(cell)
        series.setdefault(defense_name(cell.defense), []).extend(paper_tables.recorded(cell, label))
        if axis == "poison_ratio" and cell.before is not None:
            series.setdefault(DEFENSES["none"], []).append(Outcome(label, "recorded", *cell.before))
    for variant, run in runs:
        label = variant.label
        series.setdefault(variant.line, []).append(paper_tables.of_run(run, label))
        places.setdefault(label, float(label.rstrip("%")) / (100 if label.endswith("%") else 1))
    if not series:
        return
    names = list(DEFENSES.values())[::-1]
    lines = dict(sorted(series.items(), key=lambda item: names.index(item[0])))
    order, mode = sorted(places, key=lambda label: places[label]), tiles.mode()
    shown = [o._replace(label=f"{line}, {o.label}") for line, found in lines.items() for o in found]
    paper_tables.panels(
        lambda metric: tables.curves(lines, metric, order, question.axis, mode),
        ("acc", "asr", "der"),
        shown,
        "ablation",
    )


selection = shell.selection()
shell.title(
    "Ablations",
    "The paper's Tables 3 to 6: the effect of loss terms, targets, poison ratio and number of clean images.",
)
card, run = selectors.model(selection), selection.named_run
question = QUESTIONS[selectors.switch("Question", list(QUESTIONS), "question", label_visibility="collapsed")]
st.markdown(question.text)
view = paper_tables.choose((question.table,), card)
with selectors.working():
    variants = question.variants(card, [] if view.record is None else view.record.cells)
finished = table_runs.finished({title: variant.request for title, variant in variants.items()}, run)
if not view.comparable:
    finished = {}
runs = [(variants[title], run) for title, run in finished.items()]
if question.axis:
    curves(question, view.cells, runs)
else:
    outcomes = paper_tables.outcomes(view.cells, question.label)
    outcomes += [paper_tables.of_run(run, variant.label) for variant, run in runs]
    if outcomes:
        paper_tables.bars(outcomes, "ablation")
if view.cells or runs:
    column = next(title for axis, title in question.axes.items() if axis != "attack")
    paper_tables.number_table(view.cells, question.axes, f"{question.table}-table", finished, column)
paper_tables.origin(view.record, view.cells, card)

st.subheader("Run a variant")
choice = st.selectbox(
    "Variant",
    list(variants),
    index=0 if question.axis else len(variants) - 1,
    **url_state.bound(url_state.choice(f"row-{question.table}", variants)),
)
st.caption(f"Runs on the chosen model, {describe.model(card)}.")
table_runs.start(variants[choice].request, card, run)
run_panel.warm()

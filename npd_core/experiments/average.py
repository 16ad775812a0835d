"""The AVG rows of Tables 1 and 2: means over the attacks. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from npd_core.experiments.published import undefended
from npd_core.experiments.record import Cell, Published, Scores, Seconds
from npd_core.metrics import Metrics, der, mean

AVG = "AVG"
"""In place of an attack in a row of means."""


def averages(cells: Sequence[Cell], dataset: str) -> tuple[list[Cell], list[str]]:
    """Return one cell of means per defense, and the attacks averaged: those with numbers for every defense.

    The published numbers are averaged in the same way.
    """
    numbers = {(cell.row["attack"], cell.defense): cell for cell in cells if cell.before and cell.after}
    attacks = dict.fromkeys(cell.row["attack"] for cell in cells)
    defenses = dict.fromkeys(cell.defense for cell in cells)
    common = [attack for attack in attacks if all((attack, name) in numbers for name in defenses)]
    if not common:
        return [], []
    return [_average([numbers[attack, name] for attack in common], dataset) for name in defenses], common


def _average(cells: Sequence[Cell], dataset: str) -> Cell:
    """Average the cells of one defense."""
    defense = cells[0].defense
    before = mean([Metrics(*cell.before) for cell in cells if cell.before])
    after = mean([Metrics(*cell.after) for cell in cells if cell.after])
    took = [cell.seconds for cell in cells if cell.seconds]
    return Cell(
        row={"attack": AVG, "defense": defense},
        model="",
        defense=defense,
        before=Scores(*before),
        after=Scores(*after),
        der=der(before, after),
        seconds=Seconds(*map(fmean, zip(*took, strict=True))) if len(took) == len(cells) else None,
        seed=cells[0].seed,
        published=_published(cells, dataset),
    )


def _published(cells: Sequence[Cell], dataset: str) -> Published | None:
    before = _printed([undefended(dataset, cell.row["attack"]) for cell in cells])
    after = _printed([cell.published for cell in cells])
    if after is None:
        return None
    return Published(after.acc, after.asr, None if before is None else der(before, after))


def _printed(found: Sequence[Published | None]) -> Metrics | None:
    """Return the mean of the published numbers; None where one is missing."""
    known = [
        Metrics(p.acc, p.asr) for p in found if p is not None and p.acc is not None and p.asr is not None
    ]
    return mean(known) if len(known) == len(found) else None

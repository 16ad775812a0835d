"""Render cells as rows for a terminal, CSV, or a self-contained HTML page. Percentages only for reading."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from npd_core.experiments.average import averages
from npd_core.experiments.record import Cell, Published, TableRecord
from npd_core.templates import render_page

HEAD = ("ACC %", "ASR %", "RA %", "DER %", "seconds")
PUBLISHED = ("paper ACC %", "paper ASR %", "paper DER %", "paper seconds")


def shown(record: TableRecord) -> tuple[list[Cell], list[str]]:
    """Return the cells and notes to show: Tables 1 and 2 end with the means over several attacks."""
    cells, notes = list(record.cells), list(record.cut)
    if record.table not in ("table1", "table2"):
        return cells, notes
    means, attacks = averages(cells, record.dataset)
    if len(attacks) < 2:
        return cells, notes
    note = (
        f"AVG: means over {', '.join(attacks)}; DER is Eq. 6 of the mean ACC and ASR, not the "
        "mean of the DERs."
    )
    return [*cells, *means], [*notes, note]


def terminal_rows(cells: Sequence[Cell], axes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: axes, measured numbers and, where the paper has any, published ones."""
    used = [any(_printed(cell)[column] != "-" for cell in cells) for column in range(len(PUBLISHED))]
    head = [
        *axes,
        "ACC, ASR before",
        *HEAD,
        *(name for name, show in zip(PUBLISHED, used, strict=True) if show),
    ]
    rows = [
        [
            *(text_of(cell.row.get(axis)) for axis in axes),
            "-" if cell.before is None else f"{percent(cell.before.acc)}, {percent(cell.before.asr)}",
            *_measured(cell),
            *(text for text, show in zip(_printed(cell), used, strict=True) if show),
        ]
        for cell in cells
    ]
    return head, rows


def to_csv(cells: Sequence[Cell], axes: Sequence[str]) -> str:
    """Return one line per cell; fractions and seconds, empty where there is no number."""
    shares = ("acc", "asr", "ra")
    head = [*axes, "model", "defense_id", "insertion_layer", *(f"{name}_before" for name in shares), *shares]
    head += ["der", "seconds_train", "seconds_evaluate", "seed", "device", "date"]
    head += [f"published_{name}" for name in Published._fields] + ["failed"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for cell in cells:
        numbers = [*(cell.before or (None,) * 3), *(cell.after or (None,) * 3), cell.der]
        numbers += cell.seconds or (None,) * 2
        facts = [cell.seed, cell.device, cell.date, *(cell.published or Published()), cell.failed]
        axis = ["" if cell.row.get(name) is None else text_of(cell.row[name]) for name in axes]
        writer.writerow([*axis, cell.model, cell.defense, cell.layer, *numbers, *facts])
    return text.getvalue()


def to_html(record: TableRecord) -> str:
    """Return a self-contained page, light or dark as the reader's system is."""
    cells, notes = shown(record)
    head, rows = terminal_rows(cells, record.axes)
    reasons = [cell.failed for cell in cells]
    repeated = [None, *reasons]  # a reason is shown once for the rows below each other
    return render_page(
        "table.html",
        title=f"{record.title} · {record.dataset}",
        record=record,
        notes=notes,
        head=head,
        axes=len(record.axes),
        published=PUBLISHED,
        rows=[
            (row, reason if reason != previous else None)
            for row, reason, previous in zip(rows, reasons, repeated, strict=False)
        ],
        environment={name: text_of(value) for name, value in record.environment.items()},
    )


def percent(share: float | None) -> str:
    """Return `95.09`, or `-` for None."""
    return "-" if share is None else f"{100 * share:.2f}"


def text_of(value: Any) -> str:
    """Return a value of an axis or a setting as text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _measured(cell: Cell) -> list[str]:
    shares = [*(cell.after or (None,) * 3), cell.der]
    return [*map(percent, shares), "-" if cell.seconds is None else f"{cell.seconds.train:.1f}"]


def _printed(cell: Cell) -> list[str]:
    if cell.published is None:
        return ["-"] * 4
    acc, asr, rating, seconds, corrected = cell.published
    der = percent(rating) if corrected is None else f"{percent(rating)} (Eq. 6: {percent(corrected)})"
    return [percent(acc), percent(asr), der, "-" if seconds is None else f"{seconds:.1f}"]

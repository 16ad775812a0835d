"""Cells as text: lines for a terminal, CSV, and one self-contained HTML page. Percent only where a person
reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape
from typing import Any

from npd_core.experiments.average import averages
from npd_core.experiments.record import Cell, Published, TableRecord

HEAD = ("ACC %", "ASR %", "RA %", "DER %", "seconds")
PAPER = ("paper ACC %", "paper ASR %", "paper DER %", "paper seconds")


def shown(record: TableRecord) -> tuple[list[Cell], list[str]]:
    """Cells and sentences of a record as they are shown: those of Tables 1 and 2 end with the means over the
    attacks, where there are several."""
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
    """Head and rows: the axes, what was measured, what the paper prints where it prints anything."""
    used = [any(_printed(cell)[column] != "-" for cell in cells) for column in range(len(PAPER))]
    head = [*axes, "ACC, ASR before", *HEAD, *(name for name, show in zip(PAPER, used, strict=True) if show)]
    rows = [
        [
            *(said(cell.row.get(axis)) for axis in axes),
            "-" if cell.before is None else f"{percent(cell.before.acc)}, {percent(cell.before.asr)}",
            *_measured(cell),
            *(text for text, show in zip(_printed(cell), used, strict=True) if show),
        ]
        for cell in cells
    ]
    return head, rows


def to_csv(cells: Sequence[Cell], axes: Sequence[str]) -> str:
    """One line a cell; fractions and seconds, empty where there is no number."""
    shares = ("acc", "asr", "ra")
    head = [*axes, "model", "defense_id", "insertion_point", *(f"{name}_before" for name in shares), *shares]
    head += ["der", "seconds_train", "seconds_evaluate", "seed", "device", "date"]
    head += [f"published_{name}" for name in Published._fields] + ["failed"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for cell in cells:
        numbers = [*(cell.before or (None,) * 3), *(cell.after or (None,) * 3), cell.der]
        numbers += cell.seconds or (None,) * 2
        facts = [cell.seed, cell.device, cell.date, *(cell.published or Published()), cell.failed]
        axis = ["" if cell.row.get(name) is None else said(cell.row[name]) for name in axes]
        writer.writerow([*axis, cell.model, cell.defense, cell.layer, *numbers, *facts])
    return text.getvalue()


def to_html(record: TableRecord) -> str:
    """A page that needs nothing else: no script, no font, no address. Light and dark."""
    from npd_core.figures.theme import FONT, PALETTES

    cells, notes = shown(record)
    head, rows = terminal_rows(cells, record.axes)
    number = len(record.axes)
    body: list[str] = []
    reason: str | None = None
    for cell, row in zip(cells, rows, strict=True):
        parts = [f"<th scope='row'>{escape(text)}</th>" for text in row[:number]]
        parts += [
            f"<td{' class=paper' if name in PAPER else ''}>{escape(text)}</td>"
            for name, text in zip(head[number:], row[number:], strict=True)
        ]
        body.append(f"<tr>{''.join(parts)}</tr>")
        if cell.failed and cell.failed != reason:  # said once for the rows below each other
            body.append(f"<tr class=failed><td colspan={len(head)}>{escape(cell.failed)}</td></tr>")
        reason = cell.failed
    colours = "".join(
        f"{start}:root{{--text:{p.text};--muted:{p.muted};--line:{p.grid};--page:{p.background};"
        f"--paper:{p.polarizer};--failed:{p.trigger}}}{end}"
        for start, end, p in (
            ("", "", PALETTES["light"]),
            ("@media (prefers-color-scheme:dark){", "}", PALETTES["dark"]),
        )
    )
    facts = [f"{name}: {said(value)}" for name, value in record.environment.items()]
    colour_key = (
        " What the paper prints, of networks of width 64, is in <span class=paper>this colour</span>."
    )
    colour_key = colour_key if len(head) > number + len(HEAD) + 1 else ""
    heading = f"{record.title} · {record.dataset}"
    titles = "".join(
        f"<th{' class=axis' if n < number else ''}>{escape(name)}</th>" for n, name in enumerate(head)
    )
    parts = [
        f"<p class=note>Measured by <code>{escape(record.command)}</code>, "
        f"{escape(record.date)}.{colour_key}</p>",
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in notes)}</ul>" if notes else "",
        f"<div class=wide><table><thead><tr>{titles}</tr></thead>",
        f"<tbody>{''.join(body)}</tbody></table></div>",
        f"<p class=note>{escape(' · '.join(facts))}</p>" if facts else "",
    ]
    style = (
        f"{colours}body{{font:15px/1.5 {FONT};color:var(--text);background:var(--page);max-width:76rem;"
        "margin:2rem auto;padding:0 1rem}.wide{overflow-x:auto}table{border-collapse:collapse}"
        "th,td{padding:.35rem .7rem;text-align:right;"
        "border-bottom:1px solid "
        "var(--line);white-space:nowrap}th[scope=row]{text-align:left;font-weight:500}"
        "thead th.axis{text-align:left}thead th{color:var(--muted);font-weight:600}"
        ".paper{color:var(--paper)}.note,li{color:var(--muted)}"
        ".failed td{color:var(--failed);text-align:left;white-space:normal}"
    )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport "
        "content='width=device-width'>"
        f"<title>{escape(heading)}</title><style>{style}</style></head><body><h1>{escape(heading)}</h1>"
        f"{''.join(parts)}</body></html>\n"
    )


def percent(share: float | None) -> str:
    """`95.09`, or `-` where there is no number."""
    return "-" if share is None else f"{100 * share:.2f}"


def said(value: Any) -> str:
    """A value of an axis or a setting, for people."""
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
    said = percent(rating) if corrected is None else f"{percent(rating)} (Eq. 6: {percent(corrected)})"
    return [percent(acc), percent(asr), said, "-" if seconds is None else f"{seconds:.1f}"]

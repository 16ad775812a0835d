"""`npd table`: run a table of the paper, or Figure 3."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from npd_core import paths
from npd_core.cli.common import (
    Answer,
    Commands,
    check_file,
    progress_bar,
    progress_line,
    read_positive,
    read_whole,
    read_words,
    text_table,
)  # fmt: skip
from npd_core.cli.runs_common import add_running, check_defenses, exit_code, failures
from npd_core.errors import unknown_name
from npd_core.experiments.record import TABLES, Cell, TableRecord, find_table, table_path, write_table
from npd_core.fileio import write_text


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add(
        "table", run, "run a table of the paper, or Figure 3, and print it beside the paper's numbers"
    )
    parser.add_argument("number", metavar="N", help="1 to 7, or figure3")
    parser.add_argument("--dataset", metavar="D", help="default: the paper's")
    parser.add_argument(
        "--quick", action="store_true", help="a smaller form for two CPU cores; the output names what it cuts"
    )
    parser.add_argument("--attacks", metavar="A,B", type=read_words, help="default: those of the table")
    parser.add_argument("--defenses", metavar="A,B", type=read_words, help="default: those of the table")
    parser.add_argument("--arch", default="preact_resnet18", help="architecture (preact_resnet18)")
    parser.add_argument(
        "--width",
        metavar="W",
        type=read_positive,
        help="default: the one at which most of the models are there",
    )
    parser.add_argument("--seed", metavar="N", type=read_whole, default=0)
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder of the record (default: that of the app, where a fuller record is kept)",
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write one self-contained page")
    add_running(parser)


def run(args: argparse.Namespace) -> Answer:
    """Run the cells of the table, show them beside the paper's numbers and record them."""
    from npd_core.experiments.plan import Options, plan_table
    from npd_core.experiments.render import shown, terminal_rows, to_csv, to_html
    from npd_core.experiments.tables import Progress, run_table

    for option in ("csv", "html"):
        check_file(f"--{option}", getattr(args, option))
    name = f"table{args.number}" if args.number.isdecimal() else args.number
    if name not in TABLES:
        raise unknown_name("table", args.number, [part.removeprefix("table") for part in TABLES])
    options = Options(
        dataset=args.dataset,
        quick=args.quick,
        attacks=args.attacks,
        defenses=check_defenses(args.defenses),
        arch=args.arch,
        width=args.width,
        seed=args.seed,
        device=args.device,
    )
    plan = plan_table(name, options)
    record: TableRecord | None = None
    with progress_bar("{task.completed:.0f}/{task.total:.0f} cells · {task.fields[note]}") as bar:
        task = bar.add_task(f"{name} on {plan.dataset}", total=len(plan.cells), note="")
        for event in run_table(plan, command=_command(args), workers=args.workers, scheduler=args.scheduler):
            if not isinstance(event, Progress):
                record = event
                continue
            bar.update(task, completed=event.done, note=event.text)
            if event.ended:
                progress_line(f"{event.done}/{event.total} {event.text}")
    assert record is not None
    cells, notes = shown(record)
    if args.csv is not None:
        write_text(args.csv, to_csv(cells, record.axes))
    if args.html is not None:
        write_text(args.html, to_html(record))
    head, rows = terminal_rows(cells, record.axes)
    text = [
        f"{record.title} · {record.dataset}",
        text_table(head, rows),
        *failures(record.cells, record.axes),
    ]
    text += [*notes, _record(record, args.out)]
    return Answer(record.to_dict(), "\n".join(text), exit_code(record.cells))


def _record(record: TableRecord, out: Path | None) -> str:
    """Write the record, unless it would replace a fuller one; return what was done, in one sentence."""
    folder = out or paths.tables()
    path = table_path(record.table, record.dataset, folder)
    fresh = {_key(cell) for cell in record.cells if cell.after is not None}
    if not fresh:
        return "Nothing was measured, so no record was written."
    if out is None and (old := find_table(record.table, record.dataset, folder)) is not None:
        lost = {_key(cell) for cell in old.cells if cell.after is not None} - fresh
        if lost or (record.quick and not old.quick):
            what = f"has {len(lost)} cells that this run lacks" if lost else "is of a run that was not quick"
            return f"Not recorded, as {path} {what}: --out DIR writes the record elsewhere."
    write_table(record, path)
    return f"Recorded in {path}"


def _key(cell: Cell) -> tuple[Any, ...]:
    return tuple(sorted((axis, repr(value)) for axis, value in cell.row.items()))


def _command(args: argparse.Namespace) -> str:
    """Return the command as somebody else would type it."""
    words = ["npd", "table", args.number.removeprefix("table")]
    words += ["--quick"] * args.quick
    for name in ("dataset", "attacks", "defenses", "width"):
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name}", ",".join(value) if isinstance(value, tuple) else str(value)]
    words += ["--arch", args.arch] if args.arch != "preact_resnet18" else []
    words += ["--seed", str(args.seed)] if args.seed else []
    return shlex.join(words)

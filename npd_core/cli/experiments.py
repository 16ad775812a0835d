"""The commands that run many defenses: `npd sweep`, `npd table` and `npd suggest`. Like those of `cli`, they only ask
and show."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from npd_core import paths
from npd_core.cli.common import (
    PAPER_SETTINGS,
    Answer,
    Parser,
    progress_bar,
    read_positive,
    read_share_or_count,
    read_value,
    read_whole,
    read_words,
    text_table,
)
from npd_core.config.npd import VARIANTS, NPDConfig
from npd_core.defenses import DEFENSES
from npd_core.errors import StorageError, unknown_name
from npd_core.experiments.record import TABLES, Cell, TableRecord, find_table, table_path, write_table
from npd_core.fileio import write_text

T = TypeVar("T")
LISTS = tuple(name for name in PAPER_SETTINGS if name != "seed")
"""Settings of NPD that `npd sweep` takes several values of."""


def sweep(args: argparse.Namespace) -> Answer:
    """`npd sweep MODEL`"""
    from npd_core.experiments.grid import Grid, requests
    from npd_core.experiments.render import terminal_rows, to_csv
    from npd_core.experiments.sweep import sweep as run
    from npd_core.experiments.tables import measured
    from npd_core.experiments.task import Outcome, job_for

    _check_file("--csv", args.csv)
    settings = {name: getattr(args, name) for name in LISTS if getattr(args, name) is not None}
    grid = Grid(
        model=args.model,
        defenses=_defenses(args.defenses, DEFENSES) or ("npd",),
        layers=args.layers or (None,),
        clean=args.clean,
        settings=settings,
        seeds=args.seeds,
        device=args.device,
    )
    asked = [job_for(request, args.images) for request in requests(grid)]
    baselines = [name for name in grid.defenses if name not in VARIANTS]
    if baselines and (settings or args.layers):
        _line(f"{', '.join(baselines)}: with the settings of their presets; what was named is NPD's alone.")
    axes = ["defense", "layer", "clean", *settings, *(["seed"] if len(args.seeds) > 1 else [])]
    done: dict[str, Outcome] = {}
    with progress_bar("{task.completed:.0f}/{task.total:.0f} runs · {task.fields[note]}") as bar:
        task = bar.add_task(f"sweep of {grid.model}", total=len(asked), note="")
        for event in run(asked, workers=args.workers, scheduler=args.scheduler):
            request = event.job.request
            what = f"{request.defense} at {request.layer}" if request.layer else request.defense
            if not isinstance(event, Outcome):
                bar.update(task, note=f"{what}: {event.text}")
                continue
            done[event.job.name] = event
            bar.update(task, completed=len(done))
            end = event.failed or ("was there" if event.cached else "done")
            _line(f"{len(done)}/{len(asked)} {what}: {end}")
    cells: list[Cell] = []
    environment: dict[str, Any] = {}
    for job in asked:
        outcome = done[job.name]
        request = outcome.job.request
        values = request.config.to_dict() if request.defense in VARIANTS else {"seed": request.config.seed}
        row = {"defense": request.defense, "layer": (outcome.result or {}).get("layer", request.layer)}
        row |= {"clean": request.clean} | {name: values.get(name) for name in axes[3:]}
        cells.append(measured(Cell(row=row, model=request.model, defense=request.defense), outcome))
        environment = (outcome.result or {}).get("environment", environment)
    if args.csv is not None:
        write_text(args.csv, to_csv(cells, axes))
    head, rows = terminal_rows(cells, axes)
    value = {"model": grid.model, "cells": [_plain(cell) for cell in cells], "environment": environment}
    return Answer(
        value, "\n".join([grid.model, text_table(head, rows), *_failures(cells, axes)]), _code(cells)
    )


def table(args: argparse.Namespace) -> Answer:
    """`npd table N`"""
    from npd_core.experiments.plan import Options, plan_table
    from npd_core.experiments.render import shown, terminal_rows, to_csv, to_html
    from npd_core.experiments.tables import Progress, run_table

    for option in ("csv", "html"):
        _check_file(f"--{option}", getattr(args, option))
    name = f"table{args.number}" if args.number.isdecimal() else args.number
    if name not in TABLES:
        raise unknown_name("table", args.number, [part.removeprefix("table") for part in TABLES])
    options = Options(
        dataset=args.dataset,
        quick=args.quick,
        attacks=args.attacks,
        defenses=_defenses(args.defenses, DEFENSES),
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
                _line(f"{event.done}/{event.total} {event.text}")
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
        *_failures(record.cells, record.axes),
    ]
    text += [*notes, _record(record, args.out)]
    return Answer(record.to_dict(), "\n".join(text), _code(record.cells))


def suggest(args: argparse.Namespace) -> Answer:
    """`npd suggest MODEL`"""
    from npd_core.config.presets import preset
    from npd_core.data.clean import load_clean
    from npd_core.data.load import ImageSet
    from npd_core.device import environment, resolve_device
    from npd_core.experiments.suggest import Candidate, candidates, choose, choose_budget, reached
    from npd_core.polarizer.insertion import find_layer, insertion_layers
    from npd_core.zoo import Zoo

    device, backdoored = resolve_device(args.device), Zoo().load(args.model)
    card, net = backdoored.card, backdoored.net.to(device)
    points = [str(info.layer) for info in insertion_layers(net, card.image_size)]
    streams = [name for name in points if name.startswith("stream:")] or [
        name for name in points if ":" not in name
    ]
    layers = [str(find_layer(net, name, card.image_size).layer) for name in args.layers or streams]
    layers.sort(key=points.index)
    config = preset(card.dataset, size=card.image_size)
    config = replace(
        config,
        seed=args.seed,
        epochs=args.epochs or config.epochs,
        inner_steps=args.inner_steps or config.inner_steps,
    )
    weights = args.weights or (config.lambda2,)
    loaded = load_clean(card.dataset, args.clean, args.seed)
    clean = ImageSet(loaded.images, loaded.labels)
    shares: dict[float, float] = {}
    if args.rhos:
        shares = reached(net, clean, sorted(args.rhos), config, device)
        config = replace(config, rho=choose_budget(shares))
    found: list[Candidate] = []
    with progress_bar("{task.completed:.0f}/{task.total:.0f} settings · {task.fields[note]}") as bar:
        task = bar.add_task(f"suggest for {card.id}", total=len(layers) * len(weights), note="")
        for event in candidates(
            net, clean, layers, weights, config, card.image_size, device, args.folds, args.held
        ):
            if isinstance(event, Candidate):
                found.append(event)
                bar.update(task, completed=len(found), note=event.layer)
                _line(f"{len(found)}/{len(layers) * len(weights)} {event.layer}, lambda {event.weight:g}")
    best = choose(found, args.max_loss)
    head = ["layer", "lambda 2, 3", "clean acc. before %", "after %", "lost, points", "s"]
    rows = [
        [
            c.layer,
            f"{c.weight:g}",
            *(f"{100 * share:.1f}" for share in (c.before, c.after, c.loss)),
            f"{c.seconds:.0f}",
        ]
        for c in found
    ]
    allowed = f"{100 * args.max_loss:g} points of clean accuracy"
    if best is None:
        said = (
            f"No point keeps the loss within {allowed}: try smaller --lambdas, or allow more with --max-loss."
        )
    else:
        weight = f"--lambda2 {best.weight:g} --lambda3 {best.weight:g}"
        weight += f" --rho {config.rho:g}" if shares else ""
        weight += f" --inner-steps {config.inner_steps}" if args.inner_steps else ""
        said = (
            f"Foremost point that costs at most {allowed}: npd defend {card.id} --layer {best.layer} {weight}"
        )
    value = {
        "model": card.id, "max_loss": args.max_loss, "folds": args.folds, "held": args.held or args.folds,
        "reached": {f"{rho:g}": share for rho, share in shares.items()},
        "candidates": [{**c._asdict(), "loss": c.loss} for c in found],
        "chosen": best and best._asdict(), "config": config.to_dict(), "environment": environment(device),
    }  # fmt: skip
    title = f"{card.id}, images held out of {len(clean.labels)} clean ones"
    if shares:
        moved = ", ".join(f"{100 * share:.0f} % at rho {rho:g}" for rho, share in shares.items())
        title = (
            f"Clean images that reach their surrogate target: {moved}; rho {config.rho:g} is used.\n{title}"
        )
    return Answer(value, "\n".join([title, text_table(head, rows), said]))


def _record(record: TableRecord, out: Path | None) -> str:
    """Write the record, unless it would take the place of a fuller one; what was done, in one sentence."""
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
    """What was asked for, as somebody else would type it."""
    words = ["npd", "table", args.number.removeprefix("table")]
    words += ["--quick"] * args.quick
    for name in ("dataset", "attacks", "defenses", "width"):
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name}", ",".join(value) if isinstance(value, tuple) else str(value)]
    words += ["--arch", args.arch] if args.arch != "preact_resnet18" else []
    words += ["--seed", str(args.seed)] if args.seed else []
    return shlex.join(words)


def _defenses(names: tuple[str, ...] | None, choices: Iterable[str]) -> tuple[str, ...] | None:
    """Raises UnknownNameError."""
    for name in names or ():
        if name not in (*choices, "all"):
            raise unknown_name("defense", name, ("all", *choices))
    return tuple(choices) if names and "all" in names else names


def _failures(cells: Sequence[Cell], axes: Sequence[str]) -> list[str]:
    """Why cells failed, each reason once."""
    from npd_core.experiments.render import said

    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.failed:
            reasons.setdefault(cell.failed, []).append(" ".join(said(cell.row.get(axis)) for axis in axes))
    return [
        f"{where[0]}{f' and {len(where) - 1} more' * (len(where) > 1)}: {why}"
        for why, where in reasons.items()
    ]


def _plain(cell: Cell) -> dict[str, Any]:
    parts = {name: getattr(cell, name) for name in ("before", "after", "seconds")}
    plain = {name: None if part is None else part._asdict() for name, part in parts.items()}
    rest = {f.name: getattr(cell, f.name) for f in fields(cell) if f.name not in (*parts, "published")}
    return rest | plain


def _code(cells: Sequence[Cell]) -> int:
    return 1 if any(cell.failed for cell in cells) else 0


def _line(text: str) -> None:
    """One line on stderr where no bar is drawn."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def _check_file(option: str, path: Path | None) -> None:
    """Refuse now a file that could not be written after minutes of work."""
    if path is None:
        return
    if path.is_dir():
        raise StorageError(f"{option} {path} is a folder: name a file.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise StorageError(f"{option} {path}: cannot write in {path.parent}; name another file.")


# how they are asked


def add_commands(add: Callable[[str, Callable[[argparse.Namespace], Answer], str], Parser]) -> None:
    """Register them. Args: add: name, command and help -> its parser."""
    many = add(
        "sweep", sweep, "run a grid of defenses of one model; what has been run before is not run again"
    )
    many.add_argument("model", metavar="MODEL", help="id of a model, see `npd models`")
    names = ", ".join(DEFENSES)
    many.add_argument("--defenses", metavar="A,B", type=read_words, help=f"all, or some of {names} (npd)")
    many.add_argument(
        "--layers",
        metavar="L,L",
        type=read_words,
        help="insertion points; all: every one; main: after every main-path convolution (default: the usual point)",
    )
    many.add_argument(
        "--clean",
        metavar="C,C",
        type=_list(read_share_or_count),
        default=(0.05,),
        help="shares or numbers (0.05)",
    )
    many.add_argument(
        "--seeds", metavar="N,N", type=_list(read_whole), default=(0,), help="of images and training (0)"
    )
    kinds = {field.name: str(field.type) for field in fields(NPDConfig)}
    for name in LISTS:
        many.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="X,X",
            dest=name,
            type=_list(partial(read_value, kinds[name])),
            help="values; default: that of the preset",
        )
    many.add_argument(
        "--images", metavar="N", type=read_positive, help="measure on N test images (default: all)"
    )
    _add_running(many)

    one = add(
        "table", table, "run a table of the paper, or Figure 3, and print it beside the paper's numbers"
    )
    one.add_argument("number", metavar="N", help="1 to 7, or figure3")
    one.add_argument("--dataset", metavar="D", help="default: the paper's")
    one.add_argument(
        "--quick", action="store_true", help="a smaller form for two CPU cores; what it cuts is said"
    )
    one.add_argument("--attacks", metavar="A,B", type=read_words, help="default: those of the table")
    one.add_argument("--defenses", metavar="A,B", type=read_words, help="default: those of the table")
    one.add_argument("--arch", default="preact_resnet18", help="architecture (preact_resnet18)")
    one.add_argument(
        "--width",
        metavar="W",
        type=read_positive,
        help="default: the one at which most of the models are there",
    )
    one.add_argument("--seed", metavar="N", type=read_whole, default=0)
    one.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder of the record (default: that of the app, which keeps a fuller one)",
    )
    one.add_argument("--html", metavar="FILE", type=Path, help="write one self-contained page")
    _add_running(one)

    where = add(
        "suggest",
        suggest,
        "choose the insertion point by clean images alone: as far forward as accuracy allows",
    )
    where.add_argument("model", metavar="MODEL", help="id of a model, see `npd models`")
    where.add_argument(
        "--layers", metavar="L,L", type=read_words, help="points to try (those on the residual stream)"
    )
    where.add_argument(
        "--lambdas",
        metavar="X,X",
        dest="weights",
        type=_list(partial(read_value, "float")),
        help="values of lambda 2 = lambda 3 to try (that of the preset)",
    )
    where.add_argument(
        "--rhos",
        metavar="X,X",
        type=_list(partial(read_value, "float")),
        help="budgets of which the smallest is used that moves (about) most clean images to their surrogate target "
        "(that of the preset)",
    )
    where.add_argument(
        "--max-loss",
        metavar="X",
        type=partial(read_value, "float"),
        default=0.02,
        help="clean accuracy that may be lost, as a fraction (0.02)",
    )
    where.add_argument(
        "--folds", metavar="N", type=read_positive, default=5, help="parts, each held out once (5)"
    )
    where.add_argument(
        "--held", metavar="N", type=read_positive, help="hold out only N of them: sooner, less sure"
    )
    where.add_argument(
        "--clean", metavar="C", type=read_share_or_count, default=0.05, help="share or number (0.05)"
    )
    where.add_argument("--epochs", metavar="N", type=read_positive, help="default: that of the preset")
    where.add_argument("--inner-steps", metavar="N", type=read_positive, help="default: that of the preset")
    where.add_argument("--seed", metavar="N", type=read_whole, default=0)
    where.add_argument("--device", default="auto", help="auto, cpu or cuda")


def _add_running(parser: Parser) -> None:
    parser.add_argument(
        "--workers", metavar="N", type=read_positive, default=1, help="processes on this machine (1)"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://10.0.0.1:8786"
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write one line a run")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def _list(kind: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Reads values separated by commas."""
    return lambda text: tuple(kind(part.strip()) for part in text.split(","))

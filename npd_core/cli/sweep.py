"""`npd sweep`: run a grid of defenses of one model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from npd_core.cli.common import (
    PAPER_SETTINGS,
    Answer,
    Commands,
    add_model,
    check_file,
    progress_bar,
    progress_line,
    read_positive,
    read_share_or_count,
    read_value,
    read_whole,
    read_words,
    text_table,
)  # fmt: skip
from npd_core.cli.runs_common import add_running, check_defenses, exit_code, failures, list_of
from npd_core.config.npd import VARIANTS, NPDConfig
from npd_core.defenses import DEFENSES
from npd_core.experiments.record import Cell
from npd_core.fileio import write_text

if TYPE_CHECKING:
    from npd_core.experiments.task import Job, Outcome

LISTS = tuple(name for name in PAPER_SETTINGS if name != "seed")
"""Settings of NPD that take several values."""


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add(
        "sweep", run, "run a grid of defenses of one model; results that are on disk are not run again"
    )
    add_model(parser)
    names = ", ".join(DEFENSES)
    parser.add_argument("--defenses", metavar="A,B", type=read_words, help=f"all, or some of {names} (npd)")
    parser.add_argument(
        "--layers",
        metavar="L,L",
        type=read_words,
        help="insertion layers; all: every one; main: after each main-path convolution (that of the model)",
    )
    parser.add_argument(
        "--clean",
        metavar="C,C",
        type=list_of(read_share_or_count),
        default=(0.05,),
        help="shares or numbers (0.05)",
    )
    parser.add_argument(
        "--seeds", metavar="N,N", type=list_of(read_whole), default=(0,), help="of images and training (0)"
    )
    kinds = {field.name: str(field.type) for field in fields(NPDConfig)}
    for name in LISTS:
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="X,X",
            dest=name,
            type=list_of(partial(read_value, kinds[name])),
            help="values; default: that of the preset",
        )
    parser.add_argument(
        "--images", metavar="N", type=read_positive, help="measure on N test images (default: all)"
    )
    add_running(parser)


def run(args: argparse.Namespace) -> Answer:
    """Run what is not on disk yet and show all results."""
    from npd_core.experiments.grid import Grid, requests
    from npd_core.experiments.render import terminal_rows, to_csv
    from npd_core.experiments.task import job_for

    check_file("--csv", args.csv)
    settings = {name: getattr(args, name) for name in LISTS if getattr(args, name) is not None}
    grid = Grid(
        model=args.model,
        defenses=check_defenses(args.defenses) or ("npd",),
        layers=args.layers or (None,),
        clean=args.clean,
        settings=settings,
        seeds=args.seeds,
        device=args.device,
    )
    jobs = [job_for(request, args.images) for request in requests(grid)]
    baselines = [name for name in grid.defenses if name not in VARIANTS]
    if baselines and (settings or args.layers):
        progress_line(
            f"The settings given here apply to NPD only; defaults are used for {', '.join(baselines)}."
        )
    axes = ["defense", "layer", "clean", *settings, *(["seed"] if len(args.seeds) > 1 else [])]
    outcomes = _run(jobs, grid.model, args)
    cells = [_cell(outcomes[job.name], axes) for job in jobs]
    results = [outcomes[job.name].result for job in jobs]
    environment: Mapping[str, Any] = next(
        (result["environment"] for result in reversed(results) if result), {}
    )
    if args.csv is not None:
        write_text(args.csv, to_csv(cells, axes))
    head, rows = terminal_rows(cells, axes)
    value = {"model": grid.model, "cells": [_plain(cell) for cell in cells], "environment": environment}
    text = "\n".join([grid.model, text_table(head, rows), *failures(cells, axes)])
    return Answer(value, text, exit_code(cells))


def _run(jobs: list[Job], model: str, args: argparse.Namespace) -> dict[str, Outcome]:
    """Run the jobs under a progress bar. Return the outcomes by the name of the job."""
    from npd_core.experiments.sweep import JobProgress, sweep

    outcomes: dict[str, Outcome] = {}
    with progress_bar("{task.completed:.0f}/{task.total:.0f} runs · {task.fields[note]}") as bar:
        task = bar.add_task(f"sweep of {model}", total=len(jobs), note="")
        for event in sweep(jobs, workers=args.workers, scheduler=args.scheduler):
            request = event.job.request
            what = f"{request.defense} at {request.layer}" if request.layer else request.defense
            if isinstance(event, JobProgress):
                bar.update(task, note=f"{what}: {event.text}")
                continue
            outcomes[event.job.name] = event
            bar.update(task, completed=len(outcomes))
            end = event.failed or ("already measured" if event.cached else "done")
            progress_line(f"{len(outcomes)}/{len(jobs)} {what}: {end}")
    return outcomes


def _cell(outcome: Outcome, axes: list[str]) -> Cell:
    """Return an outcome as a cell. Args: axes: of its row; the first three are defense, layer and clean."""
    from npd_core.experiments.tables import measured

    request = outcome.job.request
    config = request.config.to_dict() if request.defense in VARIANTS else {"seed": request.config.seed}
    layer = (outcome.result or {}).get("layer", request.layer)
    row = {"defense": request.defense, "layer": layer, "clean": request.clean}
    row |= {name: config.get(name) for name in axes[3:]}
    return measured(Cell(row=row, model=request.model, defense=request.defense), outcome)


def _plain(cell: Cell) -> dict[str, Any]:
    parts = {name: getattr(cell, name) for name in ("before", "after", "seconds")}
    plain = {name: None if part is None else part._asdict() for name, part in parts.items()}
    rest = {f.name: getattr(cell, f.name) for f in fields(cell) if f.name not in (*parts, "published")}
    return rest | plain

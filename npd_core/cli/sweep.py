"""`npd sweep`: run a grid of defenses of one model."""

from __future__ import annotations

import argparse
from dataclasses import fields
from functools import partial
from typing import Any

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
    from npd_core.experiments.sweep import sweep as run_jobs
    from npd_core.experiments.tables import measured
    from npd_core.experiments.task import Outcome, job_for

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
    asked = [job_for(request, args.images) for request in requests(grid)]
    baselines = [name for name in grid.defenses if name not in VARIANTS]
    if baselines and (settings or args.layers):
        progress_line(
            f"{', '.join(baselines)}: with their default settings; the settings named here are those of NPD."
        )
    axes = ["defense", "layer", "clean", *settings, *(["seed"] if len(args.seeds) > 1 else [])]
    done: dict[str, Outcome] = {}
    with progress_bar("{task.completed:.0f}/{task.total:.0f} runs · {task.fields[note]}") as bar:
        task = bar.add_task(f"sweep of {grid.model}", total=len(asked), note="")
        for event in run_jobs(asked, workers=args.workers, scheduler=args.scheduler):
            request = event.job.request
            what = f"{request.defense} at {request.layer}" if request.layer else request.defense
            if not isinstance(event, Outcome):
                bar.update(task, note=f"{what}: {event.text}")
                continue
            done[event.job.name] = event
            bar.update(task, completed=len(done))
            end = event.failed or ("was there" if event.cached else "done")
            progress_line(f"{len(done)}/{len(asked)} {what}: {end}")
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
        value, "\n".join([grid.model, text_table(head, rows), *failures(cells, axes)]), exit_code(cells)
    )


def _plain(cell: Cell) -> dict[str, Any]:
    parts = {name: getattr(cell, name) for name in ("before", "after", "seconds")}
    plain = {name: None if part is None else part._asdict() for name, part in parts.items()}
    rest = {f.name: getattr(cell, f.name) for f in fields(cell) if f.name not in (*parts, "published")}
    return rest | plain

"""A planned table, run: its cells are jobs of a sweep, and what comes out is put beside the paper's
numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from npd_core.config.npd import NPDConfig
from npd_core.config.presets import defense_config
from npd_core.config.request import DefenseRequest
from npd_core.errors import ConfigError
from npd_core.experiments.plan import QUICK_IMAGES, TABLES, Plan, Planned
from npd_core.experiments.published import published
from npd_core.experiments.record import Cell, Scores, Seconds, TableRecord
from npd_core.experiments.sweep import Note, sweep
from npd_core.experiments.task import Job, Outcome, job_for, now, ratio_zoo, run_training
from npd_core.experiments.workers import run_local
from npd_core.zoo import Zoo


class Progress(NamedTuple):
    """How far a table is."""

    done: int
    total: int
    """Cells."""
    text: str
    """What has just ended, or is being done."""
    ended: bool
    """Whether this says that something has ended."""


def run_table(
    plan: Plan, *, command: str, workers: int = 1, scheduler: str | None = None, folder: Path | None = None
) -> Iterator[Progress | TableRecord]:
    """Train what models are missing at other poison ratios, run every cell that has not been run before, and
    put the table together. The TableRecord comes last; until then every outcome is kept on disk, see `sweep`.

    Args:
        command: what is run, for the record.
        workers, scheduler, folder: as for `sweep`. Models are trained on this machine.
    Raises:
        ConfigError: Table 7 measures time and bears no company; and as `sweep`.
    """
    alone = plan.table == "table7"
    if alone and (workers > 1 or scheduler is not None):
        raise ConfigError(
            "Table 7 measures time, so its runs have the machine to themselves: leave --workers out."
        )
    total = len(plan.cells)
    untrained: dict[tuple[str, Zoo], str] = {}
    for number, message in run_local(run_training, plan.trainings, workers=workers):
        task = plan.trainings[number]
        what = f"training {task.model} at poison ratio {task.poison_ratio:g}"
        if isinstance(message, str):
            yield Progress(0, total, f"{what}: {message}", ended=False)
            continue
        if message["failed"]:
            untrained[task.model, ratio_zoo(task.poison_ratio)] = message["failed"]
        yield Progress(0, total, f"{what}: {message['failed'] or 'done'}", ended=True)

    cells: dict[int, Cell] = {}
    waiting: dict[str, list[int]] = {}
    jobs: list[Job] = []
    latest: tuple[str, Mapping[str, Any]] = ("", {})
    images = QUICK_IMAGES if plan.options.quick else None
    for number, planned in enumerate(plan.cells):
        failed = planned.failed or untrained.get((planned.model, planned.zoo))
        if failed is not None:
            cells[number] = _cell(plan, planned, None, failed)
            continue
        try:
            job = job_for(_request(plan, planned), images, planned.zoo)
        except ConfigError as error:
            cells[number] = _cell(plan, planned, None, str(error))
            continue
        jobs.append(job)
        waiting.setdefault(job.name, []).append(number)
    for said in sweep(jobs, workers=workers, scheduler=scheduler, folder=folder, alone=alone):
        numbers = waiting[said.job.name]
        planned = plan.cells[numbers[0]]
        what = f"{planned.model}: {', '.join(str(value) for value in planned.wanted.row.values())}"
        if isinstance(said, Note):
            yield Progress(len(cells), total, f"{what}: {said.text}", ended=False)
            continue
        if said.result is not None and said.date >= latest[0]:
            latest = (said.date, said.result["environment"])
        for number in numbers:
            cells[number] = _cell(plan, plan.cells[number], said, said.failed)
        yield Progress(
            len(cells),
            total,
            f"{what}: {said.failed or ('was there' if said.cached else 'done')}",
            ended=True,
        )
    ordered = [cells[number] for number in range(total)]
    yield TableRecord(
        table=plan.table,
        title=TABLES[plan.table].title,
        dataset=plan.dataset,
        quick=plan.options.quick,
        cut=plan.cut,
        command=command,
        date=now(),
        environment=latest[1],
        cells=tuple(ordered),
    )


def _request(plan: Plan, planned: Planned) -> DefenseRequest:
    """Raises ConfigError, UnknownNameError."""
    wanted = planned.wanted
    card = planned.zoo.card(planned.model)
    settings = dict(plan.changes.get(wanted.defense, {})) | {"seed": plan.options.seed}
    config = defense_config(wanted.defense, card, **settings)
    if wanted.terms is not None:
        assert isinstance(config, NPDConfig)
        config = only(config, wanted.terms)
    return DefenseRequest(
        model=planned.model,
        defense=wanted.defense,
        layer=wanted.layer,
        clean=wanted.clean,
        config=config,
        device=plan.options.device,
    )


def only(config: NPDConfig, terms: str) -> NPDConfig:
    """The config with the weight of every term of the loss taken away but of those in `terms`, such as
    `bn+bce2`."""
    kept = terms.split("+")
    if all(term in kept for term in config.weights):
        return config
    bn, asr, bce1, bce2 = (value if term in kept else 0.0 for term, value in config.weights.items())
    return replace(config, lambda1=bn, lambda2=asr, lambda3=bce1, lambda4=bce2)


def _cell(plan: Plan, planned: Planned, outcome: Outcome | None, failed: str | None) -> Cell:
    wanted = planned.wanted
    cell = Cell(
        row=dict(wanted.row),
        model=planned.model,
        defense=wanted.defense,
        layer=wanted.layer,
        seed=plan.options.seed,
        published=published(plan.table, plan.dataset, wanted.attack, wanted.defense, wanted.row),
        failed=failed,
    )
    return cell if outcome is None else measured(cell, outcome)


def measured(cell: Cell, outcome: Outcome) -> Cell:
    """The cell with what a job has brought."""
    request = outcome.job.request
    cell = replace(
        cell,
        date=outcome.date,
        config=request.to_dict(),
        seed=request.config.seed,
        failed=outcome.failed or cell.failed,
    )
    result = outcome.result
    if result is None:
        return cell
    return replace(
        cell,
        layer=result["layer"],
        before=Scores(**result["before"]),
        after=Scores(**result["after"]),
        der=result["der"],
        seconds=Seconds(**result["seconds"]),
        device=result["environment"]["device"],
    )

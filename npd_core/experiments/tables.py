"""Run a planned table: its cells are jobs of a sweep, and their results stand beside the paper's numbers."""

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
from npd_core.experiments.sweep import JobProgress, sweep
from npd_core.experiments.task import Job, Outcome, Training, job_for, now, ratio_zoo, run_training
from npd_core.experiments.workers import run_local
from npd_core.zoo import Zoo


class Progress(NamedTuple):
    """The progress of a table."""

    done: int
    """Cells that are finished, of `total`."""
    total: int
    text: str
    """What is running, or has just ended."""
    ended: bool
    """Whether `text` is the end of a job or a training."""


def run_table(
    plan: Plan, *, command: str, workers: int = 1, scheduler: str | None = None, folder: Path | None = None
) -> Iterator[Progress | TableRecord]:
    """Train the missing models of other poison ratios, run every cell without a stored outcome, and yield the
    record.

    The TableRecord comes last. An interrupted call loses nothing: every outcome is on disk, see `sweep`.

    Args:
        command: the command that makes the record, for the record.
        workers, scheduler, folder: as for `sweep`. Models are trained on this machine.
    Raises:
        ConfigError: more than one worker for Table 7, which measures time; and as `sweep`.
    """
    alone = plan.table == "table7"
    if alone and (workers > 1 or scheduler is not None):
        raise ConfigError(
            "Table 7 measures time, so its runs need the machine to themselves: leave --workers out."
        )
    total = len(plan.cells)
    untrained: dict[tuple[str, Zoo], str] = {}
    for training, text, failed in _train(plan, workers):
        if failed:
            untrained[training.model, ratio_zoo(training.poison_ratio)] = failed
        what = f"training {training.model} at poison ratio {training.poison_ratio:g}"
        yield Progress(0, total, f"{what}: {failed or text or 'done'}", ended=text is None)
    jobs, cells = _jobs(plan, untrained)
    waiting: dict[str, list[int]] = {}
    for number, job in jobs.items():
        waiting.setdefault(job.name, []).append(number)
    environment: tuple[str, Mapping[str, Any]] = ("", {})
    for event in sweep(jobs.values(), workers=workers, scheduler=scheduler, folder=folder, alone=alone):
        numbers = waiting[event.job.name]
        first = plan.cells[numbers[0]]
        what = f"{first.model}: {', '.join(str(value) for value in first.request.row.values())}"
        if isinstance(event, JobProgress):
            yield Progress(len(cells), total, f"{what}: {event.text}", ended=False)
            continue
        if event.result is not None and event.date >= environment[0]:
            environment = (event.date, event.result["environment"])
        cells |= {
            number: measured(_cell(plan, plan.cells[number], event.failed), event) for number in numbers
        }
        end = event.failed or ("already measured" if event.cached else "done")
        yield Progress(len(cells), total, f"{what}: {end}", ended=True)
    yield TableRecord(
        table=plan.table,
        title=TABLES[plan.table].title,
        dataset=plan.dataset,
        quick=plan.options.quick,
        cut=plan.cut,
        command=command,
        date=now(),
        environment=environment[1],
        cells=tuple(cells[number] for number in range(total)),
    )


def _train(plan: Plan, workers: int) -> Iterator[tuple[Training, str | None, str]]:
    """Run the trainings of a plan. Yields a training, its progress (None: it has ended), and its error, if
    any."""
    for number, message in run_local(run_training, plan.trainings, workers=workers):
        if isinstance(message, str):
            yield plan.trainings[number], message, ""
        else:
            yield plan.trainings[number], None, message["failed"] or ""


def _jobs(plan: Plan, untrained: Mapping[tuple[str, Zoo], str]) -> tuple[dict[int, Job], dict[int, Cell]]:
    """Return the job of each cell, by its number, and the cells that cannot be run."""
    jobs: dict[int, Job] = {}
    failed: dict[int, Cell] = {}
    images = QUICK_IMAGES if plan.options.quick else None
    for number, planned in enumerate(plan.cells):
        reason = planned.failed or untrained.get((planned.model, planned.zoo))
        if reason is None:
            try:
                jobs[number] = job_for(_request(plan, planned), images, planned.zoo)
            except ConfigError as error:
                reason = str(error)
        if reason is not None:
            failed[number] = _cell(plan, planned, reason)
    return jobs, failed


def _request(plan: Plan, planned: Planned) -> DefenseRequest:
    """Return the request of a cell. Raises ConfigError, UnknownNameError."""
    cell = planned.request
    settings = dict(plan.changes.get(cell.defense, {})) | {"seed": plan.options.seed}
    config = defense_config(cell.defense, planned.zoo.card(planned.model), **settings)
    if cell.terms is not None:
        assert isinstance(config, NPDConfig)
        config = only(config, cell.terms)
    return DefenseRequest(
        model=planned.model,
        defense=cell.defense,
        layer=cell.layer,
        clean=cell.clean,
        config=config,
        device=plan.options.device,
    )


def only(config: NPDConfig, terms: str) -> NPDConfig:
    """Return the config with only the loss terms in `terms`, such as `bn+bce2`; the others get weight 0."""
    kept = terms.split("+")
    if all(term in kept for term in config.weights):
        return config
    bn, asr, bce1, bce2 = (value if term in kept else 0.0 for term, value in config.weights.items())
    return replace(config, lambda1=bn, lambda2=asr, lambda3=bce1, lambda4=bce2)


def _cell(plan: Plan, planned: Planned, failed: str | None) -> Cell:
    """Return a cell without numbers."""
    cell = planned.request
    return Cell(
        row=dict(cell.row),
        model=planned.model,
        defense=cell.defense,
        layer=cell.layer,
        seed=plan.options.seed,
        published=published(plan.table, plan.dataset, cell.attack, cell.defense, cell.row),
        failed=failed,
    )


def measured(cell: Cell, outcome: Outcome) -> Cell:
    """Return the cell with the numbers of a job."""
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

"""Many jobs, each done once: what is on disk is taken from there, the others run, and each is kept as it
ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from npd_core import paths
from npd_core.data.load import availability
from npd_core.errors import ConfigError, DataMissingError
from npd_core.experiments.cluster import run_on_cluster
from npd_core.experiments.task import Job, Outcome, keep, kept, now, run_job
from npd_core.experiments.workers import run_local


@dataclass(frozen=True)
class Note:
    """How far a job is that is being done in this moment."""

    job: Job
    text: str


def _check_here(jobs: Iterable[Job]) -> None:
    """Raises ConfigError or DataMissingError where this machine lacks the device of a job, or its images."""
    from npd_core.device import resolve_device

    for device, zoo, model in dict.fromkeys((job.request.device, job.zoo, job.request.model) for job in jobs):
        resolve_device(device)
        state = availability(zoo.card(model).dataset)
        if not state.available:
            raise DataMissingError(state.reason)


def sweep(
    jobs: Iterable[Job],
    *,
    workers: int = 1,
    scheduler: str | None = None,
    folder: Path | None = None,
    alone: bool = False,
) -> Iterator[Note | Outcome]:
    """Do every job that has no outcome yet; one Outcome a job comes out, those that were there first.

    It can be left at any moment: what has come out is on disk, and the next call goes on from there. A job
    that failed without a result is tried again by the next call.

    Args:
        jobs: equal ones are done once.
        workers: processes on this machine.
        scheduler: address of a Dask scheduler, which then does them; None: this machine.
        folder: where outcomes are kept; None: `paths.sweeps()`.
        alone: take no outcome of a job that shared the machine with others, or may have, as its seconds mean
            nothing.
    Raises:
        ConfigError, DataMissingError, StorageError: what no job can be done with; what is wrong with a single
            one is said in its outcome.
    """
    if workers < 1:
        raise ConfigError(f"`workers` must be at least 1, got {workers}.")
    folder = folder or paths.sweeps()
    left: list[Job] = []
    for job in {job.name: job for job in jobs}.values():
        found = kept(job, folder)
        if found is None or (alone and found.workers != 1):
            left.append(job)
        else:
            yield found
    if not left:
        return
    if scheduler is None:
        _check_here(left)
        workers = min(workers, len(left))
        messages = run_local(run_job, left, workers=workers)
    else:
        workers = 0
        messages = run_on_cluster(run_job, left, scheduler)
    for number, message in messages:
        if isinstance(message, str):
            yield Note(left[number], message)
            continue
        outcome = Outcome(
            job=left[number],
            result=message.get("result"),
            failed=message["failed"],
            date=now(),
            workers=workers,
        )
        keep(outcome, folder)
        yield outcome

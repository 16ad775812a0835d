"""Run many jobs, each once: stored outcomes are read from disk, the others run and are stored as they end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from npd_core import paths
from npd_core.data.load import availability
from npd_core.errors import ConfigError, DataMissingError
from npd_core.experiments.cluster import run_on_cluster
from npd_core.experiments.task import Job, Outcome, now, run_job, store, stored
from npd_core.experiments.workers import run_local


@dataclass(frozen=True)
class JobProgress:
    """The progress of a running job."""

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
) -> Iterator[JobProgress | Outcome]:
    """Run every job that has no stored outcome. Yields one Outcome per job, the stored ones first.

    It can be interrupted at any time: every outcome is already on disk, and the next call continues from
    there. The next call also tries jobs again that failed without a result.

    Args:
        jobs: equal ones are run once.
        workers: processes on this machine.
        scheduler: address of a Dask scheduler that runs them; None: this machine.
        folder: where outcomes are stored; None: `paths.sweeps()`.
        alone: ignore stored outcomes of jobs that shared the machine, or may have: their times mean nothing.
    Raises:
        ConfigError, DataMissingError, StorageError: no job can run. An error of a single job is in its
            outcome.
    """
    if workers < 1:
        raise ConfigError(f"`workers` must be at least 1, got {workers}.")
    folder = folder or paths.sweeps()
    remaining: list[Job] = []
    for job in {job.name: job for job in jobs}.values():
        found = stored(job, folder)
        if found is None or (alone and found.workers != 1):
            remaining.append(job)
        else:
            yield found
    if not remaining:
        return
    if scheduler is None:
        _check_here(remaining)
        workers = min(workers, len(remaining))
        messages = run_local(run_job, remaining, workers=workers)
    else:
        workers = 0
        messages = run_on_cluster(run_job, remaining, scheduler)
    for number, message in messages:
        if isinstance(message, str):
            yield JobProgress(remaining[number], message)
            continue
        outcome = Outcome(
            job=remaining[number],
            result=message.get("result"),
            failed=message["failed"],
            date=now(),
            workers=workers,
        )
        store(outcome, folder)
        yield outcome

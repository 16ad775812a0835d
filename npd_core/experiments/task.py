"""One run of a sweep: the job, how a worker process runs it, and how its result is stored.

    <paths.sweeps()>/<key of the request>-<sha256 of the model, 8 digits>[-<test images>].json

Imports torch only when a job runs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npd_core import paths
from npd_core.config.request import DefenseRequest
from npd_core.data.spec import get_dataset
from npd_core.errors import CheckpointError, NPDError
from npd_core.events import EpochEnd, Failed, Finished, Started
from npd_core.fileio import write_json
from npd_core.zoo import Zoo
from npd_core.zoo.card import WEIGHTS

if TYPE_CHECKING:
    from npd_core.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request, the hash of its model, and the number of test images."""

    request: DefenseRequest
    sha256: str
    """Of the model's weights: retraining a model makes it another job."""
    images: int | None = None
    """Test images; None: all."""
    zoo: Zoo = Zoo()
    """Holds the model. Without a root: the default zoo of the process that runs the job."""

    @property
    def name(self) -> str:
        """The name of its file; equal jobs have equal names."""
        return f"{self.request.key}-{self.sha256[:8]}" + (f"-{self.images}" if self.images else "")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values. The zoo is left out: the hash identifies the model."""
        return {"request": self.request.to_dict(), "sha256": self.sha256, "images": self.images}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a job."""

    job: Job
    result: Mapping[str, Any] | None
    """The result of `run_defense` without the indices of the clean images; None when there is none."""
    failed: str | None
    """Why there is no result, or why its training counts as failed."""
    date: str
    """When it ended, ISO 8601."""
    workers: int = 1
    """How many jobs shared the machine; 0: unknown, as it ran on a cluster."""
    cached: bool = False
    """Whether it was read from disk."""


def job_for(request: DefenseRequest, images: int | None = None, zoo: Zoo = Zoo()) -> Job:
    """Return the job of a request, for the model as it is now. Raises UnknownNameError, CheckpointError."""
    card = zoo.card(request.model)
    if images is not None and images >= get_dataset(card.dataset).test_images:
        images = None
    return Job(request=request, sha256=card.files.get(WEIGHTS, ""), images=images, zoo=zoo)


def stored(job: Job, folder: Path) -> Outcome | None:
    """Return the stored outcome of a job; None when there is none, or the file is unreadable or of another
    job."""
    try:
        values = json.loads((folder / f"{job.name}.json").read_text(encoding="utf-8"))
        if values["job"] != json.loads(json.dumps(job.to_dict())):
            return None
        layer = values["result"].get("layer")
        if layer is not None and job.request.layer is None and layer != job.zoo.card(job.request.model).layer:
            return None  # measured when the default layer was another one
        parts = {name: values[name] for name in ("result", "failed", "date", "workers")}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # run again, which replaces the file
    return Outcome(job=job, cached=True, **parts)


def store(outcome: Outcome, folder: Path) -> None:
    """Store an outcome that has a result, for `stored` to find. Raises StorageError."""
    if outcome.result is not None:
        parts = {name: value for name, value in asdict(outcome).items() if name not in ("job", "cached")}
        write_json(folder / f"{outcome.job.name}.json", {"job": outcome.job.to_dict(), **parts})


def now() -> str:
    """Return the current second, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


_one_at_a_time = threading.Lock()
"""Threads of one process, such as a Dask worker's, take turns: one training uses all of torch's threads."""


def run_job(job: Job) -> Iterator[str | dict[str, Any]]:
    """Run a job. Yields a progress text per epoch, and at the end {"result", "failed"}, with any error in
    `failed`."""
    with _one_at_a_time:
        try:
            yield from _run(job)
        except Exception as error:
            text = " ".join(str(error).split())
            kind = "" if isinstance(error, NPDError) else f"{type(error).__name__}: "
            yield {"result": None, "failed": f"{kind}{text}"}


def _run(job: Job) -> Iterator[str | dict[str, Any]]:
    from npd_core.defend import run_defense

    model = job.request.model
    if job.zoo.card(model).files.get(WEIGHTS, "") != job.sha256:
        raise CheckpointError(
            f"{model} differs from the model where the sweep was started: copy the zoo again."
        )
    yield "measuring the model"
    _warm_up()
    before = _before(job.zoo, model, job.sha256, job.images, job.request.device)
    epochs = 0
    for event in run_defense(job.request, before=before, images=job.images, zoo=job.zoo):
        if isinstance(event, Started):
            epochs = event.epochs
        if isinstance(event, EpochEnd):
            yield "warm-up" if event.epoch < 0 else f"epoch {event.epoch + 1} of {epochs}"
        if isinstance(event, Finished | Failed):
            left_out = ("clean_indices", "details")
            result = {name: value for name, value in event.result.items() if name not in left_out}
            yield {"result": result, "failed": event.reason if isinstance(event, Failed) else None}


@lru_cache(maxsize=1)
def _warm_up() -> None:
    """Take one training step: the first one in a process takes seconds, which would count for the first
    job."""
    import torch

    weight = torch.ones(1, requires_grad=True)
    for kind in (torch.optim.SGD, torch.optim.Adam):
        optimizer = kind([weight], lr=0.1)
        (weight * 2).sum().backward()
        optimizer.step()


@lru_cache(maxsize=8)
def _before(zoo: Zoo, model: str, sha256: str, images: int | None, device: str) -> Metrics:
    """Measure the undefended model, once for all jobs of a process; `sha256` is part of the cache key."""
    from npd_core.device import resolve_device
    from npd_core.evaluation import evaluate, test_sets

    backdoored = zoo.load(model)
    return evaluate(
        backdoored.net, test_sets(backdoored.card.dataset, backdoored.attack, images), resolve_device(device)
    )


def ratio_zoo(poison_ratio: float) -> Zoo:
    """Return the zoo of models trained here at another poison ratio; their ids are those of the main zoo."""
    return Zoo(paths.sweeps() / "models" / f"ratio-{poison_ratio:g}")


def shipped_ratio_zoo(poison_ratio: float) -> Zoo:
    """Return the zoo of shipped models of another poison ratio."""
    return Zoo(paths.pretrained() / f"ratio-{poison_ratio:g}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model to train at another poison ratio, into `ratio_zoo`."""

    model: str
    poison_ratio: float
    device: str = "auto"


def run_training(task: Training) -> Iterator[str | dict[str, Any]]:
    """Train a model, resuming an interrupted training. Yields a progress text per epoch, and at the end
    {"failed"}."""
    with _one_at_a_time:
        try:
            from npd_core.zoo.train import train_model

            epochs = 0
            zoo, ratio = ratio_zoo(task.poison_ratio), task.poison_ratio
            for event in train_model(task.model, poison_ratio=ratio, device=task.device, zoo=zoo):
                epochs = event.epochs if isinstance(event, Started) else epochs
                if isinstance(event, EpochEnd):
                    yield f"epoch {event.epoch + 1} of {epochs}"
            yield {"failed": None}
        except Exception as error:
            reason = " ".join(str(error).split())
            yield {
                "failed": f"{task.model} could not be trained at poison ratio {task.poison_ratio:g}: {reason}"
            }

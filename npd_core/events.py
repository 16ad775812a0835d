"""What a training says while it runs: a stream of small frozen records. Read by pages, the command line, the store
and tests.

The order is `Started (StepEnd* EpochEnd Measured?)* (Finished | Failed)`. A trainer yields all of them but `Measured`,
which the caller adds: ACC, ASR and RA on test images are for the viewer's eyes and never reach the trainer.

A baseline defense yields the same records. Its warm-up is what it trains before it repairs the network, such as NAD's
teacher. One that does not train at all has no epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, SupportsFloat


@dataclass(frozen=True, slots=True)
class Started:
    """Training begins. Counts are exact, so a reader can draw a progress bar at once."""

    epochs: int
    """Epochs of the bi-level problem, or of a baseline's repair; warm-up not counted."""
    warmup_epochs: int
    steps_per_epoch: int
    clean_images: int
    device: str
    layer: str = ""
    """Insertion point in its canonical spelling; empty for a defense without one."""


@dataclass(frozen=True, slots=True)
class StepEnd:
    """One update of theta, or of what a baseline trains. Loss values may be tensors on the device: reading one is the
    reader's host sync."""

    epoch: int
    """0, 1, ... ; warm-up epochs are negative, ending with -1."""
    step: int
    losses: Mapping[str, SupportsFloat]
    """Batch means: `bn` (Eq. 5), `asr` (Eq. 2), `bce1`, `bce2` (Eq. 3), `total` (weighted sum); only `bn`, `total`
    in warm-up. A baseline has `total`, `bn` for the cross entropy on clean images, and terms of its own."""


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """One pass over the clean images. Numbers are host floats: the means of the epoch's steps."""

    epoch: int
    losses: Mapping[str, float]
    seconds: float
    """Training time since `Started`, measuring not counted."""
    kept: bool = True
    """Whether the state of this epoch is the one that would be kept if training ended now."""
    objective: float | None = None
    """Training objective on clean images held out of D_bn, where the config asks for selection; otherwise None."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the viewer's curves show: measured by the caller on test images, never used by the training."""

    epoch: int
    acc: float
    asr: float | None
    """None, as is `ra`, where there are no images with a trigger."""
    ra: float | None
    images: int
    """How many test images each of the three was measured on, at most."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Training ended well, or was stopped with a usable state. `result` is filled by the caller that evaluates."""

    epoch: int
    """Epoch of the kept state."""
    seconds: float
    """Training only."""
    stopped: bool = False
    """True when somebody asked for an early end."""
    result: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    """What a baseline found out on its way, as JSON values: pruned channels, norms of masks, the threshold."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Training ended badly. The polarizer, or a baseline's network, holds its last good state."""

    reason: str
    epoch: int
    """Epoch of the kept state; the identity start counts as the last warm-up epoch."""
    seconds: float
    result: Mapping[str, Any] = field(default_factory=dict)


Event = Started | StepEnd | EpochEnd | Measured | Finished | Failed


def to_record(event: Event) -> dict[str, Any]:
    """Return the event as plain JSON values, under `type` its class name; without `result`, which result.json holds.

    Reads tensors, so it may wait for the device.
    """
    record: dict[str, Any] = {"type": type(event).__name__}
    record |= {f.name: getattr(event, f.name) for f in fields(event) if f.name != "result"}
    if isinstance(event, StepEnd | EpochEnd):
        record["losses"] = {name: float(value) for name, value in event.losses.items()}
    return record

"""The events of a training: small frozen records that every defense yields and the run store keeps.

The order is `Started (StepEnd* EpochEnd Measured?)* (Finished | Failed)`. A trainer yields all of them but
`Measured`, which its caller adds: metrics on test images serve the curves only and never reach the trainer.

A baseline yields the same events. Its warm-up is what it trains before it repairs the network, such as the
teacher of NAD. One that does not train has no epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, SupportsFloat


@dataclass(frozen=True, slots=True)
class Started:
    """Training begins. The counts are exact."""

    epochs: int
    """Epochs of the bi-level problem, or of a baseline's repair; warm-up not counted."""
    warmup_epochs: int
    steps_per_epoch: int
    clean_images: int
    device: str
    layer: str = ""
    """Insertion layer in its canonical spelling; empty for a defense without one."""


@dataclass(frozen=True, slots=True)
class StepEnd:
    """One update of theta, or of what a baseline trains. Losses may be tensors; reading one waits for the
    device."""

    epoch: int
    """0, 1, ... ; warm-up epochs are negative, ending with -1."""
    step: int
    losses: Mapping[str, SupportsFloat]
    """Batch means: `bn` (Eq. 5), `asr` (Eq. 2), `bce1`, `bce2` (Eq. 3), `total` (weighted sum); only `bn` and
    `total` in warm-up. A baseline has `total`, `bn` (cross entropy on clean images) and other terms."""


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """An epoch has ended. Losses are host floats, means over its steps."""

    epoch: int
    losses: Mapping[str, float]
    seconds: float
    """Training time since `Started`, without measuring."""
    kept: bool = True
    """Whether the state of this epoch would be kept if training ended now."""
    objective: float | None = None
    """Training objective on clean images held out of D_bn, if the config requests it; otherwise None."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics after an epoch, measured by the caller on eval images and never used by the training."""

    epoch: int
    acc: float
    asr: float | None
    """None, as is `ra`, without triggered images."""
    ra: float | None
    images: int
    """Number of eval images; ASR and RA may use fewer."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Training ended well, or was stopped with a usable state. The caller that evaluates adds `result`."""

    epoch: int
    """Epoch of the kept state."""
    seconds: float
    """Training only."""
    stopped: bool = False
    """Whether it was stopped early on request."""
    result: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    """Findings of a baseline as JSON values: pruned channels, norms of masks, the threshold."""


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
    """Return the event as JSON values with its class name as `type`; without `result`, see result.json.

    Reads tensors, so it may wait for the device.
    """
    record: dict[str, Any] = {"type": type(event).__name__}
    record |= {f.name: getattr(event, f.name) for f in fields(event) if f.name != "result"}
    if isinstance(event, StepEnd | EpochEnd):
        record["losses"] = {name: float(value) for name, value in event.losses.items()}
    return record

"""Progress of a training and its time left, from its events: for run store, command line and pages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from npd_core.events import Event

FIELDS = ("epochs", "warmup_epochs", "steps_per_epoch", "epoch", "step", "seconds")
"""Fields of events that report progress."""
STORED = FIELDS[:-1]
"""Those that a run keeps with its state."""


class Progress:
    """Counts what events report. All fields are 0, or None for `epoch` and `step`, before the first event."""

    def __init__(self) -> None:
        self.epochs = self.warmup_epochs = self.steps_per_epoch = 0
        self.epoch: int | None = None
        """Epoch of the last event; warm-up epochs are negative."""
        self.step: int | None = None
        """Last step of that epoch, from 0."""
        self.done_epochs = 0
        """Completed epochs, warm-up not counted."""
        self.seconds = 0.0
        """Training time so far."""
        self.finished = False
        self.last_time: float | None = None
        """Unix time of the last event."""
        self._first: tuple[float, float] | None = None  # time, epochs done
        self._last: tuple[float, float] | None = None

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Progress:
        """Return the progress after these event records."""
        progress = cls()
        for record in records:
            progress.add(record)
        return progress

    def add_event(self, event: Event) -> None:
        """Add an event that happens now, without reading its tensors."""
        fields = {name: getattr(event, name) for name in FIELDS if hasattr(event, name)}
        self.add({"type": type(event).__name__, **fields, "time": time.time()})

    def add(self, record: Mapping[str, Any]) -> None:
        """Add an event record; a damaged one is ignored."""
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            self._add(record)

    def _add(self, record: Mapping[str, Any]) -> None:
        kind, at = record["type"], record.get("time")
        if isinstance(at, int | float):
            self.last_time = at = float(at)
        if kind == "Started":
            self.epochs, self.warmup_epochs, self.steps_per_epoch = (int(record[name]) for name in FIELDS[:3])
        elif kind in ("StepEnd", "EpochEnd"):
            self.epoch, steps = int(record["epoch"]), self.steps_per_epoch or 1
            self.step = int(record["step"]) if kind == "StepEnd" else steps - 1
            if kind == "EpochEnd":
                self.done_epochs = max(self.done_epochs, self.epoch + 1)
            done = self.epoch + (self.step + 1) / steps
            if at is not None and done >= 0:
                self._last = (at, done)
                self._first = self._first or self._last
        elif kind == "Measured" and self._last is not None and at is not None:
            self._last = (at, self._last[1])
        if kind in ("EpochEnd", "Finished", "Failed"):
            self.seconds = float(record["seconds"])
        self.finished = self.finished or kind == "Finished"

    def stored(self) -> dict[str, Any]:
        """Return what a run keeps with its state."""
        return {name: getattr(self, name) for name in STORED}

    @property
    def warmup(self) -> bool:
        """Whether the training is still in its warm-up."""
        return self.warmup_epochs > 0 and (self.epoch is None or self.epoch < 0)

    @property
    def steps(self) -> int:
        """Steps done, warm-up included."""
        if self.epoch is None or self.step is None:
            return 0
        return (self.epoch + self.warmup_epochs) * self.steps_per_epoch + self.step + 1

    @property
    def total_steps(self) -> int:
        """Steps of the whole training, warm-up included."""
        return (self.epochs + self.warmup_epochs) * self.steps_per_epoch

    @property
    def share(self) -> float:
        """Part of the training that is done, in [0, 1]."""
        if self.finished:
            return 1.0
        return min(1.0, self.steps / self.total_steps) if self.total_steps else 0.0

    def seconds_left(self, now: float | None = None) -> float | None:
        """Return an estimate for the remaining epochs by the pace so far, measuring included.

        Args:
            now: unix time; None: the present.
        Returns:
            seconds; None before the pace is known.
        """
        if self._first is None or self._last is None:
            return None
        if self._last[1] >= self.epochs:
            return 0.0
        done = self._last[1] - self._first[1]
        if done <= 0:
            return None
        pace = (self._last[0] - self._first[0]) / done
        passed = max((time.time() if now is None else now) - self._last[0], 0.0)
        return max(pace * (self.epochs - self._last[1]) - passed, 0.0)

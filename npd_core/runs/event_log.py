"""The event log of a run, `events.jsonl`: one record per line, written by one process, read by any number."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from npd_core.events import Event, StepEnd, to_record
from npd_core.fileio import disk_errors
from npd_core.progress import Progress
from npd_core.runs import checked


@contextlib.contextmanager
def append_events(path: Path) -> Iterator[Callable[[Event], None]]:
    """Yield a function that appends an event to the log, reading its tensors; each line is flushed at once.

    The file is created when absent; a line that a crash cut off is ended first. Raises StorageError.
    """
    with disk_errors(path):
        file = path.open("a+b")
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")

    def append(event: Event) -> None:
        line = json.dumps(to_record(event) | {"time": round(time.time(), 3)})
        with disk_errors(path):
            file.write(line.encode() + b"\n")
            file.flush()

    try:
        yield append
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        raise
    with disk_errors(path), file:
        file.flush()
        os.fsync(file.fileno())


class Thinner:
    """Selects the events to keep: a few steps per second, the last step before another event, all others.

    A step that is dropped is never read, so its loss tensors stay on the device.
    """

    def __init__(self, seconds: float = 0.1) -> None:
        """Args: seconds: minimum time between two steps that are kept."""
        self._seconds = seconds
        self._next = 0.0
        self._held: StepEnd | None = None

    def __call__(self, event: Event) -> list[Event]:
        """Return the events to keep now, in order: none, `event`, or the step held back and then `event`."""
        now = time.monotonic()
        if isinstance(event, StepEnd):
            if now < self._next:
                self._held = event
                return []
            self._held, self._next = None, now + self._seconds
            return [event]
        held, self._held = self._held, None
        return [event] if held is None else [held, event]


class EventLog:
    """The events of one run as records, with the progress they report. Each `read` adds what is new."""

    def __init__(self, path: Path) -> None:
        """Args: path: of the log; it need not exist."""
        self._path = path
        self._clear()
        self.read()

    def _clear(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.progress = Progress()
        self.damaged = 0
        """Lines that hold no event, and are left out."""
        self._mark: tuple[int, int] | None = None
        self._offset = 0

    def read(self) -> None:
        """Add every complete line written since the last call. Raises StorageError."""
        with disk_errors(self._path, "read"):
            try:
                status = os.stat(self._path)
            except FileNotFoundError:
                self._clear()
                return
            mark = (status.st_ino, status.st_size)
            if mark == self._mark:
                return
            if self._mark and (mark[0] != self._mark[0] or mark[1] < self._offset):
                self._clear()
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        complete = text.rfind(b"\n") + 1
        for line in text[:complete].splitlines():
            record = checked.parse(line)
            if record is None or not checked.is_event(record):
                self.damaged += 1
            else:
                self.events.append(record)
                self.progress.add(record)
        self._offset += complete
        self._mark = (mark[0], self._offset + len(text) - complete)

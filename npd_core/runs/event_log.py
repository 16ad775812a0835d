"""The event log of a run, `events.jsonl`: one record a line, written by one process, read by any number of them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from npd_core.errors import StorageError
from npd_core.events import Event, StepEnd, to_record
from npd_core.fileio import disk_errors, storage_error
from npd_core.progress import Progress


class EventWriter:
    """Appends event records to a file, one a line, each flushed. Raises StorageError."""

    def __init__(self, path: Path) -> None:
        """Args: path: created when absent; a line torn by a crash is ended first."""
        self._path = path
        self._file: TextIO
        with disk_errors(path):
            torn = False
            with contextlib.suppress(FileNotFoundError), path.open("rb") as old:
                if old.seek(0, os.SEEK_END):
                    old.seek(-1, os.SEEK_END)
                    torn = old.read(1) != b"\n"
            self._file = path.open("a", encoding="utf-8")
            if torn:
                self._file.write("\n")

    def __call__(self, event: Event) -> None:
        """Writes one event; reads its tensors."""
        line = json.dumps(to_record(event) | {"time": round(time.time(), 3)})
        with disk_errors(self._path):
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """Flushes to the disk and closes."""
        with disk_errors(self._path):
            try:
                if not self._file.closed:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            finally:
                self._file.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except StorageError:
            if error is None:
                raise


class Thinner:
    """Picks the events worth reading: a few steps a second, the last step before any other event, and all other events.

    A step that is passed over is never read, so its loss tensors stay on the device.
    """

    def __init__(self, seconds: float = 0.1) -> None:
        """Args: seconds: least time between two steps that are kept."""
        self._seconds = seconds
        self._next = 0.0
        self._held: StepEnd | None = None

    def __call__(self, event: Event) -> list[Event]:
        """The events to read now, in order: none, `event`, or the step held back and then `event`."""
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
    """Events of one run, read on from where the last call left off, with the progress they tell."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._clear()

    def _clear(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.progress = Progress()
        self._mark: tuple[int, int] | None = None
        self._offset = 0

    def read(self) -> None:
        """Takes in every complete line written since the last call. Raises StorageError."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            if self.events:
                self._clear()
            return
        except OSError as error:
            raise storage_error(self._path, error, "read") from error
        mark = (status.st_ino, status.st_size)
        if mark == self._mark:
            return
        if self._mark and (mark[0] != self._mark[0] or mark[1] < self._offset):
            self._clear()
        with disk_errors(self._path, "read"), self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        complete = text.rfind(b"\n") + 1
        for line in text[:complete].splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("type"), str):
                self.events.append(record)
                self.progress.add(record)
        self._offset += complete
        self._mark = (mark[0], self._offset + len(text) - complete)

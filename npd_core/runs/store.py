"""Runs on disk: one folder per run, readable by any number of processes while it is written. No torch here.

    <root>/<run id>/request.json    the request; never changes
                    state.json      the state; replaced as a whole
                    events.jsonl    one event record per line, with its `time` in unix seconds
                    note.txt        a note of the user
                    result.json     the result of `run_defense`, beside polarizer.safetensors, ...
    <root>/.deleted/                runs that were deleted and can still be restored
    <root>/.owners/                 a locked file per process that works on runs, see `owners`

`npd defend --save DIR` and the recorded runs have the same layout (`write_record`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from npd_core import paths
from npd_core.config.request import DefenseRequest
from npd_core.errors import NPDError, StorageError, UnknownNameError, unknown_name
from npd_core.events import Event, to_record
from npd_core.fileio import disk_errors, write_json, write_text
from npd_core.progress import STORED, Progress
from npd_core.runs import checked
from npd_core.runs.event_log import EventLog, append_events
from npd_core.runs.owners import Owner

State = Literal["queued", "running", "finished", "stopped", "failed", "interrupted"]
STATES: tuple[State, ...] = get_args(State)
ACTIVE: tuple[State, ...] = ("queued", "running")

REQUEST, STATE, EVENTS, RESULT, STOP = "request.json", "state.json", "events.jsonl", "result.json", "stop"
NOTE, LONGEST_NOTE = "note.txt", 400
UNDO_SECONDS = 3600.0
"""How long a deleted run can be restored; then it is removed for good."""
POLARIZER, REPAIRED = "polarizer.safetensors", "repaired.json"
"""Files that show that a run saved a polarizer, or a network that a baseline repaired."""
_RUN_ID = re.compile(r"[0-9a-z][0-9a-z_-]{0,127}")
DELETED = ".deleted"
"""Folder of the runs that were deleted and can be restored."""
LATEST = 1e11
"""Unix seconds: a time of a run lies before."""
_LOGS = 64
"""Runs whose events stay in memory after they were read."""
READ_ONLY = "Recorded runs are read-only: start a run of your own instead."
STOPPED_EARLY = "Stopped early; the best state so far is kept."
CLOSED = "The app was closed {when}. Start it again to finish it."
"""Message of an interrupted run, with one of WHEN."""
WHEN = {"queued": "while this run was queued", "running": "during this run"}


class Ending(NamedTuple):
    """How a run ended: its state and, where needed, a sentence that explains it."""

    state: State
    message: str = ""

    @classmethod
    def of(cls, last: Mapping[str, Any]) -> Ending:
        """Return the ending of a training by the record of its last event."""
        if last.get("type") == "Failed":
            return cls("failed", str(last.get("reason", "")))
        return cls("stopped", STOPPED_EARLY) if last.get("stopped") else cls("finished")


@dataclass(frozen=True, slots=True)
class Run:
    """One run at the moment it was read. Times are unix seconds."""

    id: str
    request: DefenseRequest
    state: State
    created: float
    started: float | None
    ended: float | None
    message: str
    """One sentence on how it ended; may be empty."""
    result: dict[str, Any] | None
    """result.json; None before the end, and when it could not be read."""
    folder: Path
    recorded: bool
    """True for a run shipped with the project, which is read-only."""
    damage: str = ""
    """Which of its files cannot be read, in a sentence; empty for a sound run."""
    epoch: int | None = None
    """Epoch of the last event; warm-up epochs are negative. None before the first."""
    epochs: int = 0
    warmup_epochs: int = 0
    step: int | None = None
    """Last step seen in that epoch, from 0."""
    steps_per_epoch: int = 0
    share: float = 0.0
    """Part of the training steps that is done, in [0, 1]; only while it is running."""
    seconds_left: float | None = None
    """Estimate for the rest of the training; None when it is not running or has just begun."""

    @property
    def active(self) -> bool:
        """Whether it is queued or running."""
        return self.state in ACTIVE

    @property
    def has_polarizer(self) -> bool:
        """Whether it saved a polarizer; a baseline, which repairs the whole network, does not."""
        return (self.folder / POLARIZER).is_file()

    @property
    def has_network(self) -> bool:
        """Whether it saved a polarizer or a repaired network."""
        return self.has_polarizer or (self.folder / REPAIRED).is_file()


Runs = list[Run]  # inside the class below, `list` is a method
Records = list[dict[str, Any]]
Names = list[str]


class RunStore:
    """The runs in one folder. Thread-safe; the folder need not exist, the first `create` makes it.

    What was read is kept per folder for the whole process, so stores are cheap to make.
    """

    def __init__(self, root: Path) -> None:
        """Args: root: folder of the runs. The store of `paths.recorded()` is read-only."""
        self.root = Path(root)
        self.recorded = self.root.resolve() == paths.recorded().resolve()
        with _memories_lock:
            memory = _memories.setdefault(self.root.absolute(), _Memory())
        self._lock, self._logs = memory.lock, memory.logs
        self._runs, self._unsaved = memory.runs, memory.unsaved

    def get(self, run_id: str) -> Run:
        """Return the run as it is now. Raises UnknownNameError; StorageError if it cannot be read."""
        folder = self._folder(run_id)
        with self._lock:
            mark = tuple(_mark(f"{folder}/{name}") for name in (REQUEST, STATE, RESULT))
            known = self._runs.get(run_id)
            if known is None or known[0] != mark:
                try:
                    found: _Read | NPDError = _read(folder, self._unsaved.get(run_id), self.recorded)
                except NPDError as error:
                    found = error
                self._runs[run_id] = known = (mark, found)
            if isinstance(known[1], NPDError):
                raise StorageError(str(known[1]))
            return self._complete(known[1])

    def list(self) -> Runs:
        """Return every readable run, newest first. `unreadable()` names the others."""
        return sorted(self._readable()[0], key=lambda run: (run.created, run.id), reverse=True)

    def unreadable(self) -> dict[str, str]:
        """Return run id -> reason for every folder that holds no readable run."""
        return self._readable()[1]

    def events(self, run_id: str, start: int = 0) -> Records:
        """Return the event records from number `start` on that are written so far. Raises as `get`.

        The records are shared between all readers: do not change them. A line cut off by a crash is left out.
        Cheap to poll: only what was added since the last call, in any thread, is read.
        """
        folder = self._folder(run_id)
        with self._lock:
            return self._log(run_id, folder).events[max(start, 0) :]

    def create(self, request: DefenseRequest, *, owner: str = "") -> str:
        """Create a queued run, even if there is an identical one, and return its id. Raises StorageError."""
        for run_id in self._ids_of(request):
            if not os.path.exists(self.root / run_id) and self._create(run_id, request, owner):
                return run_id
        raise AssertionError("ids never end")

    def join_or_create(
        self,
        request: DefenseRequest,
        *,
        owner: str = "",
        usable: Callable[[Run], bool] = lambda run: True,
    ) -> tuple[str, bool]:
        """Return the run that `joinable` finds or a new one, and whether it is new. Raises StorageError.

        Safe between threads and processes: of two calls at the same time, one creates and the other joins.
        """
        while True:
            run_id, there = self._scan(request, usable)
            if there:
                return run_id, False
            if self._create(run_id, request, owner):
                return run_id, True

    def joinable(
        self, request: DefenseRequest, usable: Callable[[Run], bool] = lambda run: True
    ) -> str | None:
        """Return the run of an identical request: queued, running, or finished and `usable`; or None."""
        run_id, there = self._scan(request, usable)
        return run_id if there else None

    def _scan(self, request: DefenseRequest, usable: Callable[[Run], bool]) -> tuple[str, bool]:
        """Return the run to join and True, otherwise the first free id and False.

        One pass, so that two calls at the same time get the same id, and only one can create it.
        """
        for run_id in self._ids_of(request):
            if not os.path.exists(self.root / run_id):
                return run_id, False
            with contextlib.suppress(StorageError, UnknownNameError):
                run = self.get(run_id)
                joins = run.active and not self.stop_requested(run_id)
                if joins or (run.state == "finished" and run.result is not None and usable(run)):
                    return run_id, True
        raise AssertionError("ids never end")

    def set_state(self, run_id: str, state: State, **values: float | str | None) -> None:
        """Replace the state, and those of started, ended, message that are given. Raises StorageError.

        When it cannot be written, this process still returns the new state.
        """
        folder = self._writable(run_id)
        with self._lock:
            record = {**_load_state(folder), **self._unsaved.get(run_id, {}), **values, "state": state}
            if state not in ACTIVE:
                with contextlib.suppress(StorageError):
                    record["progress"] = self._log(run_id, folder).progress.stored()
            self._runs.pop(run_id, None)
            self._unsaved[run_id] = record
            write_json(folder / STATE, record)
            del self._unsaved[run_id]
            self._runs.pop(run_id, None)

    def set_result(self, run_id: str, result: Mapping[str, Any]) -> None:
        """Write result.json. Raises StorageError."""
        write_json(self._writable(run_id) / RESULT, result)

    def writer(self, run_id: str) -> contextlib.AbstractContextManager[Callable[[Event], None]]:
        """Return a context with a function that appends an event to the run. Raises StorageError."""
        return append_events(self._writable(run_id) / EVENTS)

    def request_stop(self, run_id: str) -> None:
        """Ask the process that works on the run to stop, by a file. Raises as `get`."""
        folder = self._writable(run_id)
        with disk_errors(folder / STOP):
            (folder / STOP).touch()

    def stop_requested(self, run_id: str) -> bool:
        """Return whether a process asked the run to stop."""
        return os.path.exists(self._folder(run_id) / STOP)

    def note(self, run_id: str) -> str:
        """Return the note of a run; "" without one, and where it cannot be read. Raises UnknownNameError."""
        try:
            with (self._folder(run_id) / NOTE).open("rb") as file:
                return file.read(4 * LONGEST_NOTE).decode(errors="replace")[:LONGEST_NOTE]
        except OSError:
            return ""

    def set_note(self, run_id: str, note: str) -> None:
        """Keep a note of at most LONGEST_NOTE characters with a run; "" removes it. Raises as `get`."""
        path = self._writable(run_id) / NOTE
        words = note.encode(errors="replace").decode().strip()[:LONGEST_NOTE]
        with disk_errors(path):
            write_text(path, words) if words else path.unlink(missing_ok=True)

    def delete(self, run_id: str) -> None:
        """Take a run, damaged or not, out of the list; `restore` brings it back for UNDO_SECONDS, or until
        the next start.

        Raises:
            UnknownNameError: there is none. StorageError: it is recorded, queued or running.
        """
        folder = self._writable(run_id)
        try:
            state = self.get(run_id).state
        except StorageError:
            state = "failed"
        if state in ACTIVE:
            raise StorageError(f"Run {run_id} is {state}: stop it before you delete it.")
        kept = self.root / DELETED / run_id
        with self._lock, disk_errors(folder):
            kept.parent.mkdir(exist_ok=True)
            shutil.rmtree(kept, ignore_errors=True)
            os.rename(folder, kept)
            os.utime(kept)
            self._forget(run_id)
        self.purge(UNDO_SECONDS)

    def restore(self, run_id: str) -> None:
        """Bring back a deleted run. Raises UnknownNameError, StorageError."""
        if run_id not in self.deleted():
            raise UnknownNameError(f"Run {str(run_id)[:40]!r} cannot be restored any more.")
        with self._lock:
            if os.path.exists(self.root / run_id):
                raise StorageError(f"Run {run_id} exists again, so the deleted one is not restored.")
            with disk_errors(self.root / run_id):
                os.rename(self.root / DELETED / run_id, self.root / run_id)
            self._forget(run_id)

    def deleted(self) -> Names:
        """Return the ids of the runs that can be restored."""
        folder = self.root / DELETED
        with disk_errors(folder, "read"):
            names = os.listdir(folder) if folder.is_dir() else []
        return sorted(name for name in names if _RUN_ID.fullmatch(name))

    def purge(self, older: float = 0.0) -> None:
        """Remove what was deleted at least `older` seconds ago for good."""
        for name in self.deleted():
            folder = self.root / DELETED / name
            if time.time() - _mtime(folder) >= older:
                shutil.rmtree(folder, ignore_errors=True)

    def _forget(self, run_id: str) -> None:
        self._runs.pop(run_id, None)
        self._logs.pop(run_id, None)
        self._unsaved.pop(run_id, None)

    def recover(self) -> Names:
        """Mark every run that a dead process left queued or running as interrupted, and return their ids.

        Raises StorageError.
        """
        marked = []
        for run in self._readable()[0]:
            if run.state == "interrupted" and _load_state(run.folder).get("state") in ACTIVE:
                self.set_state(run.id, "interrupted", ended=run.ended, message=run.message)
                marked.append(run.id)
        if not self.recorded:
            Owner.sweep(self.root)
            self.purge()
        return marked

    def _folder(self, run_id: str) -> Path:
        if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
            raise UnknownNameError(f"Unknown run {str(run_id)[:40]!r}: choose one from the page Runs.")
        folder = self.root / run_id
        if not os.path.isdir(folder):
            raise unknown_name("run", run_id, self._ids())
        return folder

    def _writable(self, run_id: str) -> Path:
        if self.recorded:
            raise StorageError(READ_ONLY)
        return self._folder(run_id)

    def _ids(self) -> Names:
        with (
            disk_errors(self.root, "read"),
            contextlib.suppress(FileNotFoundError),
            os.scandir(self.root) as entries,
        ):
            names = sorted(
                entry.name for entry in entries if _RUN_ID.fullmatch(entry.name) and entry.is_dir()
            )
            return [name for name in names if self.root / name != paths.tables()]
        return []

    def _readable(self) -> tuple[Runs, dict[str, str]]:
        runs, reasons = [], {}
        for run_id in self._ids():
            try:
                runs.append(self.get(run_id))
            except UnknownNameError:
                continue
            except NPDError as error:
                reasons[run_id] = str(error)
        return runs, reasons

    def _ids_of(self, request: DefenseRequest) -> Iterator[str]:
        yield request.key
        for number in count(2):
            yield f"{request.key}-{number}"

    def _create(self, run_id: str, request: DefenseRequest, owner: str) -> bool:
        if self.recorded:
            raise StorageError(READ_ONLY)
        fresh = self.root / f".new-{uuid.uuid4().hex}"
        try:
            with disk_errors(self.root):
                fresh.mkdir(parents=True)
            write_json(fresh / REQUEST, request.to_dict())
            write_json(fresh / STATE, {"state": "queued", "created": time.time(), "owner": owner})
            with disk_errors(self.root / run_id):
                try:
                    os.rename(fresh, self.root / run_id)
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        return False
                    raise
            return True
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _log(self, run_id: str, folder: Path) -> EventLog:
        if run_id not in self._logs:
            self._logs[run_id] = EventLog(folder / EVENTS)
            if len(self._logs) > _LOGS:
                self._logs.popitem(last=False)
        self._logs.move_to_end(run_id)
        self._logs[run_id].read()
        return self._logs[run_id]

    def _complete(self, found: _Read) -> Run:
        """Add what changes without the state file: progress, time left, death of the owner."""
        if found.complete:
            return found.run
        progress = self._log(found.run.id, found.run.folder).progress
        run = replace(found.run, **progress.stored())
        if run.active and not Owner.alive(self.root, found.owner):
            ended = progress.last_time or run.started or run.created
            message = CLOSED.format(when=WHEN[run.state])
            return replace(run, state="interrupted", ended=ended, message=message)
        if run.state == "running":
            return replace(run, share=progress.share, seconds_left=progress.seconds_left())
        return run


def write_record(
    folder: Path,
    request: DefenseRequest,
    events: Iterable[Event | Mapping[str, Any]],
    result: Mapping[str, Any] | None = None,
) -> Path:
    """Write an ended run in the layout of the store, as `npd defend --save` and the recorded runs have it.

    Other files in `folder` (polarizer.safetensors, ...) stay. No file is ever half-written.

    Args:
        folder: created when absent.
        request: what was run.
        events: all events, or those that `Thinner` kept; events or their records, which may have a `time`.
        result: the `result` of Finished or Failed; None: result.json exists already.
    Returns:
        folder.
    Raises:
        StorageError: disk full, no permission.
    """
    records = [dict(e) if isinstance(e, Mapping) else to_record(e) for e in events]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REQUEST, request.to_dict())
    write_text(folder / EVENTS, "".join(json.dumps(record) + "\n" for record in records))
    if result is not None:
        write_json(folder / RESULT, result)
    last = records[-1] if records else {}
    ending = Ending.of(last)
    times = [at for record in records if (at := _number(record.get("time"))) is not None]
    ended = times[-1] if times else time.time()
    started = times[0] if times else ended - float(last.get("seconds", 0.0))
    state = {
        "state": ending.state, "created": started, "started": started, "ended": ended,
        "message": ending.message, "progress": Progress.of(records).stored(),
    }  # fmt: skip
    write_json(folder / STATE, state)
    return folder


def read_record(folder: Path) -> Run:
    """Read the run in `folder`, as `npd defend --save` writes it. Raises StorageError."""
    if not folder.is_dir():
        raise StorageError(f"There is no run in {folder}: choose a folder that `npd defend --save` wrote.")
    recorded = folder.resolve().parent == paths.recorded().resolve()
    return replace(_read(folder, None, recorded).run, **EventLog(folder / EVENTS).progress.stored())


class _Memory:
    """What this process knows about the runs in one folder."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.logs: OrderedDict[str, EventLog] = OrderedDict()
        """Run id -> its events, the most recently used last."""
        self.runs: dict[str, tuple[object, _Read | NPDError]] = {}
        """Run id -> marks of its files, with their content or why it cannot be read."""
        self.unsaved: dict[str, dict[str, Any]] = {}
        """Run id -> state that could not be written."""


_memories: dict[Path, _Memory] = {}
_memories_lock = threading.Lock()


class _Read(NamedTuple):
    """A run by its files, without the events."""

    run: Run
    owner: str
    complete: bool
    """Whether the events add nothing: it ended, and its state holds the progress."""


def _read(folder: Path, unsaved: Mapping[str, Any] | None, recorded: bool) -> _Read:
    """Read a run folder, without the events. Raises StorageError when its request is unreadable."""
    damage = ""
    result: dict[str, Any] | None = None
    state: Mapping[str, Any] = {}
    try:
        result = checked.load_result(folder / RESULT) if os.path.exists(folder / RESULT) else None
    except StorageError as error:
        damage = str(error)
    request = _read_request(folder, result)
    try:
        state = unsaved or _load_state(folder, strict=True)
    except StorageError as error:
        damage = str(error)
    guess = "failed" if damage else "finished" if result is not None else "interrupted"
    name = state.get("state", guess)
    if not isinstance(name, str) or name not in STATES:
        name, damage = "failed", f"Run {folder.name} has an unknown state {str(name)[:40]!r}; start it again."
    elif damage and name == "finished":
        name = "failed"
    created = _number(state.get("created"))
    progress = state.get("progress")
    progress = progress if isinstance(progress, dict) else {}
    known = {
        key: progress[key] for key in STORED if type(progress.get(key)) is int and abs(progress[key]) < 2**31
    }
    run = Run(
        id=folder.name,
        request=request,
        state=name,
        created=_mtime(folder) if created is None else created,
        started=_number(state.get("started")),
        ended=_number(state.get("ended")),
        message=damage or str(state.get("message") or "")[: checked.MOST_WORDS],
        result=result,
        folder=folder,
        recorded=recorded,
        damage=damage,
        **known,
    )
    owner = state.get("owner", "")
    return _Read(run, owner if isinstance(owner, str) else "", not run.active and "epochs" in known)


def _read_request(folder: Path, result: Mapping[str, Any] | None) -> DefenseRequest:
    """Return the request of a run, from its result where it has no file of its own. Raises StorageError."""
    stored = result is None or os.path.exists(folder / REQUEST)
    return checked.load_request(folder / REQUEST, None if stored else (result or {}).get("config") or {})


def _number(value: object) -> float | None:
    """Return a time of a file; None when it is none that a calendar has."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LATEST
    return float(value) if fits else None  # type: ignore[arg-type]


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _mark(path: str) -> tuple[int, int, int] | None:
    """Return a value that changes whenever the file does."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _load_state(folder: Path, *, strict: bool = False) -> dict[str, Any]:
    """Return state.json, {} if it is absent or damaged; if `strict`, a damaged one raises StorageError."""
    try:
        return checked.load_json(folder / STATE) if os.path.exists(folder / STATE) else {}
    except StorageError:
        if strict:
            raise
        return {}

"""Runs on disk: one folder a run, readable while it is written, by any number of processes. No torch here.

    <root>/<run id>/request.json    what was asked for; never changes
                    state.json      how far it is; replaced as a whole
                    events.jsonl    one event record a line, appended and flushed; `time` is added, in unix seconds
                    result.json     what `run_defense` measured; beside it what it saved: polarizer.safetensors, ...
    <root>/.owners/                 a locked file per process that works on runs, so that a dead one is noticed

`npd defend --save DIR` and the recorded runs have the same layout (`write_record`); reading needs result.json alone.
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
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from npd_core import paths
from npd_core.config.request import DefenseRequest
from npd_core.errors import NPDError, StorageError, UnknownNameError, unknown_name
from npd_core.events import Event, to_record
from npd_core.fileio import disk_errors, storage_error, write_json, write_text
from npd_core.progress import STORED
from npd_core.runs.event_log import EventLog, EventWriter
from npd_core.runs.owners import Owner

State = Literal["queued", "running", "finished", "stopped", "failed", "interrupted"]
STATES: tuple[State, ...] = get_args(State)
ACTIVE: tuple[State, ...] = ("queued", "running")

REQUEST, STATE, EVENTS, RESULT, STOP = "request.json", "state.json", "events.jsonl", "result.json", "stop"
POLARIZER, REPAIRED = "polarizer.safetensors", "repaired.json"
"""What shows that a run left a polarizer, or the network that a baseline repaired."""
_RUN_ID = re.compile(r"[0-9a-z][0-9a-z_-]{0,127}")
_LOGS = 64
"""Runs whose events stay in memory after somebody read them."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run as it was when it was read. Times are unix seconds."""

    id: str
    request: DefenseRequest
    state: State
    created: float
    started: float | None
    ended: float | None
    message: str
    """One sentence on how it ended, empty when there is nothing to say."""
    result: dict[str, Any] | None
    """result.json; None before the end, and when it could not be read."""
    folder: Path
    recorded: bool
    """True for a run shipped with the project, which nobody may change."""
    epoch: int | None = None
    """Epoch of the last event; warm-up epochs are negative. None before the first."""
    epochs: int = 0
    warmup_epochs: int = 0
    step: int | None = None
    """Last step seen in that epoch, from 0."""
    steps_per_epoch: int = 0
    seconds_left: float | None = None
    """Estimate for the rest of the training; None when it does not run, or has only just begun."""

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE

    @property
    def has_polarizer(self) -> bool:
        """Whether it left a polarizer; a baseline, which repairs the whole network, does not."""
        return (self.folder / POLARIZER).is_file()

    @property
    def has_network(self) -> bool:
        """Whether it left a polarizer or a repaired network."""
        return self.has_polarizer or (self.folder / REPAIRED).is_file()

    @property
    def share(self) -> float:
        """Part of all training steps that is done, in [0, 1]."""
        total = self.epochs + self.warmup_epochs
        if self.epoch is None or not total:
            return 0.0
        part = 0.0 if self.step is None else (self.step + 1) / max(self.steps_per_epoch, 1)
        return min((self.epoch + self.warmup_epochs + part) / total, 1.0)


Runs = list[Run]  # inside the class below, `list` is a method
Records = list[dict[str, Any]]
Names = list[str]


class RunStore:
    """Runs under one folder. Thread-safe; the folder need not exist and is created by the first `create`.

    What was read is remembered per folder for the whole process, so stores are cheap to make.
    """

    def __init__(self, root: Path) -> None:
        """Args: root: folder of the runs. `paths.recorded()` makes a store that only reads."""
        self.root = Path(root)
        self.recorded = self.root.resolve() == paths.recorded().resolve()
        with _memories_lock:
            memory = _memories.setdefault(self.root.absolute(), _Memory())
        self._lock, self._logs, self._runs, self._unsaved = (
            memory.lock,
            memory.logs,
            memory.runs,
            memory.unsaved,
        )

    # reading

    def get(self, run_id: str) -> Run:
        """The run as it stands. Raises UnknownNameError, or StorageError for a folder that cannot be read."""
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
        """Every run that can be read, newest first. The others are named by `unreadable()`."""
        return sorted(self._readable()[0], key=lambda run: (run.created, run.id), reverse=True)

    def unreadable(self) -> dict[str, str]:
        """Run id -> one sentence, for every folder that holds no run that can be read."""
        return self._readable()[1]

    def events(self, run_id: str, start: int = 0) -> Records:
        """Event records from number `start` on, at most those written so far. Raises as `get`.

        The records are shared between all readers: do not change them. A line torn by a crash is left out. Cheap to
        poll: the file is read on from where the last reader, of any thread, left off.
        """
        folder = self._folder(run_id)
        with self._lock:
            return self._log(run_id, folder).events[max(start, 0) :]

    # writing

    def create(self, request: DefenseRequest, *, owner: str = "") -> str:
        """A new queued run, whatever runs there are. Raises StorageError when it cannot be written."""
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
        """The run that `joinable` finds, otherwise a new one, with whether it is new. Raises StorageError.

        Holds between threads and between processes: of two that ask at once, one creates and the other joins.
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
        """The queued, running or (if `usable` says so) finished run of an identical request; None if there is none."""
        run_id, there = self._scan(request, usable)
        return run_id if there else None

    def _scan(self, request: DefenseRequest, usable: Callable[[Run], bool]) -> tuple[str, bool]:
        """The run to join, and True; otherwise the first id that was free, and False.

        One pass, so that two that ask at once want the same id, of which only one can become a run.
        """
        for run_id in self._ids_of(request):
            if not os.path.exists(self.root / run_id):
                return run_id, False
            with contextlib.suppress(StorageError, UnknownNameError):
                run = self.get(run_id)
                joins = run.active and not self.stop_asked(run_id)
                if joins or (run.state == "finished" and run.result is not None and usable(run)):
                    return run_id, True
        raise AssertionError("ids never end")

    def set_state(self, run_id: str, state: State, **values: float | str | None) -> None:
        """Replaces the state, with what else is given of started, ended, message. Raises StorageError.

        When it cannot be written, this store goes on saying the new state as long as it lives.
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
        """Writes result.json. Raises StorageError."""
        write_json(self._writable(run_id) / RESULT, result)

    def writer(self, run_id: str) -> EventWriter:
        """Appends to the events of the run; to be closed, or used as a context."""
        return EventWriter(self._writable(run_id) / EVENTS)

    def ask_stop(self, run_id: str) -> None:
        """Leaves the wish to stop where the process that works on the run will see it."""
        folder = self._writable(run_id)
        with disk_errors(folder / STOP):
            (folder / STOP).touch()

    def stop_asked(self, run_id: str) -> bool:
        """Whether some process left the wish to stop."""
        return os.path.exists(self._folder(run_id) / STOP)

    def recover(self) -> Names:
        """Marks every run left queued or running by a dead process as interrupted, and returns their ids.

        Runs of living processes stay as they are. Raises StorageError.
        """
        marked = []
        for run in self._readable()[0]:
            if run.state == "interrupted" and _load_state(run.folder).get("state") in ACTIVE:
                self.set_state(run.id, "interrupted", ended=run.ended, message=run.message)
                marked.append(run.id)
        if not self.recorded:
            Owner.sweep(self.root)
        return marked

    # inside

    def _folder(self, run_id: str) -> Path:
        if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
            raise UnknownNameError(f"Unknown run {str(run_id)[:40]!r}: choose one of the page Runs.")
        folder = self.root / run_id
        if not os.path.isdir(folder):
            raise unknown_name("run", run_id, self._ids())
        return folder

    def _writable(self, run_id: str) -> Path:
        if self.recorded:
            raise StorageError("Recorded runs are read-only: start a run of your own instead.")
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
            raise StorageError("Recorded runs are read-only: start a run of your own instead.")
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
        log = self._logs.get(run_id)
        if log is None:
            log = self._logs[run_id] = EventLog(folder / EVENTS)
            if len(self._logs) > _LOGS:
                self._logs.popitem(last=False)
        self._logs.move_to_end(run_id)
        log.read()
        return log

    def _complete(self, found: _Read) -> Run:
        """Adds what changes without the state file: progress, time left, death of the owner."""
        run = found.run
        if found.complete:
            return run
        log = self._log(run.id, run.folder)
        values: dict[str, Any] = {**_fields(run), **log.progress.stored()}
        if run.active:
            if not Owner.alive(self.root, found.owner):
                doing = "waited" if run.state == "queued" else "ran"
                values |= {
                    "state": "interrupted",
                    "ended": log.progress.last_time or run.started or run.created,
                    "message": f"The app was closed while this run {doing}. Start it again to finish it.",
                }
            elif run.state == "running":
                values["seconds_left"] = log.progress.seconds_left()
        return Run(**values)


def write_record(
    folder: Path,
    request: DefenseRequest,
    events: Iterable[Event | Mapping[str, Any]],
    result: Mapping[str, Any] | None = None,
) -> Path:
    """Writes an ended run in the layout of the store, as `npd defend --save` does and the recorded runs have it.

    Files that lie in `folder` already (polarizer.safetensors, ...) stay. No file is ever half-written.

    Args:
        folder: created when absent.
        request: what was run.
        events: all events, or a part that `Thinner` picked; events or their records, which may have a `time`.
        result: what `Finished.result` or `Failed.result` holds; None: result.json is there already.
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
    log = EventLog(folder / EVENTS)
    log.read()
    last = records[-1] if records else {}
    state, message = _ending(last)
    times = [at for record in records if (at := _number(record.get("time"))) is not None]
    ended = times[-1] if times else time.time()
    started = times[0] if times else ended - float(last.get("seconds", 0.0))
    write_json(
        folder / STATE,
        {
            "state": state,
            "created": started,
            "started": started,
            "ended": ended,
            "message": message,
            "progress": log.progress.stored(),
        },
    )
    return folder


def read_record(folder: Path) -> Run:
    """The run in a folder of its own, as `npd defend --save` leaves it. Raises StorageError when it cannot be read."""
    if not folder.is_dir():
        raise StorageError(f"There is no run in {folder}: choose a folder that `npd defend --save` wrote.")
    recorded = folder.resolve().parent == paths.recorded().resolve()
    run = _read(folder, None, recorded).run
    log = EventLog(folder / EVENTS)
    log.read()
    return Run(**{**_fields(run), **log.progress.stored()})


class _Memory:
    """What this process knows of the runs under one folder."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.logs: OrderedDict[str, EventLog] = OrderedDict()
        """Run id -> its events, the last one used at the end."""
        self.runs: dict[str, tuple[object, _Read | NPDError]] = {}
        """Run id -> marks of its files, and what they held, or why they cannot be read."""
        self.unsaved: dict[str, dict[str, Any]] = {}
        """Run id -> state that the disk had no room for."""


_memories: dict[Path, _Memory] = {}
_memories_lock = threading.Lock()


class _Read(NamedTuple):
    """What the files of a run hold, but for the events."""

    run: Run
    owner: str
    complete: bool
    """Whether the events have nothing to add: it ended, and its state tells how far it came."""


def _read(folder: Path, unsaved: Mapping[str, Any] | None, recorded: bool) -> _Read:
    """Reads a run folder, but for the events. Raises StorageError when its request is unreadable."""
    result, damage = None, ""
    if os.path.exists(folder / RESULT):  # False, not an error, where the folder is closed to us
        try:
            result = _load_json(folder / RESULT)
        except StorageError as error:
            damage = str(error)
    try:
        if os.path.exists(folder / REQUEST) or result is None:
            request = DefenseRequest.from_dict(_load_json(folder / REQUEST))
        else:
            request = DefenseRequest.from_dict(result["config"])
    except StorageError:
        raise
    except (NPDError, TypeError, KeyError, AttributeError) as error:
        reason = str(error) if isinstance(error, NPDError) else "it lacks the request or has the wrong form."
        raise StorageError(
            f"Run {folder.name} was written by another version or damaged: {reason}"
        ) from error
    state: Mapping[str, Any] = {}
    try:
        state = unsaved or _load_state(folder, strict=True)
    except StorageError as error:
        damage = str(error)
    guess = "failed" if damage else "finished" if result is not None else "interrupted"
    name = state.get("state", guess)
    if name not in STATES:
        name, damage = "failed", f"Run {folder.name} has an unknown state {str(name)[:40]!r}; start it again."
    elif damage and name == "finished":
        name = "failed"
    created = _number(state.get("created"))
    progress = state.get("progress")
    known = {
        key: value
        for key in STORED
        if isinstance(progress, dict)
        and isinstance(value := progress.get(key), int)
        and not isinstance(value, bool)
    }
    run = Run(
        id=folder.name,
        request=request,
        state=name,
        created=_mtime(folder) if created is None else created,
        started=_number(state.get("started")),
        ended=_number(state.get("ended")),
        message=damage or str(state.get("message") or ""),
        result=result,
        folder=folder,
        recorded=recorded,
        **known,
    )
    return _Read(run, str(state.get("owner", "")), not run.active and "epochs" in known)


def _ending(last: Mapping[str, Any]) -> tuple[State, str]:
    if last.get("type") == "Failed":
        return "failed", str(last.get("reason", ""))
    return (
        ("stopped", "Stopped early; the best state so far is kept.")
        if last.get("stopped")
        else ("finished", "")
    )


def _fields(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in Run.__slots__}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _mark(path: str) -> tuple[int, int, int] | None:
    """Changes whenever the file does."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _load_state(folder: Path, *, strict: bool = False) -> dict[str, Any]:
    """state.json, empty when absent; when damaged also, unless `strict`, which raises StorageError."""
    try:
        return _load_json(folder / STATE) if os.path.exists(folder / STATE) else {}
    except StorageError:
        if strict:
            raise
        return {}


def _load_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise storage_error(path, error, "read") from error
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StorageError(
            f"{path} is damaged and cannot be read: remove its folder, or start the run again."
        )
    return value

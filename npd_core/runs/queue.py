"""The run manager: one queue per device, shared by all pages and independent of any page script.

A page submits and cancels runs and reads their positions here, and reads everything else from the store.
Reloading or closing a page changes nothing.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from npd_core import paths
from npd_core.config.baselines import CONFIGS
from npd_core.config.request import DefenseRequest
from npd_core.errors import ConfigError, NPDError, StorageError
from npd_core.runs import worker
from npd_core.runs.owners import Owner
from npd_core.runs.store import CLOSED, WHEN, Ending, Run, RunStore
from npd_core.runs.work import work_through
from npd_core.zoo import Zoo

NEVER_STARTED = Ending("stopped", "Stopped before it started.")
CLOSED_WAITING, CLOSED_RUNNING = (
    Ending("interrupted", CLOSED.format(when=WHEN[state])) for state in ("queued", "running")
)

_log = logging.getLogger(__name__)


class _Entry:
    """A run that is queued or running in this process."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.ended = False
        """Whether its end is in the store; what its work returns later is ignored."""


_Group = list[_Entry]
"""Runs that share the device: one, or those of a comparison."""


class RunManager:
    """Carries out requests, one group at a time per device. Thread-safe."""

    def __init__(
        self,
        store: RunStore,
        work: Callable[[Path], Ending] = work_through,
        *,
        max_epochs: int = 200,
        max_waiting: int = 64,
    ) -> None:
        """Mark what a dead process left behind as interrupted.

        Args:
            store: where the runs are kept.
            work: carries out the run in a folder and returns how it ended.
            max_epochs: most epochs (and most warm-up epochs) of a request.
            max_waiting: most queued groups per device.
        """
        self.store = store
        self._work_through = work
        self._max_epochs, self._max_waiting = max_epochs, max_waiting
        self._changed = threading.Condition(threading.RLock())
        self._waiting: dict[str, deque[_Group]] = {}
        self._running: dict[str, _Group] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._owner: Owner | None = None
        self._closed = False
        _managers.add(self)
        try:
            store.recover()
        except StorageError as error:
            _log.warning("%s", error)

    @property
    def closed(self) -> bool:
        """Whether `shutdown` was called."""
        return self._closed

    def submit(self, request: DefenseRequest) -> str:
        """Return the id of the run for `request`: an identical one if there is one, otherwise a new one.

        Raises:
            ConfigError: more epochs than this server allows, or a device that this machine lacks.
            StorageError: the run cannot be written.
            NPDError: the queue is full or closed.
        """
        return self.submit_together([request])[0]

    def submit_together(self, requests: Sequence[DefenseRequest]) -> list[str]:
        """Return the ids of the runs for `requests`, in this order, each found as by `submit`.

        New ones on one device train at the same time. Each is an ordinary run and cancelled on its own.
        Raises as `submit`.
        """
        devices = [self._check(request) for request in requests]
        _freeze_once()
        with self._changed:
            if self._closed:
                raise NPDError("The app is closing and takes no more runs: start it again.")
            for request, device in zip(requests, devices, strict=True):
                full = len(self._waiting.get(device, ())) >= self._max_waiting
                if full and not self.store.joinable(request, is_current):
                    raise NPDError(
                        f"{self._max_waiting} runs are queued already: try again when some have ended."
                    )
            if self._owner is None:
                self._owner = Owner(self.store.root)
            ids, groups = [], dict[str, _Group]()
            try:
                for request, device in zip(requests, devices, strict=True):
                    run_id, new = self.store.join_or_create(
                        request, owner=self._owner.name, usable=is_current
                    )
                    ids.append(run_id)
                    if new:
                        groups.setdefault(device, []).append(_Entry(run_id))
            finally:  # what was created is carried out, even if the next could not be written
                for device, group in groups.items():
                    self._enqueue(device, group)
                self._changed.notify_all()
            return ids

    def cancel(self, run_id: str) -> None:
        """End a run: a queued one at once, a running one after its step, keeping the best state so far.

        An ended run stays as it is; a run of another process is stopped too. Raises as `RunStore.get`, and
        StorageError.
        """
        with self._changed:
            for groups in self._waiting.values():
                for group in groups:
                    for entry in group:
                        if entry.id == run_id:
                            group.remove(entry)
                            if not group:
                                groups.remove(group)
                            self._end(entry, NEVER_STARTED)
                            return
            if self.store.get(run_id).active:
                self.store.request_stop(run_id)

    def position(self, run_id: str) -> int | None:
        """Return 0 for a running run, 1 for the next in its queue, and so on; None for any other run.

        The runs of a comparison share a position.
        """
        with self._changed:
            for groups in self._running.values():
                if any(entry.id == run_id for entry in groups):
                    return 0
            for waiting in self._waiting.values():
                for position, group in enumerate(waiting, start=1):
                    if any(entry.id == run_id for entry in group):
                        return position
        return None

    def wait(self, run_id: str, timeout: float | None = None) -> Run:
        """Wait at most `timeout` seconds for the end of the run, and return it. Raises as `RunStore.get`."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while (run := self.store.get(run_id)).active:
                left = 0.5 if end is None else min(end - time.monotonic(), 0.5)
                if left <= 0:
                    break
                self._changed.wait(left)
        return run

    def shutdown(self, timeout: float = 5.0) -> None:
        """Take no more runs and stop the running ones; after `timeout` seconds, mark them as interrupted."""
        end = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            for groups in self._waiting.values():
                while groups:
                    for entry in groups.popleft():
                        self._end(entry, CLOSED_WAITING)
            for entry in self._all_running():
                try:
                    self.store.request_stop(entry.id)
                except NPDError as error:
                    _log.warning("%s", error)
            self._changed.notify_all()
        for thread in list(self._threads.values()):
            if thread is not threading.current_thread():
                thread.join(max(end - time.monotonic(), 0.0))
        with self._changed:
            for entry in self._all_running():
                self._end(entry, CLOSED_RUNNING)
            if self._owner is not None:
                self._owner.release()
                self._owner = None
        _managers.discard(self)

    def _all_running(self) -> list[_Entry]:
        return [entry for group in self._running.values() for entry in group]

    def _check(self, request: DefenseRequest) -> str:
        """Return the device of the request. Raises ConfigError, UnknownNameError."""
        for name in ("epochs", "warmup_epochs"):
            value = getattr(request.config, name, 0)  # not every baseline has epochs
            if value > self._max_epochs:
                raise ConfigError(
                    f"`{name}` is limited to {self._max_epochs} in the app, got {value}: use fewer, "
                    "or train from the command line with `npd defend`."
                )
        return queue_of(request.device)

    def _enqueue(self, device: str, group: _Group) -> None:
        self._waiting.setdefault(device, deque()).append(group)
        if device not in self._threads:
            thread = threading.Thread(target=self._serve, args=(device,), name=f"npd-{device}", daemon=True)
            self._threads[device] = thread
            thread.start()

    def _serve(self, device: str) -> None:
        """Carry out the groups of a device, one after the other, until the manager is closed."""
        while True:
            with self._changed:
                while not self._waiting[device]:
                    if self._closed:
                        return
                    self._changed.wait()
                group = self._running[device] = self._waiting[device].popleft()
                entries = list(group)
            others = [threading.Thread(target=self._run, args=(e, group), daemon=True) for e in entries[1:]]
            for thread in others:
                thread.start()
            self._run(entries[0], group)
            for thread in others:
                thread.join()
            with self._changed:
                del self._running[device]
            gc.collect()

    def _run(self, entry: _Entry, group: _Group) -> None:
        """Carry out one run to its end."""
        try:
            ending = self._start(entry) or self._work_through(self.store.get(entry.id).folder)
        except NPDError as error:
            ending = Ending("failed", str(error))
        with self._changed:
            if self._closed and ending.state == "failed":  # the closing itself makes runs fail
                ending = CLOSED_RUNNING
            group.remove(entry)
            self._end(entry, ending)

    def _start(self, entry: _Entry) -> Ending | None:
        """Mark the run as running; return how it ended if it was stopped before."""
        with self._changed:
            if entry.ended or self._closed:
                return CLOSED_WAITING
            if self.store.stop_requested(entry.id):
                return NEVER_STARTED
            self.store.set_state(entry.id, "running", started=time.time())
        return None

    def _end(self, entry: _Entry, ending: Ending) -> None:
        """Write how a run ended, once, and wake waiting threads. Never raises, not even on a full disk."""
        if not entry.ended:
            entry.ended = True
            try:
                self.store.set_state(entry.id, ending.state, ended=time.time(), message=ending.message)
            except Exception as error:
                _log.error("Run %s is %s, which could not be written: %s", entry.id, ending.state, error)
        self._changed.notify_all()


def queue_of(device: str) -> str:
    """Return the name of the queue of a device: `auto` is cuda:0 where there is one, otherwise cpu.

    Raises:
        ConfigError: no such device, or none on this machine.
    """
    if device == "cpu":
        return device
    from npd_core.device import resolve_device

    found = resolve_device(device)
    return f"cuda:{found.index or 0}" if found.type == "cuda" else str(found)


def manager() -> RunManager:
    """Return the manager of this process for `paths.runs()`; its runs are carried out in worker processes."""
    root = paths.runs()
    with _lock:
        found = _by_root.get(root)
        if found is None or found.closed:
            found = _by_root[root] = RunManager(RunStore(root), worker.work)
        return found


_lock = threading.Lock()
_by_root: dict[Path, RunManager] = {}
_managers: weakref.WeakSet[RunManager] = weakref.WeakSet()
_frozen = False


def is_current(run: Run) -> bool:
    """Return whether a finished run used the present weights of its model, not earlier ones."""
    try:
        name = "repaired.json" if run.request.defense in CONFIGS else "polarizer.json"
        of_run = json.loads((run.folder / name).read_bytes())["model_sha256"]
        return bool(of_run == Zoo().card(run.request.model).files["model.safetensors"])
    except (NPDError, OSError, ValueError, KeyError, TypeError):
        return True  # unknown: taken as current


def _freeze_once() -> None:
    """Exclude all that was imported from garbage collection, so that collections between runs are short."""
    global _frozen
    with _lock:
        if not _frozen:
            gc.collect()
            gc.freeze()
            _frozen = True


@atexit.register
def _close_all() -> None:
    """End all work before the interpreter exits: a thread inside native code would abort the process."""
    managers = list(_managers)
    for each in managers:
        each.shutdown()
    worker.close_all()
    for each in managers:
        for thread in each._threads.values():
            thread.join(10.0)
    gc.unfreeze()  # otherwise native libraries report leaks

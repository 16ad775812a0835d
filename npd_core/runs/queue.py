"""Runs are worked through here, outside any page script: one worker thread and one queue per device, shared by all.

A page asks (`submit`, `race`, `cancel`, `position`) and reads the store; a reload or a closed tab changes nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import cast

from npd_core import paths
from npd_core.config.baselines import CONFIGS
from npd_core.config.request import DefenseRequest
from npd_core.errors import ConfigError, KilledError, NPDError, StorageError, out_of_memory
from npd_core.events import EpochEnd, Event, Failed, Finished, Measured
from npd_core.runs.store import RESULT, Owner, Run, RunStore, State, Thinner
from npd_core.runs.worker import run_apart
from npd_core.zoo import Zoo

Execute = Callable[[DefenseRequest, Path, Callable[[], bool]], Iterator[Event]]
"""`run_defense(request, out, stop)`: yields events, saves into `out`, ends soon after `stop()` turns true."""

STOPPED_EARLY = "Stopped early; the best state so far is kept."
NEVER_STARTED = "Stopped before it started."
UNEXPECTED = (
    "The run ended by an unexpected error, told in the log of the app. Start it again or change its settings."
)
NO_MEMORY = "The run needs more memory than there is: ask for fewer clean images, or for smaller batches."
CLOSED = "The app was closed while this run {}. Start it again to finish it."

_log = logging.getLogger(__name__)


class _Job:
    """A run that waits or runs in this process."""

    def __init__(self, run_id: str, request: DefenseRequest, device: str) -> None:
        self.id, self.request, self.device = run_id, request, device
        self.stop = threading.Event()
        self.over = threading.Event()
        """Its end is told: nothing that the worker still does with it changes that."""


_Heat = list[_Job]
"""What has the device at one time: one run, or the two of a race, which take turns."""
_Turns = Generator[None, None, tuple[State, str]]


class RunManager:
    """Takes requests and runs them, one at a time per device; the two runs of a race by turns. Thread-safe."""

    def __init__(
        self,
        store: RunStore,
        execute: Execute | None = None,
        *,
        max_epochs: int = 200,
        max_waiting: int = 64,
        step_seconds: float = 0.1,
    ) -> None:
        """Marks what a dead process left behind as interrupted.

        Args:
            store: where the runs are kept.
            execute: what runs a request; None: `npd_core.defend.run_defense`.
            max_epochs: most epochs (and most warm-up epochs) that a request may ask for.
            max_waiting: most runs that wait per device.
            step_seconds: least time between two steps that are read and written.
        """
        self.store = store
        self._execute = execute
        self._max_epochs, self._max_waiting, self._step_seconds = max_epochs, max_waiting, step_seconds
        self._changed = threading.Condition(threading.RLock())
        self._waiting: dict[str, deque[_Heat]] = {}
        self._running: dict[str, _Heat] = {}
        self._workers: dict[str, threading.Thread] = {}
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
        """The id of the run that answers `request`: an identical one that is there, otherwise a new run.

        Raises:
            ConfigError: more epochs than this server allows, or a device that is not here.
            StorageError: the run cannot be written.
            NPDError: the queue is full or closed.
        """
        return self._submit([request])[0]

    def race(self, first: DefenseRequest, second: DefenseRequest) -> tuple[str, str]:
        """The ids of the runs that answer both requests, as `submit` finds them, in this order.

        Where both are new and of one device, they are worked by turns, epoch by epoch. Each is a run like any other:
        the end of one, by itself or by `cancel`, leaves the device to the other. Raises as `submit`.
        """
        one, other = self._submit([first, second])
        return one, other

    def _submit(self, requests: list[DefenseRequest]) -> list[str]:
        devices = [self._check(request) for request in requests]
        self._load()
        with self._changed:
            if self._closed:
                raise NPDError("The app is closing and takes no more runs: start it again.")
            for request, device in zip(requests, devices, strict=True):
                full = len(self._waiting.get(device, ())) >= self._max_waiting
                if full and not self.store.joinable(request, is_current):
                    reason = f"{self._max_waiting} runs are waiting already"
                    raise NPDError(f"{reason}: try again when some of them have ended.")
            if self._owner is None:
                self._owner = Owner(self.store.root)
            ids, heats = [], dict[str, _Heat]()
            try:
                for request, device in zip(requests, devices, strict=True):
                    run_id, new = self.store.join_or_create(
                        request, owner=self._owner.name, usable=is_current
                    )
                    ids.append(run_id)
                    if new:
                        heats.setdefault(device, []).append(_Job(run_id, request, device))
            finally:  # what was created is worked, even where the next could not be written
                for device, heat in heats.items():
                    self._waiting.setdefault(device, deque()).append(heat)
                    if device not in self._workers:
                        worker = threading.Thread(
                            target=self._work, args=(device,), name=f"npd-{device}", daemon=True
                        )
                        self._workers[device] = worker
                        worker.start()
                self._changed.notify_all()
            return ids

    def cancel(self, run_id: str) -> None:
        """Ends a run: a waiting one at once, a running one after its step, with the best state so far kept.

        An ended run stays as it is. A run of another process is asked to end. Raises as `RunStore.get`.
        """
        with self._changed:
            for queue in self._waiting.values():
                for heat in queue:
                    for job in heat:
                        if job.id == run_id:
                            heat.remove(job)
                            if not heat:
                                queue.remove(heat)
                            self._end(job, "stopped", NEVER_STARTED)
                            return
            for heat in self._running.values():
                for job in heat:
                    if job.id == run_id:
                        job.stop.set()
                        with contextlib.suppress(StorageError):
                            self.store.ask_stop(run_id)  # so that nobody joins what is about to end
                        return
            if self.store.get(run_id).active:
                self.store.ask_stop(run_id)

    def position(self, run_id: str) -> int | None:
        """0: running; 1: next in its queue; 2, 3, ... ; None: neither runs nor waits in this process. The runs of a
        race share a place."""
        with self._changed:
            if any(job.id == run_id for heat in self._running.values() for job in heat):
                return 0
            for queue in self._waiting.values():
                for place, heat in enumerate(queue, start=1):
                    if any(job.id == run_id for job in heat):
                        return place
        return None

    def wait(self, run_id: str, timeout: float | None = None) -> Run:
        """Waits for the end of the run, at most `timeout` seconds, and returns it as it then is. Raises as `get`."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while (run := self.store.get(run_id)).active:
                left = 0.5 if end is None else min(end - time.monotonic(), 0.5)
                if left <= 0:
                    break
                self._changed.wait(left)
        return run

    def shutdown(self, timeout: float = 5.0) -> None:
        """Takes no more runs and asks those that run to stop; what goes on after `timeout` seconds is interrupted."""
        end = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            for queue in self._waiting.values():
                while queue:
                    for job in queue.popleft():
                        self._end(job, "interrupted", CLOSED.format("waited"))
            for heat in self._running.values():
                for job in heat:
                    job.stop.set()
            self._changed.notify_all()
        for worker in list(self._workers.values()):
            if worker is not threading.current_thread():
                worker.join(max(end - time.monotonic(), 0.0))
        with self._changed:
            for heat in self._running.values():
                for job in heat:
                    self._end(job, "interrupted", CLOSED.format("ran"))
            if self._owner is not None:
                self._owner.release()
                self._owner = None
        _managers.discard(self)

    # inside

    def _check(self, request: DefenseRequest) -> str:
        """The device of the request. Raises ConfigError, UnknownNameError."""
        for name in ("epochs", "warmup_epochs"):
            asked = getattr(request.config, name, 0)  # not every baseline has epochs
            if asked > self._max_epochs:
                raise ConfigError(
                    f"`{name}` is limited to {self._max_epochs} in the app, got {asked}: ask for fewer, "
                    "or train from the command line with `npd defend`."
                )
        return queue_of(request.device)

    def _load(self) -> None:
        """Imports what runs a request on the caller's thread: a first import inside a worker races with the pages'."""
        if self._execute is None:
            from npd_core.defend import run_defense

            self._execute = cast(Execute, run_defense)
        _freeze_once()

    def _work(self, device: str) -> None:
        while True:
            with self._changed:
                while not self._waiting[device]:
                    if self._closed:
                        return
                    self._changed.wait()
                heat = self._running[device] = self._waiting[device].popleft()
            turns = deque((job, self._run(job)) for job in heat)
            while turns:
                job, run = turns.popleft()
                try:
                    next(run)
                    turns.append((job, run))
                    continue
                except StopIteration as end:
                    state, message = end.value
                except KilledError as error:
                    state, message = "interrupted", str(error)
                except NPDError as error:
                    state, message = "failed", str(error)
                except BaseException as error:
                    if not job.over.is_set():  # else the app is closing, and has told its end
                        _log.exception("Run %s ended by an unexpected error.", job.id)
                    state, message = "failed", NO_MEMORY if out_of_memory(error) else UNEXPECTED
                with self._changed:
                    if self._closed and state == "failed":  # much else ends with the process, the run with it
                        state, message = "interrupted", CLOSED.format("ran")
                    self._end(job, state, message)
                    heat.remove(job)
                    if not heat:
                        del self._running[device]
                gc.collect()

    def _run(self, job: _Job) -> _Turns:
        """Runs one job to its end, pausing after each epoch, and returns how it ended. Raises whatever the run
        raises."""
        store, thin, execute = self.store, Thinner(self._step_seconds), cast(Execute, self._execute)
        if job.stop.is_set() or store.stop_asked(job.id):
            return ("interrupted", CLOSED.format("waited")) if self._closed else ("stopped", NEVER_STARTED)
        with self._changed:
            if job.over.is_set():
                return "interrupted", CLOSED.format("waited")
            store.set_state(job.id, "running", started=time.time())
        looked = time.monotonic()

        def stop() -> bool:
            nonlocal looked
            if not job.stop.is_set() and time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                if store.stop_asked(job.id):
                    job.stop.set()
            return job.stop.is_set()

        last: Event | None = None
        folder = store.get(job.id).folder
        with store.writer(job.id) as write, contextlib.ExitStack() as stack:
            events = execute(job.request, folder, stop)
            if isinstance(events, Generator):
                stack.callback(events.close)
            for event in events:
                if job.over.is_set():
                    break
                for kept in thin(event):
                    write(kept)
                last = event
                if isinstance(event, EpochEnd | Measured):
                    yield
        if job.over.is_set():
            return "interrupted", CLOSED.format("ran")
        if isinstance(last, Finished | Failed) and not (folder / RESULT).exists():
            store.set_result(job.id, last.result)
        if isinstance(last, Failed):
            return "failed", last.reason
        if isinstance(last, Finished):
            return ("stopped", STOPPED_EARLY) if last.stopped else ("finished", "")
        raise RuntimeError(f"run {job.id} ended without Finished or Failed")

    def _end(self, job: _Job, state: State, message: str) -> None:
        """Writes how a job ended, once, and tells who waits. Never raises: a full disk must not end the worker."""
        if not job.over.is_set():
            job.over.set()
            try:
                self.store.set_state(job.id, state, ended=time.time(), message=message)
            except Exception as error:
                _log.error("Run %s is %s, which could not be written: %s", job.id, state, error)
        self._changed.notify_all()


def queue_of(device: str) -> str:
    """Name of the queue of a device: `auto` is that of cuda:0 where there is one, otherwise cpu.

    Raises:
        ConfigError: no such device, or none on this machine.
    """
    if device == "cpu":
        return device
    from npd_core.device import resolve_device

    found = resolve_device(device)
    return f"cuda:{found.index or 0}" if found.type == "cuda" else str(found)


def manager() -> RunManager:
    """The one manager of this process for `paths.runs()`; a page script that runs again finds the same one.

    Its runs are worked in a process of their own, which thins their steps.
    """
    root = paths.runs()
    with _lock:
        found = _by_root.get(root)
        if found is None or found.closed:
            found = _by_root[root] = RunManager(RunStore(root), run_apart, step_seconds=0.0)
        return found


_lock = threading.Lock()
_by_root: dict[Path, RunManager] = {}
_managers: weakref.WeakSet[RunManager] = weakref.WeakSet()
_frozen = False


def is_current(run: Run) -> bool:
    """Whether a finished run is about the model as it is now; False once the model of this name was trained anew."""
    try:
        name = "repaired.json" if run.request.defense in CONFIGS else "polarizer.json"
        of_run = json.loads((run.folder / name).read_bytes())["model_sha256"]
        return bool(of_run == Zoo().card(run.request.model).files["model.safetensors"])
    except (NPDError, OSError, ValueError, KeyError, TypeError):
        return True  # nothing says otherwise


def _freeze_once() -> None:
    """Takes all that was imported out of the garbage collector's sight, so that collections between runs are short."""
    global _frozen
    with _lock:
        if not _frozen:
            gc.collect()
            gc.freeze()
            _frozen = True


@atexit.register
def _close_all() -> None:
    """Before the interpreter goes: a worker inside native code that it is taken away from would abort the process."""
    for each in list(_managers):
        each.shutdown()
        for worker in each._workers.values():
            worker.join(10.0)
    gc.unfreeze()  # what is never collected is reported as leaked by native libraries

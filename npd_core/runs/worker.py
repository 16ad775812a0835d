"""Runs in a process of their own: a training and the pages of the app then do not take turns at one interpreter.

The process lives as long as this one and keeps what it imported. It reads commands and writes answers, a JSON object a
line. `begin` names a run, `next` asks for its events up to the end of an epoch, `stop` for an early end, `drop` that it
be forgotten. It is told nothing else, and ends when nobody can tell it anything any more.

Not `multiprocessing`, as `npd_core.experiments.workers` uses: its processes import the main module of their parent,
which under Streamlit is the app.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any

from npd_core import paths
from npd_core.config.request import DefenseRequest
from npd_core.errors import KilledError, NPDError, out_of_memory
from npd_core.events import EpochEnd, Event, Measured, from_record, to_record
from npd_core.runs.store import Thinner

LOOK = 0.2
"""Seconds between two looks at whether the run was asked to stop."""
OURS = "NPD_"
"""How the environment variables begin that a run is worked under; they are those of the moment it begins."""
GONE: dict[str, Any] = {"type": "gone"}
KILLED = (
    "The process of this training was ended, as the system does when memory runs out. Start it again; if it happens "
    "once more, ask for fewer clean images or smaller batches."
)

_log = logging.getLogger(__name__)


def run_apart(request: DefenseRequest, out: Path, stop: Callable[[], bool]) -> Iterator[Event]:
    """`npd_core.defend.run_defense` in the other process; of the steps only a few a second come across.

    Raises:
        NPDError: what the run raised, as its sentence.
        KilledError: the process was ended from outside.
        MemoryError: it asked for too much.
        RuntimeError: anything else, told in full on the standard error of the process.
    """
    worker = _worker(request.device)
    job, answers = worker.begin(request, out)
    asked = False
    try:
        worker.tell("next", job)
        while True:
            try:
                answer = answers.get(timeout=LOOK)
            except queue.Empty:
                answer = None
            if not asked and stop():
                asked = True
                worker.tell("stop", job)
            if answer is None:
                continue
            match answer["type"]:
                case "over":
                    return
                case "refused":
                    raise NPDError(answer["message"])
                case "memory":
                    raise MemoryError(answer["message"])
                case "error":
                    raise RuntimeError(answer["message"])
                case "gone":
                    code = worker.process.wait()
                    if code < 0:
                        raise KilledError(KILLED)
                    raise RuntimeError(f"the process of the training ended with {code}")
            event = from_record(answer)
            yield event
            if isinstance(event, EpochEnd | Measured):
                worker.tell("next", job)
    finally:
        worker.drop(job)


def warm() -> None:
    """Starts the process, so that the first run need not wait for its imports."""
    _worker("auto")


class _Worker:
    """The other process, seen from here."""

    def __init__(self) -> None:
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join([str(paths.ROOT), os.environ.get("PYTHONPATH", "")])
        # Threads that spin while they wait for each other leave the pages no processor; sleeping costs a run nothing.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "npd_core.runs.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._gone = False
        threading.Thread(target=self._read, name="npd-answers", daemon=True).start()

    @property
    def lives(self) -> bool:
        return not self._gone and self.process.poll() is None

    def begin(self, request: DefenseRequest, out: Path) -> tuple[int, queue.SimpleQueue[dict[str, Any]]]:
        """A number for this run, and where its answers arrive."""
        job = next(self._numbers)
        answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self._lock:
            self._answers[job] = answers
            if self._gone:
                answers.put(GONE)
        ours = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
        self.tell("begin", job, request=request.to_dict(), out=str(out), environment=ours)
        return job, answers

    def tell(self, what: str, job: int, **more: Any) -> None:
        """Send a command. One that cannot be sent is followed by the answer that the process is gone."""
        line = json.dumps({"do": what, "job": job, **more}).encode() + b"\n"
        assert self.process.stdin is not None
        with self._lock, contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def drop(self, job: int) -> None:
        """Nothing more is wanted of this run."""
        with self._lock:
            self._answers.pop(job, None)
        self.tell("drop", job)

    def close(self) -> None:
        """Ends the process: it goes when its input ends."""
        assert self.process.stdin is not None
        with self._lock, contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            with self.process.stdout as lines:
                for line in lines:
                    try:
                        answer = json.loads(line)
                        job = answer.pop("job")
                    except (ValueError, AttributeError, KeyError):
                        continue  # torn where the process was killed, or printed by something else
                    with self._lock:
                        answers = self._answers.get(job)
                    if answers is not None:
                        answers.put(answer)
        finally:
            with self._lock:
                self._gone = True
                for answers in self._answers.values():
                    answers.put(GONE)


_workers: dict[str, _Worker] = {}
_starting = threading.Lock()


def _worker(device: str) -> _Worker:
    """The process for runs on this device; started where there is none, or where it has died."""
    with _starting:
        found = _workers.get(device)
        if found is None or not found.lives:
            if found is not None:
                found.close()
            found = _workers[device] = _Worker()
        return found


@atexit.register
def _close() -> None:
    for worker in _workers.values():
        worker.close()


# ----------------------------------------------------------------------------------------------- in the other process


class Desk:
    """Works at the runs of this process, one epoch at a time, each when it is asked for."""

    def __init__(self, answer: Callable[[dict[str, Any]], None]) -> None:
        """Args: answer: sends an object to who asked."""
        self._answer = answer
        self._runs: dict[int, Generator[dict[str, Any], None, None]] = {}
        self._stopped: set[int] = set()

    def hear(self, command: dict[str, Any]) -> None:
        """Takes notice of a command as soon as it comes, in the midst of an epoch."""
        if command["do"] in ("stop", "drop"):
            self._stopped.add(command["job"])

    def do(self, command: dict[str, Any]) -> None:
        """Carries a command out, in the order in which they came."""
        job = command["job"]
        match command["do"]:
            case "begin":
                for name in [name for name in os.environ if name.startswith(OURS)]:
                    del os.environ[name]
                os.environ.update(command["environment"])
                self._runs[job] = self._events(job, command)
            case "next" if job in self._runs:
                for record in self._runs[job]:
                    self._answer(record | {"job": job})
                    if record["type"] in ("EpochEnd", "Measured"):
                        return
                self._forget(job)
            case "drop":
                self._forget(job)

    def _forget(self, job: int) -> None:
        events = self._runs.pop(job, None)
        if events is not None:
            events.close()
        self._stopped.discard(job)

    def _events(self, job: int, command: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The records of a run, and how it ended."""
        thin = Thinner()
        try:
            from npd_core.defend import run_defense

            request = DefenseRequest.from_dict(command["request"])
            for event in run_defense(request, Path(command["out"]), lambda: job in self._stopped):
                yield from map(to_record, thin(event))
        except NPDError as error:
            yield {"type": "refused", "message": str(error)}
        except Exception as error:
            _log.exception("A run ended by an unexpected error.")
            yield {
                "type": "memory" if out_of_memory(error) else "error",
                "message": f"{type(error).__name__}: {error}",
            }
        else:
            yield {"type": "over"}


def main() -> None:
    """Serve until the input ends."""
    for ending in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # may reach a whole group of processes; the app tells us to stop
        signal.signal(ending, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    desk = Desk(lambda record: print(json.dumps(record), file=answers))

    def listen(lines: IO[bytes]) -> None:
        for line in lines:
            command = json.loads(line)
            desk.hear(command)
            commands.put(command)
        os._exit(0)  # whoever asked is gone, and nobody reads an answer

    threading.Thread(target=listen, args=(sys.stdin.buffer,), daemon=True).start()
    import npd_core.defend  # noqa: F401  before the first run asks for it

    while True:
        desk.do(commands.get())


if __name__ == "__main__":
    main()

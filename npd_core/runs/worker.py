"""Worker processes, so that a training and the pages of the app do not share one interpreter.

A worker keeps its imports, takes one run at a time, and writes the folder of the run. A line on its standard
input, `{"run": FOLDER, "environment": {...}}`, starts a run; a line on its standard output, `{"state": ...,
"message": ...}`, reports its end. The worker exits when its input closes, even during a run.

`multiprocessing`, which `npd_core.experiments.workers` uses, does not fit: its processes import the main
module of their parent, and under Streamlit that is the app.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from npd_core import paths
from npd_core.plugins import load_plugins
from npd_core.runs.store import Ending
from npd_core.runs.work import UNEXPECTED, work_through

PREFIX = "NPD_"
"""Start of the names of the environment variables that a run gets, with their values when it starts."""
KILLED = (
    "The process of this training was killed, as the system does when memory runs out. Start it again; if it "
    "is killed again, use fewer clean images or smaller batches."
)


class Worker:
    """A worker process, seen from the app."""

    def __init__(self) -> None:
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join([str(paths.ROOT), os.environ.get("PYTHONPATH", "")])
        # Threads that spin while they wait would take the processor from the pages.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        command = [sys.executable, "-m", "npd_core.runs.worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def work(self, folder: Path) -> Ending:
        """Carry out the run in `folder` and wait for its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        variables = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(json.dumps({"run": str(folder), "environment": variables}) + "\n")
            self.process.stdin.flush()
        try:
            answer = json.loads(self.process.stdout.readline())
            return Ending(answer["state"], answer["message"])
        except (ValueError, TypeError, KeyError):  # the end of the stream, or a line torn by it
            self.close()
            killed = self.process.returncode < 0
            return Ending("interrupted", KILLED) if killed else Ending("failed", UNEXPECTED)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


_idle: list[Worker] = []
_busy: set[Worker] = set()
_lock = threading.Lock()


def work(folder: Path) -> Ending:
    """Carry out the run in `folder` in a worker process: an idle one if there is one, otherwise a new one."""
    worker = _take()
    try:
        return worker.work(folder)
    finally:
        with _lock:
            _busy.discard(worker)
            keep = worker.alive and not _idle
            if keep:
                _idle.append(worker)
        if not keep:
            worker.close()


def warm() -> None:
    """Start a worker now, so that the first run does not wait for its imports."""
    with _lock:
        if not _idle and not _busy:
            _idle.append(Worker())


def _take() -> Worker:
    with _lock:
        while _idle:
            worker = _idle.pop()
            if worker.alive:
                break
        else:
            worker = Worker()
        _busy.add(worker)
        return worker


@atexit.register
def close_all() -> None:
    """End every worker of this process."""
    with _lock:
        workers = [*_idle, *_busy]
        _idle.clear()
    for worker in workers:
        worker.close()


def main() -> None:
    """Serve as a worker until the input is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole process group; the app decides
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # so that prints of a library are not answers
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            commands.put(json.loads(line))
        os._exit(0)  # the app is gone

    threading.Thread(target=listen, daemon=True).start()
    import npd_core.defend  # noqa: F401  before the first run needs it

    load_plugins()

    while True:
        command = commands.get()
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        os.environ.update(command["environment"])
        ending = work_through(Path(command["run"]))
        print(json.dumps(ending._asdict()), file=answers)


if __name__ == "__main__":
    main()

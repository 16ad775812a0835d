"""Run tasks in processes of this machine. When a process is killed, its task is run again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

THREADS = "OMP_NUM_THREADS"
"""Read by torch when a process imports it."""

Message = str | dict[str, Any]
Function = Callable[[Any], Iterator[Message]]
"""Runs a task: yields progress texts, and at the end its result as a dict. A worker process imports it by
name, so it must be at the top level of a module."""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: int | None = None
    """Number of its current task."""


def run_local(
    function: Function, tasks: Sequence[Any], *, workers: int = 1, tries: int = 3
) -> Iterator[tuple[int, Message]]:
    """Run all tasks in `workers` processes, which share the machine's threads.

    Args:
        tries: how often a task is started whose process dies; after that, its result is {"failed": ...}.
    Yields:
        The number of a task, and what the function yields for it.
    """
    waiting = deque(range(len(tasks)))
    starts = [0] * len(tasks)
    live: list[_Worker] = []
    try:
        while waiting or any(worker.task is not None for worker in live):
            while waiting and sum(worker.task is not None for worker in live) < workers:
                worker = next((w for w in live if w.task is None), None)
                if worker is None:
                    live.append(worker := _start(function, workers))
                worker.task = waiting.popleft()
                starts[worker.task] += 1
                with contextlib.suppress(OSError):  # the process died; handled below
                    worker.connection.send(tasks[worker.task])
            busy = {worker.connection: worker for worker in live if worker.task is not None}
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy[connection]
                task = worker.task
                assert task is not None
                try:
                    message: Message = connection.recv()
                except (EOFError, OSError):
                    live.remove(worker)
                    worker.process.join()
                    if starts[task] < tries:
                        waiting.appendleft(task)
                        continue
                    message = {"failed": _died(worker.process.exitcode, tries)}
                if isinstance(message, dict):
                    worker.task = None
                yield task, message
    finally:
        for worker in live:
            worker.process.kill()
        for worker in live:
            worker.process.join()
            worker.connection.close()


def _died(exitcode: int | None, tries: int) -> str:
    return (
        f"The worker process died {tries} times (exit code {exitcode}); where memory is short, "
        "use fewer workers."
    )


def _start(function: Function, workers: int) -> _Worker:
    """Start a process with its share of the threads. It starts with SIGINT blocked: this process handles
    Ctrl-C."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    resource_tracker.ensure_running()  # starting it later would unblock SIGINT
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threads = os.environ.get(THREADS)
    try:
        if workers > 1:
            whole = int(threads) if threads and threads.isdecimal() else len(os.sched_getaffinity(0))
            os.environ[THREADS] = str(max(1, whole // workers))
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if threads is None:
            os.environ.pop(THREADS, None)
        else:
            os.environ[THREADS] = threads
    theirs.close()
    return _Worker(process, ours)


def _serve(connection: Connection, function: Function) -> None:
    """Read tasks and send messages until the other end is closed."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            for message in function(connection.recv()):
                connection.send(message)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)

"""Worker processes: what is killed is done again, what was done stays done."""

from __future__ import annotations

import multiprocessing
import os
import sys

import pytest

from npd_core.experiments.workers import run_local

TASKS = """
import os, signal
from pathlib import Path

def square(number):
    yield f"at {number}"
    yield {"square": number * number, "pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}

def die_once(marker):
    if marker and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield {"pid": os.getpid()}

def die(task):
    if task == "die":
        os._exit(7)
    yield {"task": task}

def wait_for(paths):
    mine, other = paths
    Path(mine).touch()
    while not Path(other).exists():
        pass
    yield {"met": True}
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A module that the worker processes can import too."""
    (tmp_path / "tasks_of_this_test.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import tasks_of_this_test

    yield tasks_of_this_test
    del sys.modules["tasks_of_this_test"]


def results(messages) -> dict[int, dict]:
    return {number: message for number, message in messages if isinstance(message, dict)}


def test_one_process_does_all_tasks_and_says_how_far_it_is(tasks):
    messages = list(run_local(tasks.square, [3, 4]))
    assert [(n, m) for n, m in messages if isinstance(m, str)] == [(0, "at 3"), (1, "at 4")]
    found = results(messages)
    assert [found[n]["square"] for n in (0, 1)] == [9, 16]
    assert found[0]["pid"] == found[1]["pid"] != os.getpid()
    assert multiprocessing.active_children() == []


def test_two_processes_work_at_the_same_time_and_share_the_threads(tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert results(run_local(tasks.wait_for, [(a, b), (b, a)], workers=2)) == {
        0: {"met": True},
        1: {"met": True},
    }
    found = results(run_local(tasks.square, [1, 2], workers=2))
    assert {result["threads"] for result in found.values()} == {"4"}
    assert os.environ["OMP_NUM_THREADS"] == "8"


def test_what_a_killed_worker_was_doing_is_done_again(tasks, tmp_path):
    found = results(run_local(tasks.die_once, ["", str(tmp_path / "marker"), ""]))
    assert sorted(found) == [0, 1, 2]
    assert found[0]["pid"] != found[1]["pid"]


def test_a_task_that_kills_every_worker_fails_and_the_others_do_not(tasks):
    found = results(run_local(tasks.die, ["a", "die", "b"], tries=2))
    assert (found[0], found[2]) == ({"task": "a"}, {"task": "b"})
    assert found[1]["failed"].startswith("The worker process died 2 times (exit code 7)")


def test_leaving_early_leaves_no_process(tasks, tmp_path):
    running = run_local(tasks.square, [1, 2])
    assert next(running) == (0, "at 1")
    (worker,) = multiprocessing.active_children()
    running.close()
    assert not worker.is_alive()
    assert multiprocessing.active_children() == []


def test_no_tasks_start_no_process(tasks):
    assert list(run_local(tasks.square, [])) == []

"""Runs in a process of their own: they do what they would do here, and what befalls the process befalls one run."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from npd_core import paths
from npd_core.config.npd import NPDConfig
from npd_core.config.request import DefenseRequest
from npd_core.defend import run_defense
from npd_core.errors import NPDError
from npd_core.events import EpochEnd, Event, Finished, Started, StepEnd
from npd_core.runs import worker
from npd_core.runs.queue import RunManager
from npd_core.runs.store import RunStore
from npd_core.runs.worker import Desk, run_apart

pytestmark = pytest.mark.timeout(600)


def never() -> bool:
    return False


def request(model: str, epochs: int = 2, **values: Any) -> DefenseRequest:
    config = NPDConfig(epochs=epochs, warmup_epochs=1, batch_size=16)
    return DefenseRequest(model=model, clean=32, eval_images=16, device="cpu", config=config, **values)


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """No process is left behind by the tests of this file."""
    yield
    found = worker._workers.pop("cpu", None)
    if found is not None:
        found.close()
        assert found.process.returncode == 0


def test_a_run_is_the_same_there_as_here(tiny_zoo: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    mine = list(run_defense(request(tiny_zoo), here))
    other = list(run_apart(request(tiny_zoo), there, never))
    kinds = [type(event).__name__ for event in other]
    assert kinds[0] == "Started"
    assert kinds[-1] == "Finished"
    assert [k for k in kinds if k != "StepEnd"] == [
        type(e).__name__ for e in mine if not isinstance(e, StepEnd)
    ]
    assert 0 < kinds.count("StepEnd") <= sum(isinstance(event, StepEnd) for event in mine)
    means = [[event.losses for event in events if isinstance(event, EpochEnd)] for events in (mine, other)]
    for one, two in zip(*means, strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    assert isinstance(mine[-1], Finished)
    assert isinstance(other[-1], Finished)
    assert other[-1].result["after"] == mine[-1].result["after"]
    assert sorted(path.name for path in here.iterdir()) == sorted(path.name for path in there.iterdir())


def test_two_runs_take_turns_and_one_is_stopped(tiny_zoo: str, tmp_path: Path) -> None:
    asked = threading.Event()
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    one = run_apart(request(tiny_zoo, 50), folders[0], asked.is_set)
    two = run_apart(request(tiny_zoo, 2, layer="layer4.0.conv1"), folders[1], never)

    def epoch(run: Iterator[Event]) -> Event:
        return next(event for event in run if isinstance(event, EpochEnd | Finished))

    seen = [epoch(run) for _ in range(2) for run in (one, two)]
    assert all(isinstance(event, EpochEnd) for event in seen)
    asked.set()
    (*_, end) = one
    assert isinstance(end, Finished)
    assert end.stopped
    (*_, end) = two
    assert isinstance(end, Finished)
    assert not end.stopped


def test_what_the_run_refuses_comes_as_its_sentence(tiny_zoo: str, tmp_path: Path) -> None:
    with pytest.raises(NPDError, match="layer9"):
        list(run_apart(request(tiny_zoo, layer="layer9"), tmp_path, never))


def test_a_run_that_is_let_go_of_leaves_room_for_the_next(tiny_zoo: str, tmp_path: Path) -> None:
    run = run_apart(request(tiny_zoo, 50), tmp_path, never)
    assert isinstance(next(run), Started)
    process = worker._workers["cpu"].process
    for ending in (signal.SIGINT, signal.SIGTERM):  # meant for the app, though the whole group may hear them
        process.send_signal(ending)
    run.close()  # type: ignore[attr-defined]
    assert isinstance(list(run_apart(request(tiny_zoo, 1), tmp_path, never))[-1], Finished)
    assert worker._workers["cpu"].process is process


def test_a_process_that_was_killed_interrupts_one_run_and_the_next_has_a_new_one(
    tiny_zoo: str, tmp_path: Path, caplog: Any
) -> None:
    jobs = RunManager(RunStore(tmp_path), run_apart, step_seconds=0.0)
    first = jobs.submit(request(tiny_zoo, 150))
    end = time.monotonic() + 300
    while not jobs.store.events(first) and time.monotonic() < end:
        time.sleep(0.01)
    worker._workers["cpu"].process.send_signal(signal.SIGKILL)
    run = jobs.wait(first, 300)
    assert run.state == "interrupted"
    assert "when memory runs out. Start it again" in run.message
    second = jobs.wait(jobs.submit(request(tiny_zoo, 1)), 300)
    assert second.state == "finished", second.message
    assert second.result is not None
    jobs.shutdown()


def test_a_torn_line_does_not_hide_that_the_process_is_gone() -> None:
    peer = worker._Worker.__new__(worker._Worker)
    peer.process = SimpleNamespace(stdout=io.BytesIO(b'{"job": 1, "type": "a"}\nnoise\n3\n{"job": 1, "ty'))  # type: ignore[assignment]
    peer._lock, peer._gone, answers = threading.Lock(), False, queue.Queue[Any]()
    peer._answers = {1: answers}
    peer._read()
    assert peer._gone
    assert [answers.get(timeout=1) for _ in range(2)] == [{"type": "a"}, worker.GONE]


def test_the_process_ends_with_whoever_started_it() -> None:
    command = [sys.executable, "-m", "npd_core.runs.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=paths.ROOT) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"do": "next", "job": 7}).encode() + b"\n")
        process.stdin.close()
        assert process.wait(120) == 0


class Told:
    """A desk whose runs are those of `events`, and what it answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, events: Callable[..., Iterator[Event]]) -> None:
        monkeypatch.setattr("npd_core.defend.run_defense", events)
        self.answers: list[dict[str, Any]] = []
        self.desk = Desk(self.answers.append)

    def __call__(self, do: str, **more: Any) -> list[str]:
        """The types of the answers to a command."""
        before = len(self.answers)
        command = {"do": do, "job": 3, **more}
        self.desk.hear(command)
        self.desk.do(command)
        return [answer["type"] for answer in self.answers[before:]]

    def begin(self, **environment: str) -> list[str]:
        return self("begin", request=request("fake").to_dict(), out="/nowhere", environment=environment)


def test_the_desk_works_an_epoch_at_a_time_in_the_environment_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []

    def events(asked: DefenseRequest, out: Path, stop: Callable[[], bool]) -> Iterator[Event]:
        seen.extend([asked, out, os.environ["NPD_ZOO_DIR"], "NPD_DATA_DIR" in os.environ])
        yield Started(2, 0, 1, 32, "cpu")
        for epoch in range(2):
            yield EpochEnd(epoch, {"total": 1.0}, 0.1)
        yield Finished(1, 0.1, stopped=stop())

    for name in ("NPD_ZOO_DIR", "NPD_DATA_DIR", "NPD_RUNS_DIR"):
        monkeypatch.setenv(name, "here")  # remembers them all, so that the end of the test puts them back
    told = Told(monkeypatch, events)
    assert told.begin(NPD_ZOO_DIR="there") == []
    assert told("next") == ["Started", "EpochEnd"]
    assert told("next") == ["EpochEnd"]
    assert told("stop") == []
    assert told("next") == ["Finished", "over"]
    assert told.answers[-2]["stopped"]
    assert seen == [request("fake"), Path("/nowhere"), "there", False]
    assert {answer["job"] for answer in told.answers} == {3}
    assert told("next") == [], "it is over"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NPDError("Take another one."), "refused"),
        (MemoryError(), "memory"),
        (ZeroDivisionError("by zero"), "error"),
    ],
)
def test_the_desk_tells_how_a_run_went_wrong(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, caplog: Any
) -> None:
    def events(*_args: object) -> Iterator[Event]:
        yield Started(2, 0, 1, 32, "cpu")
        raise error

    told = Told(monkeypatch, events)
    told.begin()
    assert told("next") == ["Started", kind]
    assert str(error) in told.answers[-1]["message"]
    assert bool(caplog.text) == (kind != "refused")


def test_a_dropped_run_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def events(*_args: object) -> Iterator[Event]:
        try:
            yield EpochEnd(0, {"total": 1.0}, 0.1)
            yield EpochEnd(1, {"total": 1.0}, 0.1)
        finally:
            closed.append(True)

    told = Told(monkeypatch, events)
    told.begin()
    assert told("next") == ["EpochEnd"]
    assert told("drop") == []
    assert closed == [True]
    assert told("next") == []

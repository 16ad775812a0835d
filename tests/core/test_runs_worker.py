"""Worker processes: a run gives the same there as here, and the end of a process affects one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from npd_core import paths
from npd_core.config.npd import NPDConfig
from npd_core.config.request import DefenseRequest
from npd_core.errors import NPDError
from npd_core.events import EpochEnd, Event, Finished, Started, StepEnd
from npd_core.runs import worker
from npd_core.runs.queue import RunManager
from npd_core.runs.store import Ending, RunStore
from npd_core.runs.work import NO_MEMORY, UNEXPECTED, work_through

pytestmark = pytest.mark.timeout(600)


def request(model: str, epochs: int = 2, **values: Any) -> DefenseRequest:
    config = NPDConfig(epochs=epochs, warmup_epochs=1, batch_size=16, precision="fp32")
    return DefenseRequest(model=model, clean=32, eval_images=16, device="cpu", config=config, **values)


def new_run(root: Path, request_: DefenseRequest) -> Path:
    store = RunStore(root)
    return store.get(store.create(request_)).folder


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """No process is left behind by the tests of this file."""
    yield
    processes = [each.process for each in worker._idle]
    worker.close_all()
    assert not worker._busy
    assert all(process.returncode == 0 for process in processes)


def test_a_run_is_the_same_there_as_here(tiny_zoo: str, tmp_path: Path) -> None:
    folders = [new_run(tmp_path / name, request(tiny_zoo)) for name in ("here", "there")]
    assert [work_through(folders[0]), worker.work(folders[1])] == [Ending("finished")] * 2
    here, there = (RunStore(folder.parent).events(folder.name) for folder in folders)
    assert [r["losses"] for r in there if r["type"] == "EpochEnd"] == [
        pytest.approx(r["losses"], rel=1e-5) for r in here if r["type"] == "EpochEnd"
    ]
    kinds = [[r["type"] for r in records if r["type"] != "StepEnd"] for records in (here, there)]
    assert kinds[0] == kinds[1]
    assert (kinds[1][0], kinds[1][-1]) == ("Started", "Finished")
    results = [json.loads((folder / "result.json").read_bytes())["after"] for folder in folders]
    assert results[0] == results[1]
    assert sorted(path.name for path in folders[0].iterdir()) == sorted(
        path.name for path in folders[1].iterdir()
    )
    assert "clean_indices" not in json.loads((folders[1] / "polarizer.json").read_bytes())


def test_runs_of_a_comparison_train_at_the_same_time_and_one_is_stopped(
    tiny_zoo: str, tmp_path: Path
) -> None:
    jobs = RunManager(RunStore(tmp_path), worker.work)
    long, short = jobs.submit_together([request(tiny_zoo, 150), request(tiny_zoo, 2, layer="layer4.0.conv1")])
    other = jobs.wait(short, 300)
    assert other.state == "finished", other.message
    assert jobs.store.get(long).state == "running"
    jobs.cancel(long)
    assert jobs.wait(long, 300).state == "stopped"
    jobs.shutdown()
    assert len(worker._idle) == 1, "one process stays warm"


def test_an_error_of_the_run_is_its_message(tiny_zoo: str, tmp_path: Path) -> None:
    ending = worker.work(new_run(tmp_path, request(tiny_zoo, layer="layer9")))
    assert ending.state == "failed"
    assert "layer9" in ending.message


def test_the_next_run_has_the_same_process(tiny_zoo: str, tmp_path: Path) -> None:
    worker.warm()
    process = worker._idle[0].process
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the app, though the whole group may get them
        process.send_signal(number)
    assert worker.work(new_run(tmp_path, request(tiny_zoo, 1))).state == "finished"
    assert worker._idle[0].process is process


def test_a_killed_process_interrupts_one_run_and_the_next_has_a_new_one(
    tiny_zoo: str, tmp_path: Path
) -> None:
    jobs = RunManager(RunStore(tmp_path), worker.work)
    first = jobs.submit(request(tiny_zoo, 150))
    end = time.monotonic() + 300
    while not jobs.store.events(first) and time.monotonic() < end:
        time.sleep(0.01)
    (busy,) = worker._busy
    busy.process.send_signal(signal.SIGKILL)
    run = jobs.wait(first, 300)
    assert (run.state, run.message) == ("interrupted", worker.KILLED)
    second = jobs.wait(jobs.submit(request(tiny_zoo, 1)), 300)
    assert second.state == "finished", second.message
    assert second.result is not None
    jobs.shutdown()


def test_the_process_ends_with_whoever_started_it() -> None:
    command = [sys.executable, "-m", "npd_core.runs.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=paths.ROOT) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(120) == 0


def test_a_run_sees_the_environment_of_its_start(
    tiny_zoo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "empty"))
    ending = worker.work(new_run(tmp_path / "runs", request(tiny_zoo)))
    assert ending.state == "failed"
    assert tiny_zoo in ending.message


RunDefense = Callable[..., Generator[Event, None, None]]


def fake(*events: Event | Exception) -> RunDefense:
    def run(request: DefenseRequest, out: Path, stop: Callable[[], bool]) -> Generator[Event, None, None]:
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield event

    return run


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NPDError("Choose another one."), "Choose another one."),
        (MemoryError(), NO_MEMORY),
        (ZeroDivisionError("by zero"), UNEXPECTED),
    ],
)
def test_an_error_becomes_the_end_of_the_run(
    error: Exception, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = new_run(tmp_path, request("fake"))
    assert work_through(folder, fake(Started(2, 0, 1, 32, "cpu"), error)) == Ending("failed", message)
    assert [r["type"] for r in RunStore(tmp_path).events(folder.name)] == ["Started"]
    assert bool(caplog.text) == (not isinstance(error, NPDError))


def test_a_stop_file_ends_the_run_with_its_state_kept(tmp_path: Path) -> None:
    closed = []

    def run(request: DefenseRequest, out: Path, stop: Callable[[], bool]) -> Generator[Event, None, None]:
        try:
            (out / "stop").touch()
            while not stop():
                yield StepEnd(0, 0, {"total": 1.0})
            yield EpochEnd(0, {"total": 1.0}, 0.1)
            yield Finished(0, 0.1, stopped=True, result={"model": "fake"})
        finally:
            closed.append(True)

    folder = new_run(tmp_path, request("fake"))
    assert work_through(folder, run).state == "stopped"
    assert closed == [True]
    assert json.loads((folder / "result.json").read_bytes()) == {"model": "fake"}
    assert "result" not in RunStore(tmp_path).events(folder.name)[-1], "it is stored once"


def test_the_environment_of_this_process_is_left_alone(tmp_path: Path) -> None:
    before = dict(os.environ)
    work_through(new_run(tmp_path, request("fake")), fake(Finished(0, 0.1)))
    assert dict(os.environ) == before

"""Runs outside the page script: shared, queued, stoppable, and ended even when their process is killed."""

from __future__ import annotations

import errno
import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from npd_core import paths
from npd_core.config.npd import NPDConfig
from npd_core.config.request import DefenseRequest
from npd_core.errors import CheckpointError, ConfigError, NPDError, StorageError, UnknownNameError
from npd_core.events import EpochEnd, Event, Failed, Finished, Measured, Started, StepEnd
from npd_core.fileio import storage_error, write_json
from npd_core.runs import queue as queue_module
from npd_core.runs.queue import (
    CLOSED_RUNNING,
    CLOSED_WAITING,
    NEVER_STARTED,
    RunManager,
    manager,
    queue_of,
)
from npd_core.runs.store import STOPPED_EARLY, Ending, RunStore
from npd_core.runs.work import NO_MEMORY, POLL, UNEXPECTED, work_through
from npd_core.zoo import Zoo

STARTED = Started(epochs=2, warmup_epochs=0, steps_per_epoch=3, clean_images=96, device="cpu")


def request(seed: int = 0, **values: Any) -> DefenseRequest:
    return DefenseRequest(model="fake", device="cpu", config=NPDConfig(seed=seed, epochs=2), **values)


def working(run_defense: Any) -> Callable[[Path], Ending]:
    """Return the `work` of a manager: carries out the run in this process."""
    return partial(work_through, run_defense=run_defense)


class Training:
    """Stands for a defense: trains until its gate opens or it is stopped, and counts its calls."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began: list[int] = []
        self.together = self.most_together = 0
        self.lock = threading.Lock()
        self.closed = 0

    def __call__(
        self, request: DefenseRequest, out: Path, stop: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        with self.lock:
            self.began.append(request.config.seed)
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        try:
            yield STARTED
            yield StepEnd(0, 0, {"total": 1.0})
            while not self.gate.wait(0.002) and not stop():
                yield StepEnd(0, 1, {"total": 0.5})
            (out / "polarizer.json").write_text("{}")
            yield EpochEnd(0, {"total": 0.75}, 0.01)
            result = {"model": request.model, "seed": request.config.seed}
            yield Finished(0, 0.01, stopped=stop(), result=result)
        finally:
            with self.lock:
                self.together -= 1
                self.closed += 1


@pytest.fixture
def training() -> Training:
    return Training()


@pytest.fixture
def jobs(tmp_path: Path, training: Training) -> Iterator[RunManager]:
    jobs = RunManager(RunStore(tmp_path / "runs"), working(training))
    yield jobs
    training.gate.set()
    jobs.shutdown()


def with_events(tmp_path: Path, *events: Event | BaseException, **options: Any) -> RunManager:
    def execute(request: DefenseRequest, out: Path, stop: Callable[[], bool]) -> Generator[Event, None, None]:
        for event in events:
            if isinstance(event, BaseException):
                raise event
            yield event

    return RunManager(RunStore(tmp_path / "runs"), working(execute), **options)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def test_a_run_goes_from_queued_to_finished_and_is_kept(jobs: RunManager, training: Training) -> None:
    run_id = jobs.submit(request())
    until(lambda: jobs.position(run_id) == 0)
    until(lambda: len(jobs.store.events(run_id)) >= 2)
    run = jobs.store.get(run_id)
    assert (run.state, run.epochs, run.epoch, run.step) == ("running", 2, 0, run.step)
    training.gate.set()
    run = jobs.wait(run_id, 60)
    assert (run.state, run.message, run.result) == ("finished", "", {"model": "fake", "seed": 0})
    assert run.created <= run.started <= run.ended  # type: ignore[operator]
    assert (run.folder / "polarizer.json").exists()
    assert jobs.position(run_id) is None
    kinds = [record["type"] for record in jobs.store.events(run_id)]
    assert kinds[:2] == ["Started", "StepEnd"]
    assert kinds[-3:] in (["StepEnd", "EpochEnd", "Finished"], ["Started", "EpochEnd", "Finished"])


def test_a_double_click_starts_one_run(jobs: RunManager, training: Training) -> None:
    gate, ids = threading.Barrier(10), []

    def click() -> None:
        gate.wait()
        ids.append(jobs.submit(request()))

    threads = [threading.Thread(target=click) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(ids) == {request().key}
    training.gate.set()
    jobs.wait(ids[0], 60)
    assert jobs.submit(request()) == ids[0]  # the result is there already
    assert training.began == [0]


def test_a_result_about_an_older_model_is_not_shared(
    jobs: RunManager, training: Training, monkeypatch: Any
) -> None:
    training.gate.set()
    first = jobs.submit(request())
    folder = jobs.wait(first, 60).folder
    files = {"model.safetensors": "aa"}
    monkeypatch.setattr(Zoo, "card", lambda zoo, model: SimpleNamespace(files=files))
    (folder / "polarizer.json").write_text('{"model_sha256": "aa"}')
    assert jobs.submit(request()) == first
    files["model.safetensors"] = "bb"
    assert jobs.submit(request()) == f"{first}-2"


def test_runs_of_one_device_wait_in_the_order_they_came(jobs: RunManager, training: Training) -> None:
    ids = [jobs.submit(request(seed)) for seed in range(4)]
    until(lambda: training.began)
    assert [jobs.position(run_id) for run_id in ids] == [0, 1, 2, 3]
    assert [jobs.store.get(run_id).state for run_id in ids] == ["running", "queued", "queued", "queued"]
    jobs.cancel(ids[1])
    assert [jobs.position(run_id) for run_id in ids] == [0, None, 1, 2]
    training.gate.set()
    assert [jobs.wait(run_id, 60).state for run_id in ids] == ["finished", "stopped", "finished", "finished"]
    assert training.began == [0, 2, 3]
    assert training.most_together == 1


def test_devices_do_not_wait_for_each_other(jobs: RunManager, training: Training, monkeypatch: Any) -> None:
    monkeypatch.setattr(queue_module, "queue_of", lambda device: device)
    ids = [jobs.submit(replace(request(), device=device)) for device in ("cpu", "cuda:0")]
    until(lambda: [jobs.position(run_id) for run_id in ids] == [0, 0])
    until(lambda: training.most_together == 2)


def test_a_cancelled_run_keeps_its_best_state_and_can_be_submitted_again(
    jobs: RunManager, training: Training
) -> None:
    run_id = jobs.submit(request())
    until(lambda: training.began)  # position 0 comes earlier, when a stop keeps nothing
    thread = threading.Thread(target=jobs.cancel, args=(run_id,))  # from another tab
    thread.start()
    run = jobs.wait(run_id, 60)
    thread.join()
    assert run.state == "stopped"
    assert run.message == STOPPED_EARLY
    assert run.result == {"model": "fake", "seed": 0}
    assert (run.folder / "polarizer.json").exists()
    jobs.cancel(run_id)  # an ended run stays as it is
    assert jobs.store.get(run_id) == run
    again = jobs.submit(request())
    assert again == f"{run_id}-2"
    training.gate.set()
    assert jobs.wait(again, 60).state == "finished"
    assert jobs.submit(request()) == again


def test_nobody_joins_a_run_that_is_being_stopped(
    jobs: RunManager, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npd_core.runs.work._StopFile.__call__", lambda stop: False)  # it still measures
    run_id = jobs.submit(request())
    until(lambda: jobs.store.get(run_id).state == "running")
    jobs.cancel(run_id)
    assert jobs.store.get(run_id).active
    assert jobs.store.stop_requested(run_id)
    again = jobs.submit(request())
    assert again == f"{run_id}-2"
    training.gate.set()
    assert jobs.wait(again, 60).state == "finished"


def test_a_waiting_run_is_cancelled_at_once(jobs: RunManager, training: Training) -> None:
    first, second = jobs.submit(request(0)), jobs.submit(request(1))
    jobs.cancel(second)
    run = jobs.store.get(second)
    assert (run.state, run.started, run.message) == ("stopped", None, NEVER_STARTED.message)
    assert jobs.store.events(second) == []
    training.gate.set()
    jobs.wait(first, 60)
    assert training.began == [0]


def test_another_manager_sees_joins_and_cancels_the_run(jobs: RunManager, training: Training) -> None:
    run_id = jobs.submit(request())
    until(lambda: jobs.position(run_id) == 0)
    other = RunManager(RunStore(jobs.store.root), working(training))
    until(lambda: other.store.get(run_id).state == "running")  # alive, so not marked
    assert other.submit(request()) == run_id
    assert other.position(run_id) is None
    other.cancel(run_id)
    assert other.wait(run_id, 60).state == "stopped"
    other.shutdown()
    assert training.began == [0]


@pytest.mark.parametrize("run_id", ["none", "../runs", ""])
def test_an_unknown_run_is_an_error(jobs: RunManager, run_id: str) -> None:
    for call in (jobs.cancel, jobs.wait):
        with pytest.raises(UnknownNameError, match=repr(run_id)):
            call(run_id)
    assert jobs.position(run_id) is None


def test_wait_gives_up_after_its_time(jobs: RunManager) -> None:
    run_id = jobs.submit(request())
    assert jobs.wait(run_id, 0.01).active
    assert jobs.wait(run_id, 0).active


def test_an_error_of_ours_fails_the_run_with_its_sentence(tmp_path: Path) -> None:
    jobs = with_events(
        tmp_path, STARTED, CheckpointError("model.safetensors does not match its card: restore it.")
    )
    run = jobs.wait(jobs.submit(request()), 60)
    assert (run.state, run.message) == ("failed", "model.safetensors does not match its card: restore it.")
    assert jobs.submit(request()) == f"{run.id}-2"
    jobs.shutdown()


def test_any_other_error_fails_the_run_and_its_traceback_is_logged(tmp_path: Path, caplog: Any) -> None:
    jobs = with_events(tmp_path, STARTED, ZeroDivisionError("secret path /home/me"))
    with caplog.at_level(logging.ERROR):
        run = jobs.wait(jobs.submit(request()), 60)
    assert (run.state, run.message) == ("failed", UNEXPECTED)
    assert "Traceback" in caplog.text
    assert "ZeroDivisionError: secret path" in caplog.text
    assert jobs.wait(jobs.submit(request(1)), 60).state == "failed"  # the worker lives on
    jobs.shutdown()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), NO_MEMORY),
        (SystemExit(3), UNEXPECTED),
    ],
)
def test_the_worker_survives_what_ends_other_threads(
    tmp_path: Path, error: BaseException, message: str
) -> None:
    jobs = with_events(tmp_path, error)
    assert jobs.wait(jobs.submit(request()), 60).message == message
    assert jobs.wait(jobs.submit(request(1)), 60).message == message
    jobs.shutdown()


def test_a_failed_training_keeps_its_reason_and_its_result(tmp_path: Path) -> None:
    jobs = with_events(
        tmp_path, STARTED, Failed("The loss is not a number in epoch 1.", 0, 0.1, {"model": "fake"})
    )
    run = jobs.wait(jobs.submit(request()), 60)
    assert (run.state, run.message, run.result) == (
        "failed",
        "The loss is not a number in epoch 1.",
        {"model": "fake"},
    )
    jobs.shutdown()


def test_a_training_without_a_last_event_has_failed(tmp_path: Path) -> None:
    jobs = with_events(tmp_path, STARTED)
    assert jobs.wait(jobs.submit(request()), 60).state == "failed"
    jobs.shutdown()


def test_what_the_defense_wrote_itself_is_the_result(tmp_path: Path) -> None:
    def execute(request: DefenseRequest, out: Path, stop: Callable[[], bool]) -> Generator[Event, None, None]:
        write_json(out / "result.json", {"from": "defense"})
        yield Finished(0, 0.1, result={"from": "event"})

    jobs = RunManager(RunStore(tmp_path / "runs"), working(execute))
    assert jobs.wait(jobs.submit(request()), 60).result == {"from": "defense"}
    jobs.shutdown()


def test_more_epochs_than_the_server_allows_are_refused(jobs: RunManager) -> None:
    for name in ("epochs", "warmup_epochs"):
        config = replace(NPDConfig(), **{name: 201})
        with pytest.raises(ConfigError, match=f"`{name}`.* 200 .*201.*npd defend"):
            jobs.submit(DefenseRequest(model="fake", device="cpu", config=config))
    assert jobs.store.list() == []


def test_a_full_queue_is_refused_but_joining_is_not(tmp_path: Path, training: Training) -> None:
    jobs = RunManager(RunStore(tmp_path / "runs"), working(training), max_waiting=1)
    first = jobs.submit(request(0))
    until(lambda: jobs.position(first) == 0)
    second = jobs.submit(request(1))
    with pytest.raises(NPDError, match=r"^1 runs"):
        jobs.submit(request(2))
    assert [jobs.submit(request(seed)) for seed in (0, 1)] == [first, second]
    training.gate.set()
    jobs.shutdown()


def test_devices_have_queues_and_those_not_here_are_refused(monkeypatch: Any) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [queue_of(name) for name in ("cpu", "auto", "cuda", "cuda:1")] == [
        "cpu",
        "cuda:0",
        "cuda:0",
        "cuda:1",
    ]
    for name in ("cuda:2", "tpu", "", "mps"):
        with pytest.raises(ConfigError, match=r"\bauto\b"):
            queue_of(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert queue_of("auto") == "cpu"
    with pytest.raises(ConfigError, match="cuda"):
        queue_of("cuda")


def test_a_full_disk_fails_the_run_and_is_never_stuck(
    jobs: RunManager, training: Training, caplog: Any
) -> None:
    run_id = jobs.submit(request())
    until(lambda: jobs.position(run_id) == 0)
    until(lambda: jobs.store.get(run_id).state == "running")
    with pytest.MonkeyPatch.context() as patch:

        def replace(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "replace", replace)
        training.gate.set()
        run = jobs.wait(run_id, 60)
        assert run.state == "failed"
        full = OSError(errno.ENOSPC, "")
        assert run.message == str(storage_error(run.folder / "result.json", full))
        with pytest.raises(StorageError):
            jobs.submit(request(1))
    assert run_id in caplog.text
    again = jobs.wait(jobs.submit(request()), 60)
    assert (again.id, again.state) == (f"{run_id}-2", "finished")


def test_a_removed_run_does_not_end_the_worker(jobs: RunManager, training: Training, caplog: Any) -> None:
    run_id = jobs.submit(request())
    until(lambda: jobs.store.events(run_id))
    shutil.rmtree(jobs.store.root / run_id)
    training.gate.set()
    until(lambda: jobs.position(run_id) is None)
    assert jobs.wait(jobs.submit(request(1)), 60).state == "finished"


def test_shutdown_stops_what_runs_and_interrupts_what_waits(jobs: RunManager, training: Training) -> None:
    first, second = jobs.submit(request(0)), jobs.submit(request(1))
    until(lambda: jobs.store.events(first))
    jobs.shutdown(60)
    assert [jobs.store.get(run_id).state for run_id in (first, second)] == ["stopped", "interrupted"]
    assert training.closed == 1
    assert not any(worker.is_alive() for worker in jobs._threads.values())
    assert list((jobs.store.root / ".owners").iterdir()) == []
    with pytest.raises(NPDError):
        jobs.submit(request(2))


def test_shutdown_does_not_wait_for_a_run_that_does_not_stop(tmp_path: Path) -> None:
    gate = threading.Event()

    def unstoppable(
        request: DefenseRequest, out: Path, stop: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        yield STARTED
        gate.wait(60)
        yield Finished(0, 1.0)

    jobs = RunManager(RunStore(tmp_path / "runs"), working(unstoppable))
    run_id = jobs.submit(request())
    until(lambda: jobs.store.events(run_id))
    jobs.shutdown(timeout=0.05)
    run = jobs.store.get(run_id)
    assert run.state == "interrupted"
    gate.set()
    for worker in jobs._threads.values():
        worker.join(60)
    late = jobs.store.get(run_id)  # what it still returns changes nothing
    assert (late.state, late.message, late.ended) == (run.state, run.message, run.ended)


def test_the_process_has_one_manager_per_folder(runs_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    found: list[RunManager] = []
    threads = [threading.Thread(target=lambda: found.append(manager())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 1
    assert found[0].store.root == runs_dir
    monkeypatch.setenv("NPD_RUNS_DIR", str(tmp_path / "elsewhere"))
    assert manager() is not found[0]
    monkeypatch.setenv("NPD_RUNS_DIR", str(runs_dir))
    assert manager() is found[0]
    found[0].shutdown()
    assert manager() is not found[0]


def test_a_folder_that_cannot_be_read_does_not_stop_the_app(
    tmp_path: Path, caplog: Any, training: Training
) -> None:
    (tmp_path / "runs").write_text("a file")
    jobs = RunManager(RunStore(tmp_path / "runs"), working(training))
    assert "runs" in caplog.text
    with pytest.raises(StorageError):
        jobs.submit(request())
    jobs.shutdown()


def test_imports_are_frozen_once_and_garbage_is_collected_between_runs(
    jobs: RunManager, training: Training
) -> None:
    training.gate.set()
    collections: list[dict[str, int]] = []

    def note(phase: str, info: dict[str, int]) -> None:
        collections.append(info)

    gc.callbacks.append(note)
    try:
        jobs.wait(jobs.submit(request()), 60)
        assert gc.get_freeze_count() > 0
        until(lambda: any(info["generation"] == 2 for info in collections))
    finally:
        gc.callbacks.remove(note)


@pytest.mark.timeout(600)
def test_a_real_training_is_run_stopped_and_kept(tiny_zoo: str, tmp_path: Path, monkeypatch: Any) -> None:
    from npd_core import defend, evaluation

    def few(dataset: str, attack: Any, images: int | None) -> evaluation.TestSets:
        return evaluation.test_sets(dataset, attack, images or 48)

    monkeypatch.setattr(defend, "test_sets", few)
    jobs = RunManager(RunStore(tmp_path / "runs"))  # its default: npd_core.defend.run_defense
    config = NPDConfig(epochs=150, warmup_epochs=1, batch_size=16, precision="fp32")
    run_id = jobs.submit(
        DefenseRequest(model=tiny_zoo, clean=32, eval_images=16, device="cpu", config=config)
    )
    until(lambda: any(record["type"] == "Measured" for record in jobs.store.events(run_id)), 600)
    assert jobs.store.get(run_id).seconds_left is not None
    jobs.cancel(run_id)
    run = jobs.wait(run_id, 600)
    assert run.state == "stopped", run.message
    assert run.result is not None
    assert run.result["model"] == tiny_zoo
    assert 0 <= run.result["after"]["asr"] <= 1
    assert {"polarizer.safetensors", "polarizer.json"} <= {path.name for path in run.folder.iterdir()}
    records = jobs.store.events(run_id)
    assert [record["type"] for record in records][:: len(records) - 1] == ["Started", "Finished"]
    assert records[-1]["stopped"]
    steps = [record["time"] for record in records if record["type"] == "StepEnd"]
    epochs = sum(record["type"] == "EpochEnd" for record in records)
    assert len(steps) <= 10 * (steps[-1] - steps[0]) + epochs + 2
    bad = jobs.submit(DefenseRequest(model=tiny_zoo, layer="layer9", device="cpu"))
    assert "layer9" in jobs.wait(bad, 600).message
    jobs.shutdown()


CHILD = """if True:
    import sys, time
    from pathlib import Path
    from npd_core.events import EpochEnd, Finished, Started, StepEnd
    from npd_core.runs.queue import RunManager
    from npd_core.runs.store import RunStore
    from functools import partial
    from npd_core.runs.work import work_through
    from npd_core.config.npd import NPDConfig
    from npd_core.config.request import DefenseRequest

    def execute(request, out, stop):
        yield Started(epochs=2, warmup_epochs=0, steps_per_epoch=3, clean_images=96, device="cpu")
        yield EpochEnd(0, {"total": 1.0}, 0.1)
        while not stop():
            yield StepEnd(1, 0, {"total": 1.0})
            time.sleep(0.002)
        yield Finished(0, 0.1, stopped=True, result={"model": "fake"})

    jobs = RunManager(RunStore(Path(sys.argv[1])), partial(work_through, run_defense=execute))
    for seed in range(2):
        jobs.submit(DefenseRequest(model="fake", device="cpu", config=NPDConfig(seed=seed, epochs=2)))
    first = DefenseRequest(model="fake", device="cpu", config=NPDConfig(epochs=2)).key
    while len(jobs.store.events(first)) < 3:
        time.sleep(0.002)
    print("training", flush=True)
    sys.stdin.read()
"""


def child_in_training(root: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root)], stdin=-1, stdout=-1, cwd=paths.ROOT, text=True
    )
    assert child.stdout
    assert child.stdout.readline() == "training\n"
    return child


def test_a_killed_process_leaves_its_runs_interrupted(tmp_path: Path, training: Training) -> None:
    first, second = request(0).key, request(1).key
    with child_in_training(tmp_path) as child:
        living = RunManager(RunStore(tmp_path), working(training))
        assert [living.store.get(run_id).state for run_id in (first, second)] == ["running", "queued"]
        child.send_signal(signal.SIGKILL)
        child.wait()
        with (tmp_path / first / "events.jsonl").open("a") as file:
            file.write('{"type": "StepE')  # the line it was killed in
        # an older manager sees it at once; one that starts now marks both
        assert living.store.get(first).state == "interrupted"
        training.gate.set()
        again = living.submit(request(0))
        assert again == f"{first}-2"
        assert living.wait(again, 60).state == "finished"
        living.shutdown()
    jobs = RunManager(RunStore(tmp_path), working(training))
    for run_id, ending in ((first, CLOSED_RUNNING), (second, CLOSED_WAITING)):
        run = jobs.store.get(run_id)
        assert (run.state, run.message) == ending
        assert '"interrupted"' in (run.folder / "state.json").read_text()
    kinds = [record["type"] for record in jobs.store.events(first)]
    assert kinds[:2] == ["Started", "EpochEnd"]
    assert set(kinds[2:]) == {"StepEnd"}
    assert (jobs.store.get(first).epoch, jobs.store.get(first).epochs) == (1, 2)
    jobs.shutdown()


def test_a_process_that_ends_by_itself_leaves_nothing_running(tmp_path: Path) -> None:
    with child_in_training(tmp_path) as child:
        assert child.stdin
        child.stdin.close()  # its script comes to an end in the midst of the run
        assert child.wait(60) == 0
    store = RunStore(tmp_path)
    first, second = store.get(request(0).key), store.get(request(1).key)
    assert (first.state, first.result) == ("stopped", {"model": "fake"})
    assert second.state == "interrupted"
    assert [record["type"] for record in store.events(first.id)][-1] == "Finished"
    assert list((tmp_path / ".owners").iterdir()) == []


class Lanes:
    """Stands for a defense of three epochs; waits for its gate in the second, and logs what each run does."""

    def __init__(self, bad: int | None = None) -> None:
        self.log: list[tuple[int, str]] = []
        self.gate = threading.Event()
        self.bad = bad

    def __call__(
        self, request: DefenseRequest, out: Path, stop: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        seed = request.config.seed
        self.log.append((seed, "start"))
        yield STARTED
        for epoch in range(3):
            if epoch == 1:
                assert self.gate.wait(60)
            self.log.append((seed, f"epoch {epoch}"))
            yield StepEnd(epoch, 0, {"total": 1.0})
            if stop():
                break
            if epoch == 1 and seed == self.bad:
                raise CheckpointError("The weights are gone.")
            yield EpochEnd(epoch, {"total": 1.0}, 0.1)
            yield Measured(epoch, 0.9, 0.1, 0.8, 10)
        self.log.append((seed, "end"))
        yield Finished(2, 0.3, stopped=stop(), result={"seed": seed})


def comparison(tmp_path: Path, lanes: Lanes) -> tuple[RunManager, list[str]]:
    jobs = RunManager(RunStore(tmp_path / "runs"), working(lanes))
    return jobs, jobs.submit_together([request(0), request(1)])


def test_runs_of_a_comparison_train_together_and_are_ordinary_runs(tmp_path: Path) -> None:
    lanes = Lanes()
    jobs, ids = comparison(tmp_path, lanes)
    waiting = jobs.submit(request(2))
    until(lambda: len(lanes.log) == 4)  # both have done an epoch and wait at the gate
    assert ids == [request(0).key, request(1).key]
    assert [jobs.position(run_id) for run_id in (*ids, waiting)] == [0, 0, 1]
    assert [jobs.store.get(run_id).state for run_id in ids] == ["running", "running"]
    lanes.gate.set()
    assert [jobs.wait(run_id, 60).state for run_id in (*ids, waiting)] == ["finished"] * 3
    assert lanes.log.index((2, "start")) > max(lanes.log.index((seed, "end")) for seed in (0, 1))
    for seed, run_id in enumerate(ids):
        assert jobs.store.get(run_id).result == {"seed": seed}
        kinds = [record["type"] for record in jobs.store.events(run_id) if record["type"] != "StepEnd"]
        assert kinds == ["Started", *["EpochEnd", "Measured"] * 3, "Finished"]
    assert jobs.submit_together([request(0), request(1)]) == ids
    assert len(lanes.log) == 15
    jobs.shutdown()


def test_a_comparison_with_a_finished_run_trains_only_the_other(tmp_path: Path) -> None:
    lanes = Lanes()
    lanes.gate.set()
    jobs = RunManager(RunStore(tmp_path / "runs"), working(lanes))
    old = jobs.wait(jobs.submit(request(1)), 60)
    lanes.log.clear()
    first, second = jobs.submit_together([request(0), request(1)])
    assert second == old.id
    assert jobs.wait(first, 60).state == "finished"
    assert {seed for seed, _ in lanes.log} == {0}
    assert jobs.store.get(second) == old
    assert jobs.submit_together([request(3), request(3)]) == [request(3).key] * 2  # with itself: one run
    jobs.shutdown()


@pytest.mark.parametrize("stopped", [0, 1])
def test_one_of_a_comparison_can_be_stopped_and_the_other_goes_on(stopped: int, tmp_path: Path) -> None:
    lanes = Lanes()
    jobs, ids = comparison(tmp_path, lanes)
    until(lambda: len(lanes.log) == 4)
    jobs.cancel(ids[stopped])
    time.sleep(2 * POLL)  # so that the next check finds the stop file
    lanes.gate.set()
    states = [jobs.wait(run_id, 60).state for run_id in ids]
    assert states[stopped] == "stopped"
    assert states[1 - stopped] == "finished"
    assert jobs.store.get(ids[stopped]).result == {"seed": stopped}
    assert (stopped, "epoch 2") not in lanes.log
    jobs.shutdown()


def test_a_failure_in_a_comparison_is_that_of_one_run(tmp_path: Path) -> None:
    lanes = Lanes(bad=0)
    lanes.gate.set()
    jobs, ids = comparison(tmp_path, lanes)
    first, second = (jobs.wait(run_id, 60) for run_id in ids)
    assert (first.state, first.message) == ("failed", "The weights are gone.")
    assert second.state == "finished"
    until(lambda: jobs.position(ids[1]) is None)
    jobs.shutdown()


def test_a_waiting_comparison_shares_a_position_and_loses_a_run(tmp_path: Path) -> None:
    lanes = Lanes()
    jobs = RunManager(RunStore(tmp_path / "runs"), working(lanes))
    running = jobs.submit(request(0))
    until(lambda: jobs.position(running) == 0)
    ids, last = jobs.submit_together([request(1), request(2)]), jobs.submit(request(3))
    assert [jobs.position(run_id) for run_id in (*ids, last)] == [1, 1, 2]
    jobs.cancel(ids[0])
    assert [jobs.position(run_id) for run_id in (*ids, last)] == [None, 1, 2]
    assert jobs.store.get(ids[0]).message == NEVER_STARTED.message
    jobs.cancel(ids[1])
    assert jobs.position(last) == 1
    lanes.gate.set()
    assert jobs.wait(last, 60).state == "finished"
    assert {seed for seed, _ in lanes.log} == {0, 3}
    jobs.shutdown()


def test_closing_the_app_ends_both_runs_of_a_comparison(tmp_path: Path) -> None:
    lanes = Lanes()
    jobs, ids = comparison(tmp_path, lanes)
    until(lambda: len(lanes.log) == 4)
    threading.Timer(3 * POLL, lanes.gate.set).start()
    jobs.shutdown(60)
    assert [jobs.store.get(run_id).state for run_id in ids] == ["stopped", "stopped"]


def test_a_comparison_between_devices_is_two_queues(
    tmp_path: Path, training: Training, monkeypatch: Any
) -> None:
    monkeypatch.setattr(queue_module, "queue_of", lambda device: device)
    jobs = RunManager(RunStore(tmp_path / "runs"), working(training))
    ids = jobs.submit_together([request(0), replace(request(1), device="cuda:0")])
    until(lambda: [jobs.position(run_id) for run_id in ids] == [0, 0])
    until(lambda: training.most_together == 2)
    training.gate.set()
    jobs.shutdown(60)

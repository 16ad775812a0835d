"""The run store: what is written is read back, by any process, and damage stays where it is."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from npd_core import paths
from npd_core.config.npd import NPDConfig
from npd_core.config.request import DefenseRequest
from npd_core.errors import StorageError, UnknownNameError
from npd_core.events import EpochEnd, Failed, Finished, Measured, Started, StepEnd, to_record
from npd_core.runs import store as store_module
from npd_core.runs.event_log import Thinner
from npd_core.runs.owners import Owner
from npd_core.runs.store import READ_ONLY, STOPPED_EARLY, Ending, RunStore, read_record, write_record

REQUEST = DefenseRequest(
    model="signs-badnets_a2o-preact_resnet18-w4", device="cpu", config=NPDConfig(epochs=4)
)
OTHER = DefenseRequest(model="signs-blended-preact_resnet18-w4", device="cpu")
RESULT = {"model": REQUEST.model, "after": {"acc": 0.9, "asr": 0.01, "ra": 0.88}, "config": REQUEST.to_dict()}
EVENTS = [
    Started(
        epochs=4, warmup_epochs=1, steps_per_epoch=2, clean_images=64, device="cpu", layer="layer4.1.conv1"
    ),
    StepEnd(-1, 0, {"bn": 1.0}),
    EpochEnd(-1, {"bn": 1.0}, 0.5),
    StepEnd(0, 0, {"bn": 0.5}),
    StepEnd(0, 1, {"bn": 0.25}),
    EpochEnd(0, {"bn": 0.375}, 1.5),
    Measured(0, 0.9, 0.5, 0.4, 128),
]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


@pytest.fixture
def owner(store: RunStore) -> Any:
    owner = Owner(store.root)
    yield owner
    owner.release()


def append(store: RunStore, run_id: str, *events: Any) -> None:
    with store.writer(run_id) as write:
        for event in events:
            write(event)


def plain(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without their times."""
    return [{name: value for name, value in record.items() if name != "time"} for record in records]


def forget() -> None:
    """Drop what this process has read: stores made from now on read as a new process does."""
    store_module._memories.clear()


def full_disk(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
    def replace(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(store_module.os, "replace", replace)


def cause(caught: pytest.ExceptionInfo[StorageError]) -> int | None:
    """Number of the system's error behind an error of the store."""
    assert isinstance(caught.value.__cause__, OSError)
    return caught.value.__cause__.errno


def test_a_new_run_is_queued_and_holds_its_request(store: RunStore, owner: Owner) -> None:
    run_id = store.create(REQUEST, owner=owner.name)
    run = store.get(run_id)
    assert (run_id, run.request, run.state, run.result, run.recorded) == (
        REQUEST.key,
        REQUEST,
        "queued",
        None,
        False,
    )
    assert run.active
    assert run.created > 0
    assert store.events(run_id) == []


def test_a_store_without_a_folder_is_empty(store: RunStore) -> None:
    assert store.list() == []
    assert store.unreadable() == {}
    assert store.recover() == []
    assert not store.root.exists()


def test_events_come_back_in_order_and_from_a_number_on(store: RunStore) -> None:
    run_id = store.create(REQUEST)
    append(store, run_id, *EVENTS)
    assert plain(store.events(run_id)) == [to_record(event) for event in EVENTS]
    assert plain(store.events(run_id, 5)) == [to_record(event) for event in EVENTS[5:]]
    assert store.events(run_id, 99) == []


def test_events_are_seen_as_they_are_written_and_by_a_later_process(store: RunStore) -> None:
    run_id = store.create(REQUEST)
    with store.writer(run_id) as write:
        for number, event in enumerate(EVENTS):
            write(event)
            assert len(store.events(run_id)) == number + 1
    forget()
    assert plain(RunStore(store.root).events(run_id)) == [to_record(event) for event in EVENTS]


def test_a_torn_last_line_is_left_out_until_it_is_complete(store: RunStore) -> None:
    run_id = store.create(REQUEST)
    append(store, run_id, EVENTS[0])
    path = store.root / run_id / "events.jsonl"
    with path.open("a") as file:
        file.write('{"type": "EpochEnd", "ep')
        file.flush()
        assert len(store.events(run_id)) == 1
        file.write('och": 0, "losses": {}, "seconds": 1.0}\n')
    assert [record["type"] for record in store.events(run_id)] == ["Started", "EpochEnd"]


def test_writing_goes_on_after_a_torn_line(store: RunStore) -> None:
    run_id = store.create(REQUEST)
    append(store, run_id, EVENTS[0])
    path = store.root / run_id / "events.jsonl"
    path.write_text(path.read_text() + '{"type": "Step')
    append(store, run_id, EVENTS[2])
    assert plain(store.events(run_id)) == [to_record(event) for event in [EVENTS[0], EVENTS[2]]]


@pytest.mark.parametrize(
    "line", ["null", "7", "[]", "{}", '{"type": 3}', "\x00\x00", '{"type": "EpochEnd"}', "{" * 50]
)
def test_a_damaged_line_does_not_hide_the_others(store: RunStore, line: str) -> None:
    run_id = store.create(REQUEST)
    (store.root / run_id / "events.jsonl").write_text(line + "\n")
    append(store, run_id, *EVENTS)
    assert plain(store.events(run_id)[-len(EVENTS) :]) == [to_record(event) for event in EVENTS]
    assert store.get(run_id).epochs == 4


def test_replaced_and_shortened_event_files_are_read_anew(store: RunStore) -> None:
    run_id = store.create(REQUEST)
    append(store, run_id, *EVENTS)
    assert len(store.events(run_id)) == len(EVENTS)
    path = store.root / run_id / "events.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert len(store.events(run_id)) == 1
    path.unlink()
    assert store.events(run_id) == []


def test_progress_and_time_left_follow_from_the_events(
    store: RunStore, owner: Owner, monkeypatch: Any
) -> None:
    run_id = store.create(REQUEST, owner=owner.name)
    clock = [1000.0]
    monkeypatch.setattr(store_module.time, "time", lambda: clock[0])
    store.set_state(run_id, "running", started=1000.0)
    assert store.get(run_id).seconds_left is None
    with store.writer(run_id) as write:
        for at, event in zip((0, 1, 2, 4, 6, 6, 7), EVENTS, strict=True):
            clock[0] = 1000.0 + at
            write(event)
    run = store.get(run_id)
    assert (run.epoch, run.epochs, run.warmup_epochs, run.step, run.steps_per_epoch) == (0, 4, 1, 1, 2)
    assert run.share == pytest.approx(2 / 5)
    assert run.seconds_left == pytest.approx(
        15.0
    )  # one epoch took 5 s, measuring included; three are to come
    clock[0] += 4
    assert store.get(run_id).seconds_left == pytest.approx(11.0)
    clock[0] += 400
    assert store.get(run_id).seconds_left == 0.0
    store.set_state(run_id, "finished", ended=clock[0])
    forget()
    ended = RunStore(store.root).get(run_id)
    assert (ended.seconds_left, ended.epoch, ended.epochs, ended.state) == (None, 0, 4, "finished")


def test_runs_are_listed_newest_first(store: RunStore, monkeypatch: Any) -> None:
    for at, model in enumerate(("one", "two", "three")):
        monkeypatch.setattr(store_module.time, "time", lambda at=at: float(at))
        store.create(DefenseRequest(model=model))
    assert [run.request.model for run in store.list()] == ["three", "two", "one"]


@pytest.mark.parametrize(
    "run_id",
    [
        "../outside",
        "..",
        ".",
        "",
        "a/b",
        "/etc",
        "a\\b",
        "A1",
        "a.b",
        ".owners",
        "-x",
        "é",
        "a" * 200,
        "a\n",
        "a\0b",
        None,
        3,
    ],
)
def test_an_id_that_is_none_never_leaves_the_folder(store: RunStore, tmp_path: Path, run_id: Any) -> None:
    store.create(REQUEST)
    write_record(tmp_path / "outside", OTHER, EVENTS, RESULT)
    for call in (store.get, store.events, store.writer, store.request_stop, store.stop_requested):
        with pytest.raises(UnknownNameError):
            call(run_id)


def test_an_unknown_run_names_the_nearest(store: RunStore) -> None:
    store.create(REQUEST)
    with pytest.raises(UnknownNameError, match=f"'{REQUEST.key}'"):
        store.get(REQUEST.key + "-9")


def test_identical_requests_share_a_run_until_it_ended_badly(store: RunStore, owner: Owner) -> None:
    def submit() -> tuple[str, bool]:
        return store.join_or_create(REQUEST, owner=owner.name)

    key = REQUEST.key
    assert submit() == (key, True)
    assert submit() == (key, False)
    store.set_state(key, "running")
    assert submit() == (key, False)
    for state, number in (("stopped", 2), ("failed", 3), ("interrupted", 4)):
        store.set_state(submit()[0], state)  # type: ignore[arg-type]
        assert submit() == (f"{key}-{number}", True)
    store.set_state(f"{key}-4", "finished")
    store.set_result(f"{key}-4", RESULT)
    assert submit() == (f"{key}-4", False)
    assert store.join_or_create(OTHER, owner=owner.name) == (OTHER.key, True)
    assert store.create(REQUEST) == f"{key}-5"


def test_of_many_requests_at_once_one_creates(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    gate, made = threading.Barrier(8), []

    def submit() -> None:
        forget()  # as if each were a process
        own = RunStore(tmp_path)
        gate.wait()
        made.append(own.join_or_create(REQUEST, owner=owner.name))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owner.release()
    assert sorted(made) == [(REQUEST.key, False)] * 7 + [(REQUEST.key, True)]
    assert [path.name for path in tmp_path.iterdir() if path.name != ".owners"] == [REQUEST.key]


def test_runs_of_a_dead_owner_are_interrupted_and_those_of_a_living_one_are_not(
    store: RunStore, owner: Owner
) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        from npd_core.runs.owners import Owner
        from npd_core.runs.store import RunStore
        from npd_core.config.request import DefenseRequest
        store, model = RunStore(Path(sys.argv[1])), "theirs"
        owner = Owner(store.root)
        run_id = store.create(DefenseRequest(model="theirs"), owner=owner.name)
        store.set_state(run_id, "running", started=1.0)
        print(run_id, flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", script, str(store.root)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, cwd=paths.ROOT, text=True) as child:
        assert child.stdout
        theirs = child.stdout.readline().strip()
        mine = store.create(REQUEST, owner=owner.name)
        assert store.recover() == []
        assert (store.get(theirs).state, store.get(mine).state) == ("running", "queued")
        child.kill()
        child.wait()
        assert store.get(theirs).state == "interrupted"  # at once, before `recover` marks it
        assert store.get(theirs).message
        assert store.recover() == [theirs]
        assert store.recover() == []
    assert json.loads((store.root / theirs / "state.json").read_text())["state"] == "interrupted"
    assert store.get(mine).state == "queued"
    assert [path.stem for path in (store.root / ".owners").iterdir()] == [owner.name]


def test_an_owner_that_let_go_is_dead(store: RunStore) -> None:
    owner = Owner(store.root)
    assert Owner.alive(store.root, owner.name)
    owner.release()
    assert not Owner.alive(store.root, owner.name)
    assert not Owner.alive(store.root, "../../etc/passwd")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("request.json", ""),
        ("request.json", "{"),
        ("request.json", "[]"),
        ("request.json", "null"),
        ("request.json", '{"model": "m", "later": 1}'),
        ("request.json", '{"config": {"rho": 0}, "model": "m"}'),
        ("request.json", '{"config": 3, "model": "m"}'),
        ("request.json", "{}"),
        ("request.json", "\udcff"),
    ],
)
def test_a_folder_without_a_usable_request_is_named_and_skipped(
    store: RunStore, name: str, text: str
) -> None:
    good, bad = store.create(REQUEST), store.create(OTHER)
    (store.root / bad / name).write_bytes(text.encode(errors="surrogateescape"))
    assert [run.id for run in store.list()] == [good]
    assert list(store.unreadable()) == [bad]
    with pytest.raises(StorageError) as caught:
        store.get(bad)
    assert store.unreadable()[bad] == str(caught.value)
    assert store.join_or_create(OTHER) == (f"{bad}-2", True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state.json", ""),
        ("state.json", "{"),
        ("state.json", "[]"),
        ("state.json", '{"state": "sleeping"}'),
        ("state.json", '{"state": ["x"]}'),
        ("state.json", '{"state": "failed", "message": "m", "created": "x", "progress": 3}'),
        ("result.json", "{"),
        ("result.json", "7"),
    ],
)
def test_a_run_with_a_damaged_state_or_result_is_listed_as_failed(
    store: RunStore, name: str, text: str
) -> None:
    run_id = store.create(REQUEST)
    append(store, run_id, *EVENTS)
    store.set_state(run_id, "finished")
    (store.root / run_id / name).write_text(text)
    (run,) = store.list()
    assert (run.id, run.state, run.epochs) == (run_id, "failed", 4)
    assert run.message
    assert len(store.events(run_id)) == len(EVENTS)
    store.set_state(run_id, "failed", message="again")


def test_a_file_or_an_empty_folder_among_the_runs_is_no_run(store: RunStore) -> None:
    run_id = store.create(REQUEST)
    (store.root / "readme").write_text("hello")
    (store.root / "empty").mkdir()
    assert [run.id for run in store.list()] == [run_id]
    assert list(store.unreadable()) == ["empty"]


def test_a_full_disk_leaves_nothing_behind(store: RunStore, monkeypatch: Any) -> None:
    run_id = store.create(REQUEST)
    before = sorted(path.name for path in (store.root / run_id).iterdir())
    with monkeypatch.context() as patch:
        full_disk(patch)
        with pytest.raises(StorageError) as caught:
            store.create(OTHER)
        assert cause(caught) == errno.ENOSPC
        with pytest.raises(StorageError, match=r"result\.json"):
            store.set_result(run_id, RESULT)
        with pytest.raises(StorageError, match=r"state\.json"):
            store.set_state(run_id, "failed", message="why")
        assert (store.get(run_id).state, store.get(run_id).message) == (
            "failed",
            "why",
        )  # returned, though not written
    assert sorted(path.name for path in (store.root / run_id).iterdir()) == before
    assert [run.id for run in store.list()] == [run_id]


def test_a_full_disk_while_events_are_written(store: RunStore) -> None:
    run_id = store.create(REQUEST)
    (store.root / run_id / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"events\.jsonl") as caught, store.writer(run_id) as write:
        write(EVENTS[0])
    assert cause(caught) == errno.ENOSPC


def test_no_permission_to_write(store: RunStore, monkeypatch: Any) -> None:
    full_disk(monkeypatch, errno.EACCES)
    with pytest.raises(StorageError) as caught:
        store.create(REQUEST)
    assert cause(caught) == errno.EACCES


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    store = RunStore(tmp_path / "runs")
    with pytest.raises(StorageError):
        store.create(REQUEST)
    with pytest.raises(StorageError):
        store.list()


def test_a_written_record_reads_as_a_finished_run(tmp_path: Path) -> None:
    events = [*EVENTS, Finished(epoch=3, seconds=6.5, result=RESULT)]
    folder = write_record(tmp_path / "saved", REQUEST, events, RESULT)
    run = read_record(folder)
    assert (run.request, run.state, run.result, run.epoch, run.epochs) == (REQUEST, "finished", RESULT, 0, 4)
    assert run.ended is not None
    assert run.started is not None
    assert run.ended - run.started == pytest.approx(6.5)
    store = RunStore(tmp_path)
    assert store.list() == [run]
    assert plain(store.events("saved")) == [to_record(event) for event in events]
    assert {path.name for path in folder.iterdir()} == {
        "events.jsonl",
        "request.json",
        "result.json",
        "state.json",
    }


@pytest.mark.parametrize(
    ("last", "ending"),
    [
        (Finished(2, 1.0, stopped=True), Ending("stopped", STOPPED_EARLY)),
        (Failed("the loss is not a number", 2, 1.0), Ending("failed", "the loss is not a number")),
    ],
)
def test_a_written_record_has_an_ending(tmp_path: Path, last: Any, ending: Ending) -> None:
    run = read_record(write_record(tmp_path / "saved", REQUEST, [*EVENTS, last], RESULT))
    assert (run.state, run.message) == ending


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StorageError):
            read_record(folder)


def test_recorded_runs_are_read_and_never_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(paths, "assets", lambda: tmp_path)
    model = "signs-badnets_a2o-preact_resnet18-w32"
    folder = write_record(paths.recorded() / model, REQUEST, [*EVENTS, Finished(3, 1.0)], RESULT)
    (folder / "state.json").unlink()
    (folder / "request.json").unlink()  # result and events suffice
    store = RunStore(paths.recorded())
    (run,) = store.list()
    assert (run.id, run.request, run.state, run.recorded, run.result) == (
        model,
        REQUEST,
        "finished",
        True,
        RESULT,
    )
    assert len(store.events(model)) == len(EVENTS) + 1
    assert store.recover() == []
    for call in (
        lambda: store.create(OTHER),
        lambda: store.set_state(model, "failed"),
        lambda: store.writer(model),
        lambda: store.set_result(model, {}),
        lambda: store.request_stop(model),
    ):
        with pytest.raises(StorageError, match=READ_ONLY):
            call()
    assert not (paths.recorded() / ".owners").exists()


class Loss:
    """A number on a device: reading it is counted."""

    reads = 0

    def __float__(self) -> float:
        type(self).reads += 1
        return 1.0


def test_steps_are_thinned_and_one_that_is_passed_over_is_never_read(
    store: RunStore, monkeypatch: Any
) -> None:
    clock = [0.0]
    monkeypatch.setattr(store_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Loss, "reads", 0)
    run_id, thin = store.create(REQUEST), Thinner(0.1)
    clock[0] = 5.0
    with store.writer(run_id) as write:
        for epoch in range(2):
            for step in range(100):
                clock[0] += 0.01  # 100 steps a second
                for event in thin(StepEnd(epoch, step, {"bn": Loss()})):
                    write(event)
            for event in thin(EpochEnd(epoch, {"bn": 1.0}, 1.0)):
                write(event)
    records = store.events(run_id)
    steps = [(record["epoch"], record["step"]) for record in records if record["type"] == "StepEnd"]
    assert steps[0] == (0, 0)
    assert (0, 99) in steps
    assert steps[-1] == (1, 99)
    assert len(steps) <= 2 * 11
    assert len(steps) == Loss.reads
    assert [record["epoch"] for record in records if record["type"] == "EpochEnd"] == [0, 1]
    assert records == sorted(records, key=lambda r: (r["epoch"], r["type"] == "EpochEnd", r.get("step", 0)))


def test_the_store_needs_no_torch() -> None:
    code = "import sys, npd_core.runs.store; sys.exit('torch' in sys.modules or 'streamlit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT).returncode == 0

"""Damaged runs: whatever the files of a run hold, the store reads it, or says that it is damaged."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from npd_core import paths
from npd_core.errors import NPDError, StorageError, UnknownNameError
from npd_core.figures.curves import read_losses, read_metrics
from npd_core.figures.runs import read_row
from npd_core.progress import Progress
from npd_core.runs import checked
from npd_core.runs.owners import Owner
from npd_core.runs.store import Run, RunStore

FILES = ("request.json", "result.json", "events.jsonl")
MUTATIONS = 120
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 10**30, -(10**30), 1e308, float("nan"), float("inf"), "", "x" * 5000, "![x](http://h)"),
    *([], {}, [[]], [None], {"a": 1}, {"acc": "x"}, {"": []}, "\ud800", "\x00", "²"),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with one of its keys."""
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(part, dict | list):
            yield from places(part)


def mutated_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part that is replaced, removed or wrapped."""
    value = json.loads(json.dumps(value))
    owner, key = rng.choice(list(places(value)))
    kind = rng.randrange(3)
    if kind == 0 and isinstance(owner, dict):
        del owner[key]
    elif kind == 1:
        owner[key] = [owner[key]]
    else:
        owner[key] = rng.choice(VALUES)
    return value


def mutate(folder: Path, seed: int) -> str:
    """Change one file of a run, by its text or by its values, and return the name of the file."""
    rng = random.Random(seed)
    path = folder / FILES[seed % len(FILES)]
    text = path.read_bytes()
    kind = rng.randrange(6)
    if kind == 0:
        path.write_bytes(text[: rng.randrange(len(text))])
    elif kind == 1:
        at = rng.randrange(len(text))
        path.write_bytes(text[:at] + rng.randbytes(8) + text[at + 8 :])
    elif kind == 2:
        deep = rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100 + b"]" * 100, b"9" * 5000, b"null"))
        path.write_bytes(
            rng.choice((deep, b'{"type": "Started", "epochs": ' + deep + b"}", text + deep)) + b"\n"
        )
    elif path.suffix == ".jsonl":
        lines = [json.loads(line) for line in text.splitlines()]
        for _ in range(20):
            at = rng.randrange(len(lines))
            lines[at] = mutated_value(lines[at], rng)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        path.write_text(json.dumps(mutated_value(json.loads(text), rng)))
    return path.name


@pytest.fixture(scope="module")
def recorded() -> Path:
    """A run that is shipped with the project."""
    return next(run for run in RunStore(paths.recorded()).list() if run.result).folder


def use(store: RunStore, run: Run) -> None:
    """What pages and commands do with a run."""
    records = store.events(run.id)
    losses = read_losses(records)
    assert all(len(values) == len(losses.x) for values in losses.terms.values())
    before = (run.result or {}).get("before")
    assert all(isinstance(epoch, int) for epoch in read_metrics(records, before).epochs)
    assert 0 <= Progress.of(records).share <= 1
    row = read_row(run.id, run.recorded, run.state, run.created, run.request.to_dict(), run.result)
    assert all(value is None or 0 <= value <= 1 or value != value for value in (row.acc, row.asr, row.der))
    json.dumps(row)


def test_no_mutation_of_a_run_keeps_the_store_from_the_others(recorded: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    for seed in range(MUTATIONS):
        folder = store.root / f"run-{seed}"
        shutil.copytree(recorded, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        mutate(folder, seed)
    shutil.copytree(recorded, store.root / "sound", ignore=shutil.ignore_patterns("*.safetensors"))
    runs = {run.id: run for run in store.list()}
    assert len(runs) + len(store.unreadable()) == MUTATIONS + 1
    assert not runs["sound"].damage
    for run in runs.values():
        use(store, run)
    assert store.unreadable()
    assert any(run.damage for run in runs.values())
    for reason in store.unreadable().values():
        assert len(reason) < 500


def test_every_shipped_event_and_result_is_sound() -> None:
    store = RunStore(paths.recorded())
    assert not store.unreadable()
    for run in store.list()[::7]:
        assert not run.damage, (run.id, run.damage)
        lines = (run.folder / "events.jsonl").read_bytes().splitlines()
        assert len(store.events(run.id)) == len(lines), run.id


@pytest.mark.parametrize(
    ("field", "value"),
    [("before", {"acc": "x"}), ("after", []), ("der", 2.0), ("seconds", {"train": "long"}), ("layer", 3)],
)
def test_a_result_with_a_wrong_field_is_damage_not_a_result(
    field: str, value: object, recorded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "one"
    shutil.copytree(recorded, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {field: value}))
    run = RunStore(folder.parent).get("one")
    assert run.result is None
    assert field in run.damage
    assert run.state == "failed"
    assert RunStore(folder.parent).events("one")


@pytest.mark.parametrize("field", ["model", "layer", "device"])
def test_names_of_a_request_hold_no_markup(field: str, recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    shutil.copytree(recorded, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    request = json.loads((folder / "request.json").read_text())
    for hostile in ("![x](http://host)", "`<img src=x>", "$x$", ":smile: y", "http://host/x"):
        (folder / "request.json").write_text(json.dumps(request | {field: hostile}))
        assert list(RunStore(folder.parent).unreadable()) == ["one"]


def test_a_deleted_run_can_be_restored(recorded: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    for name in ("one", "two"):
        shutil.copytree(recorded, store.root / name, ignore=shutil.ignore_patterns("*.safetensors"))
    (store.root / "two" / "request.json").write_text("{")
    before = store.get("one")
    for name in ("one", "two"):
        store.delete(name)
        assert not (store.root / name).exists()
        with pytest.raises(UnknownNameError):
            store.get(name)
    assert store.list() == []
    assert store.unreadable() == {}
    assert store.deleted() == ["one", "two"]
    store.restore("one")
    assert store.get("one") == before
    shutil.copytree(store.root / "one", store.root / "two")
    with pytest.raises(StorageError):
        store.restore("two")
    store.purge()
    assert store.deleted() == []
    assert {run.id for run in store.list()} == {"one", "two"}


def test_recorded_and_active_runs_cannot_be_deleted(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        RunStore(paths.recorded()).delete(recorded.name)
    store, owner = RunStore(tmp_path / "runs"), Owner(tmp_path / "runs")
    run_id = store.create(RunStore(paths.recorded()).get(recorded.name).request, owner=owner.name)
    with pytest.raises(StorageError):
        store.delete(run_id)
    owner.release()
    store.delete(run_id)
    assert not store.list()


def test_bounds_of_size_and_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    deep: Any = 1
    for _ in range(checked.MOST_DEPTH + 1):
        deep = {"a": deep}
    path.write_text(json.dumps(deep))
    with pytest.raises(StorageError):
        checked.load_json(path)
    path.write_text(json.dumps(deep["a"]))
    assert checked.load_json(path) == deep["a"]
    monkeypatch.setattr(checked, "MOST_BYTES", 10)
    with pytest.raises(NPDError):
        checked.load_json(path)

"""Files are written whole or not at all, and a disk error names the file and its cause."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from npd_core.errors import StorageError
from npd_core.fileio import (
    disk_errors,
    sha256,
    staged,
    staged_folder,
    write_bytes,
    write_described,
    write_json,
    write_tensors,
    write_text,
)

WRITES = {
    "text": lambda path: write_text(path, "new"),
    "json": lambda path: write_json(path, {"new": 1}),
    "bytes": lambda path: write_bytes(path, b"new"),
    "tensors": lambda path: write_tensors(path, {"new": torch.zeros(2)}),
    "described": lambda path: write_described(path, {"new": torch.zeros(2)}, path.with_suffix(".json"), {}),
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_file_is_replaced_as_a_whole(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    WRITES[kind](path)
    first = path.read_bytes()
    path.write_bytes(b"old")
    WRITES[kind](path)
    assert path.read_bytes() == first
    assert [each.name for each in path.parent.iterdir() if each.name.startswith(".")] == []


@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failed_write_keeps_the_old_file(
    kind: str, error: BaseException, tmp_path: Path, monkeypatch: Any
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def replace(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(StorageError if isinstance(error, OSError) else KeyboardInterrupt):
        WRITES[kind](path)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"old")]


def test_weights_and_their_description_belong_together(tmp_path: Path) -> None:
    weights, path = tmp_path / "w.safetensors", tmp_path / "w.json"
    write_described(weights, {"a": torch.ones(3)}, path, {"layer": "conv1"})
    assert json.loads(path.read_text()) == {"layer": "conv1", "sha256": sha256(weights)}


def test_no_file_of_a_group_appears_without_the_others(tmp_path: Path) -> None:
    def write_one() -> None:
        with staged(tmp_path / "a", tmp_path / "b") as (first, _):
            first.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_one()
    assert list(tmp_path.iterdir()) == []


def test_json_that_no_reader_accepts_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_as_a_whole_or_stays(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for text in ("one", "two"):
        with staged_folder(folder) as fresh:
            (fresh / text).write_text(text)
        assert [path.name for path in folder.iterdir()] == [text]

    def write_half() -> None:
        with staged_folder(folder) as fresh:
            (fresh / "three").write_text("three")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/two"]


def test_the_old_folder_comes_back_when_the_move_fails(tmp_path: Path, monkeypatch: Any) -> None:
    folder, replace = tmp_path / "model", os.replace
    folder.mkdir()
    (folder / "old").touch()

    def fail_once(source: Path, target: Path) -> None:
        if target == folder and source.name.endswith(".partial"):
            raise OSError(errno.EACCES, "denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(StorageError, match="model"), staged_folder(folder) as fresh:
        (fresh / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/old"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EISDIR, errno.EIO])
def test_a_disk_error_names_the_file_and_keeps_its_cause(code: int, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="some-file") as caught, disk_errors(tmp_path / "some-file"):
        raise OSError(code, os.strerror(code))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == code

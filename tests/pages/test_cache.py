"""Results about files are cached until a file changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import streamlit as st

from npd_core import paths
from pages.shared.cache.files import by_files, stamp

calls: list[tuple[str, int]] = []


@by_files(st.cache_data(max_entries=8, show_spinner=False), lambda folder, factor=1: [Path(folder)])
def size(folder: str, factor: int = 1) -> int:
    calls.append((folder, factor))
    return factor * sum(file.stat().st_size for file in Path(folder).iterdir())


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    calls.clear()
    folder = str(tmp_path)
    assert [size(folder), size(folder), size(folder=folder, factor=1)] == [0, 0, 0]
    assert len(calls) == 1
    (tmp_path / "a").write_text("abc")
    assert [size(folder), size(folder, factor=2)] == [3, 6]
    assert len(calls) == 3
    assert size.__name__ == "size"


def test_another_data_folder_is_another_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    size(str(tmp_path))
    monkeypatch.setattr(paths, "data", lambda: tmp_path / "other")
    size(str(tmp_path))
    assert len(calls) == 2


def test_a_stamp_tells_paths_and_contents_apart(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    assert stamp(one) == (str(one),) != stamp(two)
    (one / "a").write_text("abc")
    assert len(stamp(one)) == len(stamp(one / "a")) == 2
    assert stamp(tmp_path / "absent") == (str(tmp_path / "absent"),)

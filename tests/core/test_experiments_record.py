"""Table records: what is written comes back, and what is damaged is said in one sentence."""

from __future__ import annotations

import json

import pytest

from npd_core.errors import StorageError
from npd_core.experiments.record import (
    AXES,
    TABLES,
    Cell,
    Published,
    Scores,
    Seconds,
    TableRecord,
    find_table,
    list_tables,
    read_table,
    table_path,
    write_table,
)

CELL = Cell(
    row={"attack": "blended", "clean": 50, "defense": "npd"},
    model="signs-blended-preact_resnet18-w32",
    defense="npd",
    layer="stream:layer3.0",
    before=Scores(0.99, 0.98, 0.01),
    after=Scores(0.95, 0.02, 0.9),
    der=0.96,
    seconds=Seconds(12.5, 3.0),
    config={"clean": 50},
    device="cpu",
    date="2026-11-25T12:00:00+00:00",
    published=Published(acc=0.8818, asr=0.1083, der=0.8565),
)
MISSING = Cell(
    row={"attack": "lf", "clean": 50, "defense": "npd"},
    model="none",
    defense="npd",
    failed="There is no model.",
)
RECORD = TableRecord(
    table="table6", title="Few clean images", dataset="signs", quick=True, cut=("One sentence.",),
    command="npd table 6 --quick --dataset signs", date="2026-11-25T12:00:00+00:00",
    environment={"device": "cpu"},
    cells=(CELL, MISSING),
)  # fmt: skip


def test_a_record_comes_back_as_it_was(tmp_path):
    path = table_path("table6", "signs", tmp_path / "new" / "folder")
    write_table(RECORD, path)
    assert read_table(path) == RECORD
    assert find_table("table6", "signs", path.parent) == RECORD
    assert find_table("table6", "cifar10", path.parent) is None
    assert [file.name for file in path.parent.iterdir()] == ["table6-signs.json"]


def test_the_file_is_plain_json_with_names_instead_of_positions(tmp_path):
    write_table(RECORD, tmp_path / "table6-signs.json")
    values = json.loads((tmp_path / "table6-signs.json").read_text())
    cell = values["cells"][0]
    assert cell["after"] == {"acc": 0.95, "asr": 0.02, "ra": 0.9}
    assert cell["seconds"] == {"train": 12.5, "evaluate": 3.0}
    printed = {"acc": 0.8818, "asr": 0.1083, "der": 0.8565, "seconds": None, "der_corrected": None}
    assert cell["published"] == printed
    assert cell["failed"] is None
    assert values["cells"][1]["after"] is None
    assert values["cut"] == ["One sentence."]


def test_records_are_listed_in_the_paper_s_order_and_other_files_are_none(tmp_path):
    for name in (
        "figure3-signs",
        "table2-tiny_imagenet",
        "table1-signs",
        "table1-cifar10",
        "notes",
        "table9-signs",
    ):
        (tmp_path / f"{name}.json").write_text("{}")
    names = [path.stem for path in list_tables(tmp_path)]
    assert names == ["table1-cifar10", "table1-signs", "table2-tiny_imagenet", "figure3-signs"]
    assert list_tables(tmp_path / "absent") == []


def test_the_folder_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("NPD_TABLES_DIR", str(tmp_path))
    assert table_path("table1", "signs") == tmp_path / "table1-signs.json"
    monkeypatch.delenv("NPD_TABLES_DIR")
    assert table_path("table1", "signs").parts[-4:] == ("assets", "recorded", "tables", "table1-signs.json")


def broken(**changes):
    """The record with its first cell changed."""
    values = RECORD.to_dict()
    values["cells"][0] |= changes
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"table": "table6"}',
        broken(row={"attack": "lf"}),
        broken(row={"attack": "lf", "clean": 50, "layer": "conv1"}),
        broken(after={"acc": 1.5, "asr": 0.0, "ra": 0.0}),
        broken(after={"acc": 0.5, "asr": 0.0}),
        broken(der=-0.1),
        broken(seconds={"train": -1.0, "evaluate": 0.0}),
        broken(after=None),
        broken(surprise=1),
        json.dumps(RECORD.to_dict() | {"table": "table9"}),
    ],
)
def test_a_damaged_file_is_one_sentence_with_the_remedy(tmp_path, text):
    path = tmp_path / "table6-signs.json"
    path.write_text(text)
    with pytest.raises(StorageError, match="not a readable table record") as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert "`npd table`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_cannot_be_written(tmp_path):
    with pytest.raises(StorageError, match="cannot be read"):
        read_table(tmp_path / "table1-signs.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Could not write"):
        write_table(RECORD, tmp_path / "file" / "table1-signs.json")


def test_every_table_has_its_axes():
    assert set(AXES) == set(TABLES)

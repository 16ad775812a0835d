"""Runs beside each other: rows, differing settings, curves on one scale; and a run as a zip file."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from npd_core.config.baselines import CONFIGS
from npd_core.config.npd import NPDConfig
from npd_core.config.request import DefenseRequest
from npd_core.errors import CheckpointError
from npd_core.exports.run_archive import run_archive
from npd_core.figures.curves import MetricCurves
from npd_core.figures.runs import comparison_figure, differing, outcome_figure, read_row

REQUEST = DefenseRequest(model="signs-badnets_a2o-preact_resnet18-w32", layer="layer4.1.conv1")
RESULT = {
    "layer": "layer4.1.conv1",
    "before": {"acc": 0.98, "asr": 1.0, "ra": 0.0},
    "after": {"acc": 0.97, "asr": 0.01, "ra": 0.93},
    "der": 0.99,
    "seconds": {"train": 12.5, "evaluate": 1.0},
}


def test_row_of_a_finished_run() -> None:
    row = read_row("abc", False, "finished", 5.0, REQUEST.to_dict(), RESULT)
    assert (row.kind, row.model, row.layer) == ("live", REQUEST.model, "layer4.1.conv1")
    assert (row.lambda2, row.lambda3, row.rho) == (0.4, 0.4, 3.0)
    assert (row.acc_before, row.asr_before, row.ra_before) == (0.98, 1.0, 0.0)
    assert (row.acc, row.asr, row.ra) == (0.97, 0.01, 0.93)
    assert (row.der, row.seconds) == (0.99, 12.5)


def test_row_of_a_run_without_result() -> None:
    row = read_row("abc", True, "running", 5.0, replace(REQUEST, layer=None).to_dict(), None)
    assert (row.kind, row.layer, row.acc, row.asr, row.ra, row.der, row.seconds) == (
        "recorded",
        "default",
        *[None] * 5,
    )


def test_row_of_a_baseline_has_no_layer_and_no_weights() -> None:
    asked = DefenseRequest(model="m", defense="fp", config=CONFIGS["fp"]())
    row = read_row("abc", False, "finished", 5.0, asked.to_dict(), RESULT | {"layer": None})
    assert (row.defense, row.layer, row.lambda2, row.lambda3, row.rho) == ("fp", *[None] * 4)
    assert row.der == RESULT["der"]


def test_only_settings_that_differ_are_named() -> None:
    other = replace(REQUEST, clean=100, config=NPDConfig(rho=1.0))
    assert differing({"a": REQUEST.to_dict(), "b": other.to_dict()}) == {
        "clean": [0.05, 100],
        "config.rho": [3.0, 1.0],
    }
    assert differing({"a": REQUEST.to_dict(), "b": REQUEST.to_dict()}) == {}
    assert differing({}) == {}
    assert differing({"a": {"x": 1}, "b": {}}) == {"x": [1, None]}


def test_comparison_keeps_the_look_of_a_run_in_all_three_panels() -> None:
    runs = {
        "one": MetricCurves([0, 1], [0.9, 0.8], [1.0, 0.1], [0.0, 0.7]),
        "two": MetricCurves([0], [0.9], [1.0], [None]),
    }
    for mode in ("light", "dark"):
        figure = comparison_figure(runs, mode)
        assert [(t.name, list(t.y)) for t in figure.data[:3]] == [
            ("one", [0.9, 0.8]),
            ("one", [1.0, 0.1]),
            ("one", [0.0, 0.7]),
        ]
        assert len({t.line.dash for t in figure.data[:3]}) == 1
        assert figure.data[0].line.dash != figure.data[3].line.dash
        assert {axis.range for axis in figure.select_yaxes()} == {(-0.03, 1.03)}
        assert sum(bool(t.showlegend) for t in figure.data) == 2


def test_outcomes_show_the_value_before_beside_the_one_after() -> None:
    row = read_row("abc", False, "finished", 5.0, REQUEST.to_dict(), RESULT)
    empty = read_row("def", False, "failed", 5.0, REQUEST.to_dict(), None)
    figure = outcome_figure([row, empty], ["abc", "def"])
    assert [list(trace.y) for trace in figure.data] == [[0.97, None], [0.01, None], [0.93, None]]
    assert [list(trace.customdata) for trace in figure.data] == [[0.98, None], [1.0, None], [0.0, None]]


def test_archive_takes_what_there_is_and_nothing_else(tmp_path: Path) -> None:
    for name in ("polarizer.safetensors", "polarizer.json", "result.json", "state.json", "stop"):
        (tmp_path / name).write_text(name)
    first, second = run_archive(tmp_path, "m"), run_archive(tmp_path, "m")
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first)) as packed:
        assert packed.namelist() == [
            "polarizer.safetensors",
            "polarizer.json",
            "result.json",
            "use.py",
            "README.txt",
        ]
        assert packed.read("result.json") == b"result.json"
        assert packed.testzip() is None
    (tmp_path / "polarizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=tmp_path.name):
        run_archive(tmp_path)

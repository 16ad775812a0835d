"""What every page shares: a damaged card is told, and a booth waits for the run that its address is about."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.jobs.store import Run
from pages.shared import view

OWN = "own-0123456789abcdef"


@pytest.mark.parametrize("name", ["lab", "runs"])
def test_a_damaged_card_is_told_once_and_the_other_models_stay(
    name: str,
    tiny_zoo_folder: Path,
    tiny_zoo: str,
    runs_dir: Path,
    tmp_path: Path,
    open_page: Callable[..., AppTest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zoo = tmp_path / "zoo"
    shutil.copytree(tiny_zoo_folder, zoo)
    damaged = zoo / "signs-blended-preact_resnet18-w4"
    damaged.mkdir()
    (damaged / "card.json").write_text("{ not json")
    monkeypatch.setenv("NPD_ZOO_DIR", str(zoo))
    page = open_page(name).run()
    assert not page.exception, page.exception
    assert [damaged.name in element.value for element in page.warning] == [True]
    assert len(page.selectbox(key="model").options) == 1
    assert page.selectbox(key="model").value == tiny_zoo
    (damaged / "card.json").unlink()
    page.run()
    assert not page.warning, "mended"


@pytest.mark.parametrize(
    ("address", "waits"),
    [
        ({"run": "{run}"}, True),
        ({"race": "0123,{run}"}, True),
        ({"own": OWN}, True),
        ({"model": "signs-badnets_a2o-preact_resnet18-w4"}, False),
        ({}, False),
    ],
)
def test_a_booth_waits_for_the_run_of_its_visitor(
    address: dict[str, str], waits: bool, make_run: Callable[..., Run]
) -> None:
    ended = make_run()
    model = OWN if "own" in address else ended.request.model
    active = replace(ended, state="running", request=replace(ended.request, model=model))
    said = {name: value.format(run=active.id) for name, value in address.items()}
    assert view.going_on([active], said) == waits
    assert not view.going_on([replace(active, state="finished")], said)

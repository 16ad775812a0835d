"""Shipped models with their recorded runs on the pages that show a model: a few always, all of them slow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from npd_core import paths
from npd_core.config.request import DefenseRequest
from npd_core.experiments.record import read_table
from npd_core.runs.store import Run, RunStore
from npd_core.zoo import Zoo
from npd_core.zoo.card import read_card
from pages.content.lessons import LESSONS

CARDS = {card.id: card for card in Zoo().cards(clean=True)}
PAGES = ("lab", "predictions", "attributions", "attacks", "step_by_step")
ALWAYS = ("signs-trojan-preact_resnet18-w16", "signs-input_aware-preact_resnet18-w16")


@pytest.fixture
def nothing_shipped() -> None:
    """Show what is shipped: it is what these tests are about."""


@pytest.mark.parametrize("run", RunStore(paths.recorded()).list(), ids=lambda run: run.id)
def test_a_recorded_run_belongs_to_the_shipped_model(run: Run) -> None:
    assert run.result is not None
    card, polarizer = CARDS[run.request.model], json.loads((run.folder / "polarizer.json").read_text("utf-8"))
    assert polarizer["model_sha256"] == card.files["model.safetensors"]
    assert run.result["before"]["acc"] == pytest.approx(card.acc, abs=5e-3)


def test_recorded_runs_are_named_by_their_models(open_page: Callable[..., AppTest]) -> None:
    models = {run.request.model for run in RunStore(paths.recorded()).list()}
    page = open_page("runs").run()
    titles = [words.split(" · ") for words in page.multiselect(key="compare").options]
    assert {words[0] for words in titles} == models
    assert all(words.count(words[0]) == 1 for words in titles)
    one, two = sorted(models)[:2]
    page.multiselect(key="compare").set_value([one, two]).run()
    drawn = json.loads(page.get("plotly_chart")[0].proto.spec)["data"]
    assert {trace["name"].split(" · ")[0] for trace in drawn} == {one, two}


@pytest.mark.parametrize("zoo", sorted(paths.pretrained().glob("ratio-*")), ids=lambda zoo: zoo.name)
@pytest.mark.parametrize("name", ["predictions", "attributions"])
def test_a_model_of_another_poison_ratio_is_shown_without_a_run(
    name: str, zoo: Path, runs_dir: Path, open_page: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPD_ZOO_DIR", str(zoo))
    page = open_page(name, model="signs-input_aware-preact_resnet18-w16").run()
    assert not page.exception
    assert [error.value for error in page.error] == []
    assert [info.icon for info in page.info] == [":material/info:"]


def test_a_lesson_about_a_model_begins_with_it(runs_dir: Path, open_page: Callable[..., AppTest]) -> None:
    page = open_page("lessons", model="gtsrb-badnets_a2o-preact_resnet18-w16").run()
    page.button(key="begin-layer").click().run()
    assert not page.exception
    page.run()
    assert page.session_state["model"] == LESSONS["layer"].model
    assert page.session_state["layer"] == "stream:layer3.1"


@pytest.mark.parametrize(
    "path", sorted((paths.recorded() / "tables").glob("*.json")), ids=lambda path: path.stem
)
def test_a_recorded_table_starts_from_the_shipped_models(path: Path) -> None:
    """Some cells are measured on 1000 test images, whence the tolerance."""
    for cell in read_table(path).cells:
        assert not cell.config or DefenseRequest.from_dict(cell.config).defense == cell.defense
        ratio = cell.row.get("poison_ratio", 0.1)
        folder = paths.pretrained() / (cell.model if ratio == 0.1 else f"ratio-{ratio:g}/{cell.model}")
        card = read_card(folder / "card.json")
        if cell.before is not None:
            assert cell.before == pytest.approx((card.acc, card.asr, card.ra), abs=0.02), cell.row


def shown(open_page: Callable[..., AppTest], model: str, name: str) -> None:
    runs = {run.request.model: run.id for run in RunStore(paths.recorded()).list()}
    query = {"model": model} | ({"run": runs[model]} if model in runs else {})
    page = open_page(name, **query).run()
    assert not page.exception
    assert [error.value for error in page.error] == []
    assert page.title[0].value


@pytest.mark.parametrize("model", ALWAYS)
@pytest.mark.parametrize("name", PAGES)
def test_a_learned_trigger_on_a_page(name: str, model: str, open_page: Callable[..., AppTest]) -> None:
    shown(open_page, model, name)


@pytest.mark.parametrize("name", ["lab", "predictions"])
def test_cifar_on_a_page(name: str, real_data: Path, open_page: Callable[..., AppTest]) -> None:
    shown(open_page, next(model for model, card in CARDS.items() if card.dataset == "cifar10"), name)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("model", CARDS)
def test_every_model_on_every_page(
    model: str, request: pytest.FixtureRequest, open_page: Callable[..., AppTest]
) -> None:
    if CARDS[model].dataset != "signs":
        request.getfixturevalue("real_data")
    for name in PAGES:
        shown(open_page, model, name)

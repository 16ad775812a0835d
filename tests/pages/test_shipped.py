"""Models that are shipped, on the pages that show a model, with their recorded runs: a few always, all of them slow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from npd_core import paths
from npd_core.jobs.store import RunStore
from npd_core.zoo.card import list_cards

CARDS = {card.id: card for card in list_cards(clean=True)}
PAGES = ("lab", "predictions", "attributions", "attacks", "learn")
ALWAYS = ("signs-trojan-preact_resnet18-w16", "signs-input_aware-preact_resnet18-w16")


@pytest.fixture
def nothing_shipped() -> None:
    """Here, what is shipped is what is tested."""


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

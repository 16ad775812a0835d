"""The estimate: its arithmetic against times known beforehand, what is kept on disk, and one real timing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npd_core.config.presets import preset
from npd_core.config.request import DefenseRequest
from npd_core.data.spec import get_dataset
from npd_core.runs import estimate
from npd_core.zoo import Zoo
from npd_core.zoo.card import Card

TIMING = estimate.Timing(prepare=0.01, warmup=0.02, first=0.1, later=0.03, predict=0.001)


@pytest.fixture
def asked(tiny_zoo: str) -> DefenseRequest:
    config = replace(preset("signs"), epochs=4, warmup_epochs=1, epoch_steps=1, batch_size=50, holdout=0.0)
    return DefenseRequest(model=tiny_zoo, layer="layer4.1.conv1", clean=100, config=config, eval_images=50)


@pytest.fixture
def card(tiny_zoo: str) -> Card:
    return Zoo().card(tiny_zoo)


@pytest.fixture
def timed(runs_dir: Path, asked: DefenseRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Measures nothing, but says TIMING; lists the models that were asked for."""
    models: list[str] = []

    def measure(request: DefenseRequest) -> estimate.Timing:
        models.append(request.model)
        return TIMING

    monkeypatch.setattr(estimate, "measure", measure)
    monkeypatch.setattr(estimate, "_failed", set())
    yield models
    estimate._executor.submit(lambda: None).result()


def prepare(request: DefenseRequest, card: Card) -> None:
    estimate.prepare(request, card)
    estimate._executor.submit(lambda: None).result()  # its turn comes after


def with_config(request: DefenseRequest, **changes: Any) -> DefenseRequest:
    return replace(request, config=replace(request.config, **changes))


def test_the_parts_add_up(timed: list[str], asked: DefenseRequest, card: Card) -> None:
    assert estimate.seconds(asked, card) is None
    prepare(asked, card)
    measured = (2 * 50 * 4 + 4 * get_dataset("signs").test_images) * 0.001
    assert estimate.seconds(asked, card) == pytest.approx(
        100 * (0.01 + 0.07 + 1 * 0.02 + 4 * 0.03) + measured
    )
    passes = with_config(asked, epoch_steps=5)  # three passes of two steps
    assert estimate.seconds(passes, card) == pytest.approx(100 * (0.08 + 3 * (0.02 + 4 * 0.03)) + measured)
    share = replace(asked, clean=100 / get_dataset("signs").train_images)
    assert estimate.seconds(share, card) == estimate.seconds(asked, card)


def test_only_what_changes_a_step_is_timed_again(
    timed: list[str], asked: DefenseRequest, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(asked, card)
    for same in (with_config(asked, epochs=9, lr=0.5, seed=3, batch_size=64), replace(asked, clean=7)):
        assert estimate.is_settled(same, card)
        assert estimate.seconds(same, card) is not None
    for other in (replace(asked, layer="conv1"), with_config(asked, inner_steps=7)):
        assert not estimate.is_settled(other, card)
    prepare(asked, card)
    assert len(timed) == 1
    monkeypatch.setattr(estimate, "FRESH", 0.0)
    prepare(asked, card)
    assert len(timed) == 2, "old times are taken again"


def test_the_most_epochs_within_a_limit(timed: list[str], asked: DefenseRequest, card: Card) -> None:
    prepare(asked, card)
    whole = estimate.seconds(asked, card)
    assert whole is not None
    assert estimate.epochs_within(asked, card, whole - 0.001) == 3
    assert estimate.epochs_within(asked, card, whole + 100) == 3, "fewer than requested"
    assert estimate.epochs_within(asked, card, 0.1) == 0


def test_times_of_another_machine_do_not_count(
    timed: list[str], asked: DefenseRequest, card: Card, runs_dir: Path
) -> None:
    prepare(asked, card)
    path = runs_dir / estimate.FILE
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"machine": found["machine"] | {"name": "elsewhere"}}))
    assert estimate.seconds(asked, card) is None
    path.write_text("[1, 2")
    assert estimate.seconds(asked, card) is None
    prepare(asked, card)
    assert estimate.seconds(asked, card) is not None, "a damaged file is written anew"


def test_what_cannot_be_timed_is_not_tried_again(
    asked: DefenseRequest, card: Card, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_failed", set())
    prepare(replace(asked, model="gone"), card)
    assert estimate.is_settled(asked, card)
    assert estimate.seconds(asked, card) is None


def test_a_real_timing_has_every_part(asked: DefenseRequest) -> None:
    found = estimate.measure(asked)
    assert min(found[:-1]) > 0
    assert found.first > found.later, "the inner level is solved in the first epoch alone"

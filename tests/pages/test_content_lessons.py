"""Lessons and views: names are unique, and the URL of a step opens that step."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from npd_core.config.presets import PAPER_LAYERS, default_layer
from npd_core.errors import UnknownNameError
from npd_core.zoo import Zoo
from pages.content.lessons import LESSONS, PARTS, VIEWS, Step, View, get_view

STEPS = [step for lesson in LESSONS.values() for step in lesson.steps]


def test_there_is_a_lesson_on_backdoors_layers_and_clean_data():
    assert list(LESSONS) == ["backdoor", "layer", "clean-data"]
    assert all(len(lesson.steps) >= 3 for lesson in LESSONS.values())


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_the_url_of_a_step_opens_it(step):
    parts = urlsplit(step.url())
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    assert parts.path == step.page
    assert get_view(query.pop("view")) == step
    assert set(query) == set(step.settings)
    assert step.shows <= set(PARTS)
    assert all((step.do, step.see, step.question.endswith("?"), step.answer))


@pytest.mark.parametrize("name", [lesson.id for lesson in LESSONS.values() if lesson.model])
def test_a_lesson_of_one_model_compares_different_settings_of_it(name):
    lesson = LESSONS[name]
    card = Zoo().card(lesson.model)
    settings = [step.settings for step in lesson.steps if step.page == "lab"]
    assert len(settings) == len({tuple(one.items()) for one in settings}) == 3
    points = [one["layer"] for one in settings if "layer" in one]
    assert points in ([], [default_layer(card.arch, card.dataset), PAPER_LAYERS[card.arch], "layer1.0.conv1"])


def test_steps_follow_each_other():
    first = get_view("layer")
    assert isinstance(first, Step)
    assert first.previous is None
    walked = [first]
    while walked[-1].next:
        walked.append(walked[-1].next)
    assert [step.name for step in walked] == ["layer-1", "layer-2", "layer-3", "layer-4"]
    assert walked[-1].previous == walked[-2]


def test_a_url_has_true_and_false_as_the_browser_writes_them():
    assert get_view("backdoor-2").url() == "predictions?view=backdoor-2&difference=true"


def test_named_views():
    assert get_view("simple") == VIEWS["simple"]
    assert set(PARTS) - VIEWS["simple"].shows == {"advanced"}
    assert VIEWS["focus"] == View(frozenset(), VIEWS["focus"].about)


@pytest.mark.parametrize("name", ["", "nothing", "layer-0", "layer-5", "layer-²", "layer-1-1", "-1", "Layer"])
def test_an_unknown_view_is_refused(name):
    with pytest.raises(UnknownNameError):
        get_view(name)

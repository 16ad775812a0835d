"""Lessons and views in the app: hidden parts, the bar of a step, valid settings in every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.zoo import Zoo
from pages.content.lessons import LESSONS, Step
from pages.shared import controls
from pages.shared.settings import ALL

ROOT = Path(__file__).resolve().parent.parent.parent
Open = Callable[..., AppTest]
STEPS = [step for lesson in LESSONS.values() for step in lesson.steps]
pytestmark = pytest.mark.usefixtures("tiny_zoo", "runs_dir")


def words(page: AppTest) -> str:
    assert not page.exception, page.exception
    return " ".join(element.value for kind in (page.markdown, page.info, page.error) for element in kind)


def hidden(page: AppTest) -> str:
    return " ".join(e.proto.body for e in page.get("html") if "display: none" in e.proto.body)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_the_settings_of_a_step_are_settings_of_its_page(step: Step, tiny_zoo: str) -> None:
    assert (ROOT / "pages" / f"{step.page}.py").is_file()
    if step.page != "lab":
        assert set(step.settings) <= {"difference"}
        return
    layer = {"layer": step.settings.get("layer")} if "layer" in step.settings else {}
    values = dict(step.settings) | layer
    assert controls.layers(Zoo().card(tiny_zoo)).count(layer.get("layer", "conv1")) == 1
    for name in set(values) - {"layer"}:
        assert ALL[name].url_value().parse(str(values[name])) == values[name]


def test_the_page_of_lessons(open_page: Open) -> None:
    page = open_page("lessons").run()
    assert [element.value for element in page.subheader] == [lesson.title for lesson in LESSONS.values()]
    shown = [element.value for element in page.code]
    assert len(shown) == len(STEPS)
    assert shown[5].endswith("/lab?view=layer-2&layer=layer4.1.conv1")


def test_a_step_says_what_to_do_and_leaves_out_the_rest(open_page: Open) -> None:
    page = open_page("lab", view="layer-2", layer="layer4.1.conv1").run()
    step = LESSONS["layer"].steps[1]
    assert step.do in words(page)
    assert step.question in page.expander[0].label
    assert page.selectbox(key="layer").value == "layer4.1.conv1"
    assert all(part in hidden(page) for part in ("view-model", "view-settings", "view-advanced"))
    page.button(key="lesson-leave").click().run()
    assert step.do not in words(page)
    assert hidden(page) == ""
    assert "view" not in page.query_params


def test_a_named_view(open_page: Open) -> None:
    page = open_page("lab", view="simple").run()
    assert "view-advanced" in hidden(page)
    assert "view-settings" not in hidden(page)
    assert not [button for button in page.button if button.key == "lesson-leave"]


def test_an_unknown_view_is_reported_and_ignored(open_page: Open) -> None:
    page = open_page("lab", view="layr").run()
    assert [all(name in error.value for name in ("view", "layr", "'layer'")) for error in page.error] == [
        True
    ]
    assert "view" not in page.query_params
    assert hidden(page) == ""

"""Race: two requests are sent off together, the address names both runs, the numbers stand side by side."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.defenses import preset_for
from npd_core.jobs import queue
from npd_core.jobs.store import Run
from npd_core.polarizer.presets import scene
from npd_core.request import DefenseRequest
from npd_core.zoo.card import get_card

Open = Callable[..., AppTest]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DefenseRequest, DefenseRequest]]:
    """What the page sends off; nothing runs."""
    found: list[tuple[DefenseRequest, DefenseRequest]] = []

    def race(first: DefenseRequest, second: DefenseRequest) -> tuple[str, str]:
        found.append((first, second))
        return first.key, second.key

    monkeypatch.setattr(queue.manager(), "race", race)
    return found


def test_both_runners_start_together_and_the_address_names_them(
    tiny_zoo: str, runs_dir: object, asked: list[tuple[DefenseRequest, DefenseRequest]], open_page: Open
) -> None:
    page = open_page("race").run()
    assert not page.exception, page.exception
    page.button(key="pair-fp").click().run()
    page.button(key="start").click().run()
    ((first, second),) = asked
    assert (first.layer, first.config) == scene("recommended", "preact_resnet18", "signs")
    assert (second.defense, second.layer) == ("fp", None)
    assert second.config == preset_for("fp", get_card(tiny_zoo))
    assert first.clean == second.clean
    assert first.config.seed == second.config.seed
    assert page.query_params["race"] == f"{first.key},{second.key}"


def test_a_runner_does_not_race_against_itself(tiny_zoo: str, runs_dir: object, open_page: Open) -> None:
    page = open_page("race").run()
    page.selectbox(key="second").select("recommended").run()
    assert page.button(key="start").disabled


def test_a_finished_race_says_who_leads_and_in_what_they_differ(make_run: Callable[..., Run], open_page: Open) -> None:
    one, two = make_run(seed=0), make_run(seed=0, lambda2=0.9)
    page = open_page("race", race=f"{one.id},{two.id}").run()
    assert not page.exception, page.exception
    words = " ".join(element.value for element in page.markdown)
    assert "ACC: level" in words, "both were given the same numbers"
    frame = page.dataframe[-1]
    assert list(frame.value["setting"]) == ["config.lambda2"]


@pytest.mark.parametrize(
    ("race", "says"), [("0123456789abcdef,0123456789abcdee", "There is no run"), ("one", "names 1")]
)
def test_an_address_that_leads_nowhere_is_one_sentence(
    race: str, says: str, tiny_zoo: str, runs_dir: object, open_page: Open
) -> None:
    page = open_page("race", race=race).run()
    assert not page.exception, page.exception
    assert any(says in element.value for element in page.error)

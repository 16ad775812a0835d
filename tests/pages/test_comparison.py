"""Comparison: two requests are submitted together, the URL names both runs, the metrics are side by side."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from npd_core import paths
from npd_core.config.presets import PAPER_LAYERS, default_layer, defense_config, preset
from npd_core.config.request import DefenseRequest
from npd_core.runs import queue
from npd_core.runs.store import Owner, Run, RunStore
from npd_core.zoo import Zoo

Open = Callable[..., AppTest]


def leaders(sentence: str) -> set[str]:
    """The runs that are better by some metric."""
    return set(re.findall(r"\*\*(.+?)\*\*", sentence))


@pytest.fixture
def submitted(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[DefenseRequest, DefenseRequest]]:
    """The requests that the page submits; nothing runs."""
    found: list[tuple[DefenseRequest, DefenseRequest]] = []
    store = RunStore(runs_dir)

    def together(requests: Sequence[DefenseRequest]) -> list[str]:
        first, second = requests
        found.append((first, second))
        return [store.create(request) for request in requests]

    monkeypatch.setattr(queue.manager(), "submit_together", together)
    return found


def test_both_runs_start_together_and_the_url_names_them(
    tiny_zoo: str, runs_dir: object, submitted: list[tuple[DefenseRequest, DefenseRequest]], open_page: Open
) -> None:
    page = open_page("comparison").run()
    assert not page.exception, page.exception
    page.button(key="pair-fp").click().run()
    page.button(key="start").click().run()
    ((first, second),) = submitted
    assert (first.layer, first.config) == (default_layer("preact_resnet18", "signs"), preset("signs"))
    assert (second.defense, second.layer) == ("fp", None)
    assert second.config == defense_config("fp", Zoo().card(tiny_zoo))
    assert first.clean == second.clean
    assert first.config.seed == second.config.seed
    assert page.query_params["runs"] == f"{first.key},{second.key}"


def test_layer_lambdas_and_budget_can_be_changed(
    tiny_zoo: str, runs_dir: object, submitted: list[tuple[DefenseRequest, DefenseRequest]], open_page: Open
) -> None:
    page = open_page("comparison", second_layer="layer2.0.conv1").run()
    page.selectbox(key="second").select("default").run()
    page.number_input(key="second_lambda").set_value(0.7)
    page.number_input(key="second_rho").set_value(2.0).run()
    page.button(key="start").click().run()
    assert not page.exception, page.exception
    ((first, second),) = submitted
    layer, config = default_layer("preact_resnet18", "signs"), preset("signs")
    assert (first.layer, first.config) == (layer, config)
    assert (second.layer, second.config) == (
        "layer2.0.conv1",
        replace(config, lambda2=0.7, lambda3=0.7, rho=2.0),
    )
    assert page.query_params["second_layer"] == "layer2.0.conv1"
    page.button(key="pair-fp").click().run()
    assert [box.key for box in page.selectbox if box.key in ("first_layer", "second_layer")] == [
        "first_layer"
    ]
    page.button(key="pair-paper").click().run()
    page.button(key="start").click().run()
    assert not page.exception, page.exception
    assert (submitted[1][1].layer, submitted[1][1].config) == (
        PAPER_LAYERS["preact_resnet18"],
        preset("signs", "paper"),
    )


def test_a_budget_of_zero_is_refused(tiny_zoo: str, runs_dir: object, open_page: Open) -> None:
    page = open_page("comparison", second_rho="0").run()
    assert not page.exception, page.exception
    assert ["rho" in error.value for error in page.error] == [True]


def test_runs_that_differ_in_a_setting_are_named_by_it(make_run: Callable[..., Run], open_page: Open) -> None:
    page = open_page("comparison", runs=f"{make_run(rho=2.0).id},{make_run(rho=3.5).id}").run()
    assert not page.exception, page.exception
    names = [element.value.split(" :")[0] for element in page.markdown if "-badge[" in element.value]
    assert names == ["**NPD · layer4.1.conv1 · rho 2.0**", "**NPD · layer4.1.conv1 · rho 3.5**"]


@pytest.mark.parametrize(
    ("pair", "differ"), [("paper_layer", {"layer"}), ("too_strong", {"lambda2", "lambda3"})]
)
def test_a_pair_differs_only_in_what_its_name_says(
    pair: str,
    differ: set[str],
    tiny_zoo: str,
    runs_dir: object,
    submitted: list[tuple[DefenseRequest, DefenseRequest]],
    open_page: Open,
) -> None:
    page = open_page("comparison").run()
    page.button(key=f"pair-{pair}").click().run()
    page.button(key="start").click().run()
    assert not page.exception, page.exception
    plain = [one.to_dict() | one.config.to_dict() | {"config": None} for one in submitted[0]]
    assert {name for name in plain[0] if plain[0][name] != plain[1][name]} == differ
    assert plain[1]["layer"] == (
        PAPER_LAYERS["preact_resnet18"] if pair == "paper_layer" else plain[0]["layer"]
    )


def test_equal_requests_cannot_be_compared(
    tiny_zoo: str, runs_dir: object, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PAPER_LAYERS, "preact_resnet18", default_layer("preact_resnet18", "signs"))
    page = open_page("comparison").run()
    page.selectbox(key="second").select("paper_layer").run()
    assert not page.exception, page.exception
    assert "pair-fp" in [button.key for button in page.button]
    assert "pair-paper_layer" not in [button.key for button in page.button]
    assert page.button(key="start").disabled


def test_two_runs_of_one_request_have_different_names(make_run: Callable[..., Run], open_page: Open) -> None:
    first = make_run(seed=0)
    shutil.copytree(first.folder, first.folder.with_name(f"{first.id}-2"))
    page = open_page("comparison", runs=f"{first.id},{first.id}-2").run()
    assert not page.exception, page.exception
    assert not page.error
    names = [element.value for element in page.markdown if "-badge[" in element.value]
    assert names[0].split(" :")[0] == f"**NPD · layer4.1.conv1 · {first.id[:6]}**"
    assert names[1].split(" :")[0] == f"**NPD · layer4.1.conv1 · {first.id[:6]}-2**"


def test_stopping_a_comparison_with_a_recorded_run_stops_the_other(
    make_run: Callable[..., Run],
    tiny_zoo: str,
    runs_dir: Path,
    tmp_path: Path,
    open_page: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = make_run(seed=0)
    folder = tmp_path / "recorded"
    folder.mkdir()
    shutil.move(recorded.folder, folder / recorded.id)
    monkeypatch.setattr(paths, "recorded", lambda: folder)
    owner = Owner(runs_dir)
    waiting = RunStore(runs_dir).create(replace(recorded.request, clean=24), owner=owner.name)
    page = open_page("comparison", runs=f"{recorded.id},{waiting}").run()
    page.button(key="stop").click().run()
    assert not page.exception, page.exception
    assert not page.error
    assert RunStore(runs_dir).stop_requested(waiting)
    owner.release()


def test_a_defense_is_not_compared_with_itself(tiny_zoo: str, runs_dir: object, open_page: Open) -> None:
    page = open_page("comparison").run()
    page.selectbox(key="second").select("default").run()
    assert page.button(key="start").disabled


def test_finished_runs_show_who_leads_and_what_differs(make_run: Callable[..., Run], open_page: Open) -> None:
    one, two = make_run(seed=0), make_run(seed=0, lambda2=0.9)
    page = open_page("comparison", runs=f"{one.id},{two.id}").run()
    assert not page.exception, page.exception
    assert [leaders(element.value) for element in page.markdown if "ACC:" in element.value] == [set()]
    numbers, settings = page.dataframe
    assert list(settings.value["setting"]) == ["config.lambda2"]
    assert list(numbers.value["epoch"]) == [0, 1, 2] * 2
    assert list(numbers.value["ASR"])[1:3] == [0.5, pytest.approx(0.1)]


def test_a_comparison_survives_a_visit_to_another_page_until_it_is_closed(
    make_run: Callable[..., Run], open_page: Open
) -> None:
    one, two = make_run(seed=0), make_run(seed=0, lambda2=0.9)
    page = open_page("comparison", runs=f"{one.id},{two.id}").run()
    page.query_params.clear()  # as the menu does
    page.run()
    assert not page.exception, page.exception
    assert page.query_params["runs"] == f"{one.id},{two.id}"
    page.button(key="close").click().run()
    assert not page.exception, page.exception
    assert "runs" not in page.query_params
    assert not page.metric
    page.run()
    assert "runs" not in page.query_params


def test_a_new_comparison_replaces_the_last(
    make_run: Callable[..., Run], open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, one, two = make_run(seed=0), make_run(seed=1), make_run(seed=2)
    monkeypatch.setattr(queue.manager(), "submit_together", lambda requests: [one.id, two.id])
    page = open_page("comparison", runs=f"{last.id},{one.id}").run()
    page.button(key="start").click().run()
    page.query_params.clear()
    page.run()
    assert not page.exception, page.exception
    assert page.query_params["runs"] == f"{one.id},{two.id}"


@pytest.mark.parametrize("runs", ["0123456789abcdef,0123456789abcdee", "one", "one,one"])
def test_a_url_that_leads_nowhere_is_one_sentence(
    runs: str, tiny_zoo: str, runs_dir: object, open_page: Open
) -> None:
    page = open_page("comparison", runs=runs).run()
    assert not page.exception, page.exception
    assert [runs in element.value for element in page.error] == [True]
    assert "runs" not in page.query_params, "it is not restored"

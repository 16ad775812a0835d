"""Ablations: each question's rows or curves, recorded beside published, and each row run live."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.config.presets import defense_config, preset
from npd_core.config.request import DefenseRequest
from npd_core.experiments.record import Published
from npd_core.zoo import Zoo

Open = Callable[..., AppTest]
MINE = {"attack": "badnets_a2o"}


@pytest.fixture
def open_question(open_page: Open) -> Open:
    """Opens the question that a table answers, as `open_question("table4")`."""

    def build(table: str) -> AppTest:
        page = open_page("ablations").run()
        choice = page.segmented_control(key="question")
        choice.set_value(choice.options[int(table[-1]) - 3]).run()
        return page

    return build


def errors(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.error]


def traces(page: AppTest, metric: str = "asr") -> dict[str, dict[str, Any]]:
    """What is drawn of a metric, by name; without the bars that stand for a source in the legend."""
    (found,) = [c for c in page.get("bidi_component") if c.proto.id.endswith(f"-ablation-{metric}")]
    drawn = json.loads(json.loads(found.proto.json)["figure"])["data"]
    return {trace["name"]: trace for trace in drawn if trace.get("x") != [None]}


def asked_by(page: AppTest, manager: Any, table: str, row: str) -> DefenseRequest:
    """What the button asks for when this row is chosen; each page can ask once."""
    page.selectbox(key=f"row-{table}").select(row).run()
    page.button(key="start").click().run()
    assert errors(page) == []
    return manager.requests[-1]


def test_rows_of_loss_terms_and_a_run_of_one(
    tiny_zoo: str, manager: Any, make_table: Callable, make_cell: Callable, open_page: Open
) -> None:
    make_table(
        "table3",
        [
            make_cell(MINE | {"terms": "bn"}, 0.98, 0.99, published=Published(0.91, 0.96)),
            make_cell(MINE | {"terms": "bn+bce1"}, 0.95, 0.1),
        ],
    )
    page = open_page("ablations").run()
    assert errors(page) == []
    bars = {name: dict(zip(t["y"], t["x"], strict=True)) for name, t in traces(page).items()}
    assert bars["recorded"] == {"No defense": 1.0, "bn": 0.99, "bn + bce1": 0.1}
    assert bars["published"] == {"No defense": None, "bn": 0.96, "bn + bce1": None}
    asked = asked_by(page, manager, "table3", "bn + bce1")
    config, whole = asked.config, preset("signs")
    assert (config.lambda1, config.lambda2, config.lambda3, config.lambda4) == (
        whole.lambda1,
        0,
        whole.lambda3,
        0,
    )
    assert (asked.model, asked.defense, config.epochs) == (tiny_zoo, "npd", whole.epochs)


def test_the_row_comes_from_the_url(
    tiny_zoo: str, manager: Any, make_table: Callable, open_page: Open
) -> None:
    page = open_page("ablations", **{"row-table3": "bn + bce1"}).run()
    assert errors(page) == []
    assert page.selectbox(key="row-table3").value == "bn + bce1"
    page = open_page("ablations", **{"row-table3": "nothing"}).run()
    (sentence,) = errors(page)
    assert "nothing" in sentence
    assert page.selectbox(key="row-table3").value == page.selectbox(key="row-table3").options[-1]


def test_each_target_is_a_variant(
    tiny_zoo: str, manager: Any, make_table: Callable, open_question: Open
) -> None:
    page = open_question("table4")
    assert "`npd table 4 --quick --dataset signs`" in page.info[0].value
    asked = asked_by(page, manager, "table4", "NPD-UP, untargeted")
    assert (asked.defense, asked.config) == ("npd_up", preset("signs", variant="npd_up"))


def test_ratios_are_other_models_than_the_chosen_one(
    tiny_zoo: str, manager: Any, make_table: Callable, make_cell: Callable, open_question: Open
) -> None:
    rows = {0.2: 0.05, 0.05: 0.3}
    cells = [make_cell(MINE | {"poison_ratio": r, "defense": "npd"}, asr=asr) for r, asr in rows.items()]
    make_table("table5", cells)
    page = open_question("table5")
    assert errors(page) == []
    lines = {name: (t["x"], t["y"]) for name, t in traces(page).items()}
    assert lines["NPD"] == (["5%", "20%"], [0.3, 0.05])
    assert lines["No defense"] == (["5%", "20%"], [1.0, 1.0])
    assert Zoo().card(tiny_zoo).poison_ratio == 0.2
    assert not page.info, "the chosen model is among them"
    (row,) = page.selectbox(key="row-table5").options
    assert "20%" in row
    make_table("table5", [*cells, make_cell(MINE | {"poison_ratio": 0.4, "defense": "npd"}, asr=0.1)])
    page = open_question("table5")
    assert not page.info
    make_table("table5", cells[1:])
    page = open_question("table5")
    assert [info.icon for info in page.info] == [":material/compare_arrows:"], "same name, another ratio"


def test_curves_over_the_number_of_clean_images(
    tiny_zoo: str, manager: Any, make_table: Callable, make_cell: Callable, open_question: Open
) -> None:
    numbers = {(500, "npd"): 0.02, (50, "npd"): 0.1, (500, "anp"): 0.3, (50, "anp"): 0.4}
    paper = Published(0.87, 0.2, 0.9)
    make_table(
        "table6",
        [
            make_cell(MINE | {"clean": n, "defense": d}, asr=a, published=paper)
            for (n, d), a in numbers.items()
        ],
    )
    page = open_question("table6")
    assert errors(page) == []
    lines = {name: (t["x"], t["y"]) for name, t in traces(page).items()}
    assert lines["NPD"] == (["50", "500"], [0.1, 0.02])
    assert lines["ANP"] == (["50", "500"], [0.4, 0.3])
    assert lines["NPD, published"] == (["50", "500"], [0.2, 0.2])
    asked = asked_by(page, manager, "table6", "ANP, 50 clean images")
    assert (asked.defense, asked.clean, asked.config) == (
        "anp",
        50,
        defense_config("anp", Zoo().card(tiny_zoo)),
    )

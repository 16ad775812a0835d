"""Layers: the drawing and the curve of recorded layers, the numbers of the chosen one, runs, the Lab."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.config.presets import default_layer, preset
from npd_core.config.request import DefenseRequest

Open = Callable[..., AppTest]


@pytest.fixture
def figure3(make_table: Callable, make_cell: Callable, tiny_zoo: str) -> None:
    """Three layers of the tiny model, one that failed, and one of a model of another attack."""
    row = {"attack": "badnets_a2o"}
    make_table(
        "figure3",
        [
            make_cell(row | {"layer": "after:layer4.0.conv2"}, 0.98, 0.02, 0.9),
            make_cell(row | {"layer": "stream:layer3.0"}, 0.94, 0.01, 0.95, der=0.999),
            make_cell(row | {"layer": "after:conv1"}, 0.5, 0.97, 0.01),
            make_cell(
                row | {"layer": "after:layer1.0.conv1"}, after=None, der=None, failed="Training diverged."
            ),
            make_cell(
                {"attack": "lf", "layer": "after:conv1"}, 0.4, 0.3, model="signs-lf-preact_resnet18-w16"
            ),
        ],
    )


def errors(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.error]


def component(page: AppTest, key: str) -> dict[str, Any]:
    (found,) = [c for c in page.get("bidi_component") if c.proto.id.endswith(f"-{key}")]
    return json.loads(found.proto.json)


def test_recorded_layers_color_the_drawing_and_the_best_one_is_chosen(
    figure3: None, manager: Any, open_page: Open
) -> None:
    page = open_page("layers").run()
    assert errors(page) == []
    drawn = component(page, "layer_drawing")
    assert drawn["selected"] == page.selectbox(key="insertion_layer").value == "after:layer4.0.conv2"
    numbers = {layer: found["short"] for layer, found in drawn["tint"]["points"].items()}
    assert numbers == {"after:layer4.0.conv2": "2%", "stream:layer3.0": "1%", "after:conv1": "97%"}
    assert [metric.value for metric in page.metric] == ["98.0%", "2.0%", "90.0%", "0.985"], (
        "ACC, ASR, RA, DER"
    )
    (origin,) = [caption.value for caption in page.caption if "2026-01-02 03:04" in caption.value]
    for part in ("recorded", "`signs-badnets_a2o-preact_resnet18-w4`", "seed 3", "cpu"):
        assert part in origin

    page.segmented_control(key="color").set_value("acc").run()
    assert errors(page) == []
    drawn = component(page, "layer_drawing")["tint"]
    assert (drawn["metric"], drawn["low"]) == ("acc", "50%")
    assert drawn["points"]["after:conv1"]["short"] == "50%"


def test_the_curve_goes_forward_through_the_network(figure3: None, manager: Any, open_page: Open) -> None:
    page = open_page("layers").run()
    plot = json.loads(component(page, "layers")["figure"])
    assert plot["layout"]["xaxis"]["categoryarray"] == [
        "after:conv1",
        "stream:layer3.0",
        "after:layer4.0.conv2",
    ]
    line = next(t for t in plot["data"] if t["legendgroup"] == "asr" and t["mode"] == "lines+markers")
    assert (line["x"], line["y"]) == (["after:conv1", "after:layer4.0.conv2"], [0.97, 0.02])
    assert plot["layout"]["shapes"][0]["x0"] == 2
    rows = page.dataframe[0].value
    assert list(rows["ASR"].dropna()) == [0.02, 0.01, 0.97]
    assert rows["note"].dropna().tolist() == ["Training diverged."]


def test_a_layer_of_the_url_can_be_run(tiny_zoo: str, figure3: None, manager: Any, open_page: Open) -> None:
    page = open_page("layers", insertion_layer="layer2.0.conv1").run()
    assert errors(page) == []
    assert not page.metric, "nothing is recorded there"
    page.button(key="start").click().run()
    assert errors(page) == []
    (asked,) = manager.requests
    assert (asked.model, asked.layer, asked.config) == (tiny_zoo, "layer2.0.conv1", preset("signs"))
    assert page.query_params["run"] == asked.key


def test_a_recorded_run_with_the_former_default_layer_is_repeated_at_that_layer(
    tiny_zoo: str, make_table: Callable, make_cell: Callable, manager: Any, open_page: Open
) -> None:
    layer = "stream:layer4.1"
    assert layer != default_layer("preact_resnet18", "signs")
    unnamed = DefenseRequest(model=tiny_zoo, config=preset("signs"))
    make_table("figure3", [make_cell({"attack": "badnets_a2o", "layer": layer}, request=unnamed)])
    page = open_page("layers", insertion_layer=layer).run()
    page.button(key="start").click().run()
    assert errors(page) == []
    assert [asked.layer for asked in manager.requests] == [layer]


def test_numbers_of_another_model_are_named_as_such(
    tiny_zoo: str, make_table: Callable, make_cell: Callable, manager: Any, open_page: Open
) -> None:
    other = "signs-badnets_a2o-preact_resnet18-w16"
    make_table("figure3", [make_cell({"attack": "badnets_a2o", "layer": "after:conv1"}, model=other)])
    page = open_page("layers", insertion_layer="after:conv1").run()
    assert errors(page) == []
    assert [info.icon for info in page.info] == [":material/compare_arrows:"]
    assert f"`{other}`" in page.info[0].value
    page.button(key="start").click().run()
    assert manager.requests[0].layer == "after:conv1"


def test_an_unknown_layer_is_refused_in_one_sentence(figure3: None, manager: Any, open_page: Open) -> None:
    page = open_page("layers", insertion_layer="layer9").run()
    (sentence,) = errors(page)
    assert "'layer9'" in sentence
    assert page.selectbox(key="insertion_layer").value == "after:layer4.0.conv2"


def test_without_a_record_the_drawing_has_no_colors(
    tiny_zoo: str, manager: Any, make_table: Callable, open_page: Open
) -> None:
    page = open_page("layers").run()
    assert errors(page) == []
    assert "`npd table figure3 --quick --dataset signs`" in page.info[0].value
    drawn = component(page, "layer_drawing")
    assert (drawn["tint"], drawn["selected"]) == (None, default_layer("preact_resnet18", "signs"))


def test_the_lab_is_named_with_this_layer(figure3: None, manager: Any, open_page: Open) -> None:
    page = open_page("layers").run()
    page.button(key="lab").click().run()
    assert errors(page) == []
    assert any("lab?layer=after:layer4.0.conv2" in info.value for info in page.info)

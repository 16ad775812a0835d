"""The page that shows which pixels decide."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from streamlit.testing.v1 import AppTest

from npd_core.attribution import METHODS
from npd_core.runs.store import Run

Open = Callable[..., AppTest]
Make = Callable[..., Run]


def chart(page: AppTest, place: int) -> dict:
    return json.loads(page.get("plotly_chart")[place].proto.spec)


def maps_of(page: AppTest) -> str:
    return "".join(element.proto.body for element in page.get("html"))


def legend(page: AppTest) -> str:
    (found,) = re.findall(r"<em>(.*?)</em>", maps_of(page))
    return found


def errors(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.error]


def test_four_maps_on_one_scale_and_the_channels(open_page: Open, make_run: Make) -> None:
    run = make_run()
    page = open_page("attributions", run=run.id, image="8").run()
    assert errors(page) == []
    html = maps_of(page)
    assert len(set(re.findall(r"<img src='([^']+)'", html))) == 6, "two images and four different maps"
    assert len(re.findall(r"<small>(?!&nbsp;)", html)) == 4, "a prediction beside every map"
    assert html.count("linear-gradient(90deg") == 1, "one legend for all"
    assert len(chart(page, 0)["data"]) == 2, "before and after the polarizer"


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, open_page: Open, make_run: Make) -> None:
    run = make_run()
    page = open_page("attributions", run=run.id, method=METHODS[method].title, image="3").run()
    assert errors(page) == []
    assert page.selectbox(key="method").value == METHODS[method].title
    assert any(str(escape(METHODS[method].look_for)) in element.proto.body for element in page.get("html"))


def test_target_of_choice(open_page: Open, make_run: Make) -> None:
    run = make_run()
    page = open_page("attributions", run=run.id, image="3").run()
    attacked, true = page.selectbox(key="target").options[:2]
    page = open_page("attributions", run=run.id, image="3", target=true).run()
    assert errors(page) == []
    assert page.selectbox(key="target").value == true
    before = legend(page)
    page.selectbox(key="target").select(attacked).run()
    assert legend(page) != before
    page.selectbox(key="target").select("yield").run()
    assert errors(page) == []
    assert "yield" in legend(page)
    assert "yield" not in before


def test_new_sample_is_one_that_can_be_hijacked(open_page: Open, make_run: Make) -> None:
    run = make_run()
    page = open_page("attributions", run=run.id).run()
    before = page.number_input(key="image").value
    assert page.query_params["image"] == str(before)
    page.button(key="new_sample").click().run()
    assert errors(page) == []
    assert page.number_input(key="image").value != before
    assert not page.info, "not a image of the target class"


def test_clean_image_for_the_channels(open_page: Open, make_run: Make) -> None:
    run = make_run()
    page = open_page("attributions", run=run.id, image="3").run()
    triggered = chart(page, 0)
    page.radio(key="channel_image").set_value("clean").run()
    assert errors(page) == []
    linked = open_page("attributions", run=run.id, image="3", channel_image="clean").run()
    assert chart(linked, 0)["data"] == chart(page, 0)["data"]
    values = [np.asarray(c["data"][0]["customdata"], dtype=object) for c in (triggered, chart(page, 0))]
    assert values[0].tolist() != values[1].tolist()


def test_garbage_in_the_url_falls_back(open_page: Open, make_run: Make) -> None:
    run = make_run()
    page = open_page(
        "attributions", run=run.id, image="999999", method="crystal_ball", target="unicorn"
    ).run()
    assert len(errors(page)) == 3
    for sentence, value in zip(errors(page), ("999999", "crystal", "unicorn"), strict=True):
        assert value in sentence
    assert maps_of(page).count("<figure") == 6


def test_unknown_run(open_page: Open, make_run: Make) -> None:
    make_run()
    page = open_page("attributions", run="0000000000000000").run()
    assert len(errors(page)) == 1
    assert "0000000000000000" in errors(page)[0]
    assert maps_of(page).count("<figure") == 6, "another run of the model is shown"


def test_without_a_run_the_page_says_what_to_do(open_page: Open, tiny_zoo: str, runs_dir: Path) -> None:
    page = open_page("attributions").run()
    assert errors(page) == []
    assert [info.icon for info in page.info] == [":material/info:"]
    assert "<figure" not in maps_of(page)


def test_tampered_model(
    open_page: Open,
    make_run: Make,
    tiny_zoo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run()
    source = next(tiny_zoo_folder.glob("*/card.json")).parent
    folder = tmp_path / "zoo" / source.name
    folder.mkdir(parents=True)
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 0xFF
    (folder / "model.safetensors").write_bytes(bytes(weights))
    monkeypatch.setenv("NPD_ZOO_DIR", str(folder.parent))
    for name in ("attributions", "predictions"):
        page = open_page(name, run=run.id).run()
        assert len(errors(page)) == 1
        assert "sha256" in errors(page)[0]

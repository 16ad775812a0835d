"""The page that shows clean, triggered and purified images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.names import DEFENSES
from npd_core.runs.store import Run

Open = Callable[..., AppTest]
Make = Callable[..., Run]
AMPLIFIED, PURIFIED, OLD = (
    f"'npd-{name}'" for name in ("tile npd-muted", "tile npd-polarizer", "prediction npd-old")
)


def gallery_of(page: AppTest) -> str:
    return "".join(element.proto.body for element in page.get("html"))


def errors(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.error]


def test_shows_three_states_of_each_image_with_both_predictions(open_page: Open, make_run: Make) -> None:
    run = make_run()
    page = open_page("predictions", run=run.id, images="5,17").run()
    assert errors(page) == []
    html = gallery_of(page)
    assert html.count("<section") == 2
    assert "#5 ·" in html
    assert "#17 ·" in html
    for tone in ("benign", "trigger", "polarizer"):
        assert html.count(f"'npd-tile npd-{tone}'") == 2, tone
    assert [html.count(f"npd-prediction npd-{who}'") for who in ("old", "new")] == [4, 4]
    assert html.count("data:image/png;base64,") == 6
    assert len(re.findall(r" alt='[^']+'", html)) == 6
    assert [metric.value for metric in page.metric] == ["79.0%", "3.0%", "74.0%", "0.960"]
    assert len(page.get("plotly_chart")) == 2


def test_new_sample_draws_other_images_and_writes_them_to_the_url(open_page: Open, make_run: Make) -> None:
    make_run()
    page = open_page("predictions").run()
    first = page.query_params["images"]
    page.button(key="new_sample").click().run()
    second = page.query_params["images"]
    assert errors(page) == []
    assert first != second
    again = page.run()
    assert again.query_params["images"] == second, "a mere refresh changes nothing"


def test_images_of_one_class_only(open_page: Open, make_run: Make) -> None:
    make_run()
    page = open_page("predictions").run()
    page.selectbox(key="filter").select("yield").run()
    assert errors(page) == []
    html = gallery_of(page)
    assert html.count("· yield</h4>") == 4


def test_any_image_by_number_comes_first(open_page: Open, make_run: Make) -> None:
    make_run()
    page = open_page("predictions", images="1,2").run()
    page.number_input(key="number").set_value(99).run()
    assert errors(page) == []
    assert page.query_params["images"] == "99,1", "as many as before"


def test_difference_view(open_page: Open, make_run: Make) -> None:
    make_run()
    page = open_page("predictions", images="5").run()
    assert AMPLIFIED not in gallery_of(page)
    page.toggle(key="difference").set_value(True).run()
    assert errors(page) == []
    assert AMPLIFIED in gallery_of(page)


def test_without_a_run_the_backdoored_network_is_shown_and_the_page_says_what_to_do(
    open_page: Open,
    tiny_zoo: str,
    runs_dir: Path,
) -> None:
    page = open_page("predictions").run()
    assert errors(page) == []
    assert [info.icon for info in page.info] == [":material/info:"]
    html = gallery_of(page)
    assert OLD in html
    assert PURIFIED not in html


def test_an_unknown_run_is_named_and_the_page_works(open_page: Open, make_run: Make) -> None:
    make_run()
    page = open_page("predictions", run="feedfeedfeedfeed").run()
    assert len(errors(page)) == 1
    assert "feedfeedfeedfeed" in errors(page)[0]
    assert PURIFIED in gallery_of(page)


def test_a_changed_polarizer_is_refused_and_the_page_works(open_page: Open, make_run: Make) -> None:
    run = make_run()
    weights = run.folder / "polarizer.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0xFF
    weights.write_bytes(bytes(data))
    page = open_page("predictions", run=run.id, images="5").run()
    assert len(errors(page)) == 1
    assert "polarizer.safetensors" in errors(page)[0]
    assert OLD in gallery_of(page)
    assert PURIFIED not in gallery_of(page)


def test_a_run_of_a_baseline_has_no_polarizer_and_is_refused(
    open_page: Open, make_run: Make, make_baseline: Make
) -> None:
    repaired, good = make_baseline("fp"), make_run(seed=2)
    for name in ("predictions", "attributions"):
        page = open_page(name, run=repaired.id).run()
        assert errors(page) == []
        (warning,) = [element.value for element in page.warning]
        assert repaired.id in warning
        assert DEFENSES["fp"] in warning
        assert any(good.id in caption.value for caption in page.caption)


def test_what_is_chosen_is_in_the_url(open_page: Open, make_run: Make) -> None:
    make_run()
    page = open_page("predictions", filter="yield", count="6", images="5,17", focus="#17 · yield").run()
    (sentence,) = errors(page)
    assert "focus" in sentence
    assert (page.selectbox(key="filter").value, page.selectbox(key="count").value) == ("yield", 6)
    assert "#5 ·" in gallery_of(page)


def test_the_image_in_focus_is_in_the_url(open_page: Open, make_run: Make) -> None:
    make_run()
    page = open_page("predictions", images="5,17").run()
    title = page.selectbox(key="focus").options[1]
    page = open_page("predictions", images="5,17", focus=title).run()
    assert errors(page) == []
    assert page.selectbox(key="focus").value == 17
    page.number_input(key="number").set_value(99).run()
    assert errors(page) == []
    assert page.selectbox(key="focus").value == 99, "the other image is gone"


def test_a_run_without_polarizer_gives_way_to_a_finished_one(open_page: Open, make_run: Make) -> None:
    failed, good = make_run(polarizer=False, seed=1), make_run(seed=2)
    page = open_page("predictions", run=failed.id, images="5").run()
    assert errors(page) == []
    assert "Training diverged." in page.warning[0].value
    assert any(good.id in caption.value for caption in page.caption)
    assert PURIFIED in gallery_of(page)


@pytest.mark.parametrize("asked", ["nonsense", "1,99999", "-4"])
def test_images_that_do_not_exist_are_refused_in_one_sentence(
    asked: str, open_page: Open, make_run: Make
) -> None:
    make_run()
    page = open_page("predictions", images=asked).run()
    assert len(errors(page)) == 1
    assert asked in errors(page)[0]
    assert PURIFIED in gallery_of(page)


def test_an_empty_zoo(
    open_page: Open, tmp_path: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path))
    page = open_page("predictions").run()
    assert errors(page) == []
    assert "`npd zoo train" in page.info[0].value


def test_absent_data(
    open_page: Open,
    tiny_zoo_folder: Path,
    tmp_path: Path,
    runs_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same weights on a card that says GTSRB, of which there is nothing on this machine."""
    source = next(tiny_zoo_folder.glob("*/card.json")).parent
    folder = tmp_path / "zoo" / "gtsrb-badnets_a2o-preact_resnet18-w4"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    card = json.loads((source / "card.json").read_text()) | {"id": folder.name, "dataset": "gtsrb"}
    (folder / "card.json").write_text(json.dumps(card))
    monkeypatch.setenv("NPD_ZOO_DIR", str(folder.parent))
    monkeypatch.setenv("NPD_DATA_DIR", str(tmp_path / "nothing"))
    (refusal,) = errors(open_page("predictions").run())
    assert "npd data get gtsrb" in refusal
    page = open_page("attributions").run()
    assert errors(page) == []
    assert [info.icon for info in page.info] == [":material/info:"], "no run, so no image is needed"

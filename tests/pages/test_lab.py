"""The Lab: settings become a request, errors of the core are shown, a run in the URL is opened again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.config.presets import PAPER_LAYERS, PRESETS, default_layer, preset
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.runs import estimate
from npd_core.runs.store import Run
from npd_core.zoo import Zoo
from pages.shared import controls, describe, duration
from pages.shared.settings import ALL

Open = Callable[..., AppTest]
Make = Callable[..., Run]


def errors(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.error]


def test_the_defaults_are_those_of_the_preset(tiny_zoo: str, manager, open_page: Open) -> None:
    page = open_page("lab").run()
    assert errors(page) == []
    page.button(key="start").click().run()
    assert errors(page) == []
    (request,) = manager.requests
    assert request.model == tiny_zoo
    assert request.layer == default_layer("preact_resnet18", "signs")
    assert request.config == preset("signs")
    assert request.eval_images > 0
    assert page.query_params["run"] == request.key


def test_a_preset_sets_every_widget_and_is_recognized(tiny_zoo: str, manager, open_page: Open) -> None:
    page = open_page("lab", clean="120", seed="3").run()
    assert any(caption.value == PRESETS["default"].help for caption in page.caption)
    page.button(key="preset-too_weak").click().run()
    assert errors(page) == []
    assert any(PRESETS["too_weak"].help in caption.value for caption in page.caption)
    page.button(key="preset-paper").click().run()
    page.button(key="start").click().run()
    (request,) = manager.requests
    assert request.layer == PAPER_LAYERS["preact_resnet18"]
    assert request.config == replace(preset("signs", "paper"), seed=3)
    assert request.clean == 120
    page.slider(key="lambda2").set_value(1.0).run()
    assert not {preset.help for preset in PRESETS.values()} & {caption.value for caption in page.caption}


def test_every_widget_reaches_the_request(tiny_zoo: str, manager, open_page: Open) -> None:
    page = open_page("lab").run()
    page.selectbox(key="layer").select("stream:layer4.0")
    page.slider(key="lambda2").set_value(0.8)
    page.number_input(key="epochs").set_value(3)
    page.number_input(key="clean").set_value(120)
    page.selectbox(key="norm").select("linf")
    page.number_input(key="rho").set_value(0.1)
    page.number_input(key="lambda4").set_value(0.25)
    page.selectbox(key="bn_mode").select("stats_fold")
    page.button(key="start").click().run()
    assert errors(page) == []
    (request,) = manager.requests
    assert (request.layer, request.clean) == ("stream:layer4.0", 120)
    config = request.config
    assert (config.lambda2, config.lambda4, config.epochs) == (0.8, 0.25, 3)
    assert (config.norm, config.rho, config.bn_mode) == ("linf", 0.1, "stats_fold")


def test_the_length_of_inner_steps_follows_their_direction(tiny_zoo: str, manager, open_page: Open) -> None:
    page = open_page("lab").run()
    page.number_input(key="inner_steps").set_value(3).run()
    page.selectbox(key="inner_step").select("l2").run()
    page.selectbox(key="inner_step").select("sign").run()
    assert page.number_input(key="inner_lr").value == 0.1
    page.selectbox(key="inner_step").select("l2").run()
    page.button(key="start").click().run()
    assert errors(page) == []
    (request,) = manager.requests
    assert request.config.inner_lr == pytest.approx(1.5 * request.config.rho / 3)


def test_settings_come_from_the_url(tiny_zoo: str, manager, open_page: Open) -> None:
    page = open_page("lab", lambda3="1.2", layer="after:layer2.0.conv1", seed="7").run()
    assert errors(page) == []
    page.button(key="start").click().run()
    assert manager.requests[0].config.lambda3 == 1.2
    assert manager.requests[0].config.seed == 7
    assert manager.requests[0].layer == "after:layer2.0.conv1"


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"lambda2": "-1"}, "from 0 to 2"),
        ({"lambda2": "nan"}, "from 0 to 2"),
        ({"lambda2": "five"}, "from 0 to 2"),
        ({"rho": "0"}, "from 0.001 to 1000"),
        ({"norm": "l3"}, "'l2'"),
        ({"epochs": "100000"}, "from 1 to 200"),
        ({"epochs": "9" * 400}, "from 1 to 200"),
        ({"epochs": "inf"}, "from 1 to 200"),
        ({"lambda4": "1e999"}, "from 0 to 10"),
        ({"seed": "9" * 400}, "from 0 to"),
        ({"layer": "layer4.1.conv3"}, "'layer4.1.conv"),
        ({"model": "signs-badnets"}, "signs-badnets_a2o"),
        ({"run": "0123456789abcdef"}, ""),
    ],
)
def test_nonsense_in_the_url_is_one_sentence_and_a_working_page(
    query: dict[str, str], named: str, tiny_zoo: str, manager, open_page: Open
) -> None:
    page = open_page("lab", **query).run()
    (shown,) = errors(page)
    ((name, value),) = query.items()
    assert all(part in shown for part in (name, value[:40], named))
    page.button(key="start").click().run()
    assert errors(page) == []
    assert len(manager.requests) == 1


def test_what_the_browser_sends_is_checked_again(tiny_zoo: str) -> None:
    card = Zoo().card(tiny_zoo)
    good = {"clean": 100, **controls.defaults(card).config.to_dict()}
    assert controls.build(card, "layer4.1.conv1", good).clean == 100
    for change in (
        {"clean": 10**6},
        {"clean": 0},
        {"clean": 0.5},
        {"epochs": 10**6},
        {"lambda1": -1.0},
        {"rho": 0.0},
    ):
        with pytest.raises(ConfigError):
            controls.build(card, "layer4.1.conv1", good | change)
    with pytest.raises(UnknownNameError):
        controls.build(card, "layer9", good)


def test_a_finished_run_of_the_url_is_opened(manager, make_run: Make, open_page: Open) -> None:
    run = make_run(seed=5)
    page = open_page("lab", run=run.id).run()
    assert errors(page) == []
    values = {metric.label: metric.value for metric in page.metric}
    assert values == {
        "ACC": "79.0%",
        "ASR": "3.0%",
        "RA": "74.0%",
        "DER": "0.960",
    }
    assert any(describe.provenance(run) in caption.value for caption in page.caption)
    page.button(key="adopt").click().run()
    assert errors(page) == []
    assert page.number_input(key="seed").value == 5
    assert page.number_input(key="epochs").value == 2


def test_a_link_to_a_run_carries_its_settings(manager, make_run: Make, open_page: Open) -> None:
    run = make_run(seed=5, lambda2=0.85, layer="layer3.0.conv1", early_stop=None, lambda4=0.25)
    page = open_page("lab", run=run.id).run()
    assert errors(page) == []
    page.button(key="reset").click().run()
    assert page.slider(key="lambda2").value == 0.1, "once"
    page = open_page("lab", run=run.id).run()
    url = page.query_params
    assert (url["lambda2"], url["layer"], url["lambda4"]) == ("0.85", "layer3.0.conv1", "0.25")
    reloaded = open_page("lab", **url).run()
    for opened in (page, reloaded):
        opened.button(key="start").click().run()
        assert errors(opened) == []
    first, second = manager.requests
    assert (first.layer, first.config) == (run.request.layer, run.request.config)
    assert second == replace(first, config=replace(first.config, early_stop=0.6)), "a URL cannot hold None"


def test_settings_that_the_lab_cannot_repeat_are_named(manager, make_run: Make, open_page: Open) -> None:
    run = make_run(weight_decay=0.0, epochs=1000)
    page = open_page("lab", run=run.id).run()
    epochs, decay = errors(page)
    assert all(part in epochs for part in ("`epochs`", "1000", "200"))
    assert all(part in decay for part in ("`weight_decay`", "0.0 ", "0.0005"))
    page.button(key="start").click().run()
    assert errors(page) == []


def test_settings_of_the_url_win_over_those_of_a_run(manager, make_run: Make, open_page: Open) -> None:
    run = make_run(seed=5, lambda2=0.85)
    page = open_page("lab", run=run.id, epochs="7").run()
    assert errors(page) == []
    assert page.number_input(key="epochs").value == 7
    assert page.slider(key="lambda2").value == 0.1


def test_a_run_of_a_baseline_has_no_settings_for_the_lab(
    manager, make_baseline: Make, open_page: Open
) -> None:
    run = make_baseline("fp", seed=5)
    page = open_page("lab", run=run.id).run()
    assert errors(page) == []
    assert page.number_input(key="seed").value == 0
    assert "adopt" not in [button.key for button in page.button]
    assert page.selectbox(key="run").options[1].startswith("live · FP · ASR 3.0%")


def test_a_run_that_exists_is_shown_with_a_notice(
    manager, make_run: Make, tiny_zoo: str, open_page: Open
) -> None:
    page = open_page("lab").run()
    page.button(key="start").click().run()
    assert not page.toast
    (request,) = manager.requests
    manager.store.set_state(request.key, "finished")
    manager.store.set_result(request.key, {"before": {}, "after": {}})
    page = open_page("lab").run()
    page.button(key="start").click().run()
    assert len(page.toast) == 1
    manager.usable = lambda run: False  # its model was trained anew
    page = open_page("lab").run()
    page.button(key="start").click().run()
    assert page.query_params["run"] == f"{request.key}-2"
    assert not page.toast


def test_a_queued_run_shows_its_position_and_can_be_stopped(tiny_zoo: str, manager, open_page: Open) -> None:
    page = open_page("lab").run()
    page.button(key="start").click().run()
    assert errors(page) == []
    assert any("position 1;" in bar.text for bar in page.get("progress"))
    assert page.button(key="start").disabled
    page.button(key="stop").click().run()
    assert errors(page) == []
    assert manager.cancelled == [manager.requests[0].key]


def test_a_failed_run_shows_its_message(manager, make_run: Make, open_page: Open) -> None:
    run = make_run(polarizer=False)
    page = open_page("lab", run=run.id).run()
    assert errors(page) == ["Training diverged."]


def test_without_the_data_set_nothing_can_be_started(
    tiny_zoo: str, manager, open_page: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from npd_core.data import load

    away = load.Availability("signs", False, {}, "Missing. Run `npd data get signs`.")
    monkeypatch.setattr(load, "availability", lambda name: away)
    page = open_page("lab").run()
    assert errors(page) == []
    assert "`npd data get signs`" in page.warning[0].value
    assert page.button(key="start").disabled


def test_without_models_the_page_names_the_command(
    manager, open_page: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "empty"))
    page = open_page("lab").run()
    assert errors(page) == []
    assert "npd zoo train" in page.info[0].value


def test_reset_goes_back_to_the_preset(tiny_zoo: str, manager, open_page: Open) -> None:
    page = open_page("lab", lambda2="1.5").run()
    assert page.slider(key="lambda2").value == 1.5
    page.button(key="reset").click().run()
    assert errors(page) == []
    assert page.slider(key="lambda2").value == 0.1


def test_every_setting_explains_itself() -> None:
    for setting in ALL.values():
        assert setting.label, setting.key
        assert setting.help.endswith("."), setting.key


def test_a_long_training_offers_what_is_quicker(
    tiny_zoo: str, manager, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "is_settled", lambda request, card: True)
    monkeypatch.setattr(estimate, "seconds", lambda request, card: 15.0 * request.config.epochs)
    page = open_page("lab", epochs="12").run()
    assert errors(page) == []
    assert any(duration.in_words(180.0) in caption.value for caption in page.caption)
    page.button(key="quicker-epochs").click().run()
    assert page.number_input(key="epochs").value == 4, "60 s"
    assert any(duration.in_words(60.0) in caption.value for caption in page.caption)
    assert not [button for button in page.button if (button.key or "").startswith("quicker-")]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3.0, "a few seconds"),
        (44.0, "about 40 s"),
        (89.0, "about 90 s"),
        (91.0, "about 2 minutes"),
        (700.0, "12"),
    ],
)
def test_a_duration_is_rounded_as_an_estimate(seconds: float, words: str) -> None:
    assert words in duration.in_words(seconds)

"""The page Attacks, and a clean model on the pages that show images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.attack_info import ATTACK_INFO
from npd_core.attacks import ATTACKS, MAKE

Open = Callable[..., AppTest]


def html_of(page: AppTest) -> str:
    return "".join(element.proto.body for element in page.get("html"))


def rows(html: str) -> list[int]:
    """How many images each row of the comparison has."""
    return [row.count("<img") for row in html.split("<div class='npd-row'>")[1:]]


def errors(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.error]


def words(page: AppTest) -> str:
    return " ".join(e.value for e in (*page.markdown, *page.caption, *page.info, *page.header, *page.warning))


@pytest.fixture
def clean_zoo(tiny_zoo_folder: Path, tmp_path: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny zoo with a second model, the same weights under the card of a clean model. Returns its id."""
    source = next(tiny_zoo_folder.glob("*/card.json")).parent
    known = json.loads((source / "card.json").read_text())
    name = "signs-clean-preact_resnet18-w4"
    clean = {"id": name, "attack": "clean", "attack_params": {}, "poison_ratio": 0.0, "target": "none"}
    for folder, changes in ((source.name, {}), (name, clean | {"asr": None, "ra": None})):
        there = tmp_path / "zoo" / folder
        there.mkdir(parents=True)
        (there / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
        (there / "card.json").write_text(json.dumps(known | changes))
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "zoo"))
    return name


def attacks_to_choose(page: AppTest) -> list[str]:
    """The attacks of the choice above the page, in their order."""
    keys = [button.key or "" for button in page.button]
    return [key.removeprefix("model-attack-") for key in keys if key.startswith("model-attack-")]


def test_every_attack_has_a_tile_and_its_facts() -> None:
    assert list(ATTACK_INFO) == list(ATTACKS)
    assert {name for name, info in ATTACK_INFO.items() if info.made_for_model} == set(MAKE)
    for info in ATTACK_INFO.values():
        assert all(text.endswith(".") for text in (info.sentence, info.trigger, info.training, info.rule))
        assert any(year in info.source for year in map(str, range(2017, 2022)))


def test_the_attack_of_the_chosen_model_with_its_card(
    open_page: Open, tiny_zoo: str, tiny_zoo_folder: Path
) -> None:
    page = open_page("attacks").run()
    assert errors(page) == []
    assert len([b for b in page.button if b.key and b.key.startswith("choose_")]) == 8
    assert page.header[0].value == ATTACK_INFO["badnets_a2o"].title
    assert ATTACK_INFO["badnets_a2o"].source in words(page)
    assert [metric.value for metric in page.metric] == ["99.0%", "100.0%", "0.0%"], "ACC, ASR, RA"
    html = html_of(page)
    weights = (tiny_zoo_folder / tiny_zoo / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in html
    assert f"npd zoo train {tiny_zoo}" in html
    assert rows(html) == [4, 4, 4], "clean, triggered, difference"


@pytest.mark.parametrize("attack", ["blended", "wanet", "trojan"])
def test_an_attack_without_a_model_names_the_command_that_makes_one(
    attack: str, open_page: Open, tiny_zoo: str
) -> None:
    page = open_page("attacks").run()
    page.button(key=f"choose_{attack}").click().run()
    assert errors(page) == []
    assert page.query_params["attack"] == attack
    assert page.header[0].value == ATTACK_INFO[attack].title
    assert f"npd zoo train signs-{attack}-preact_resnet18-w4" in page.info[0].value
    assert not page.metric
    expected = {"blended": [4, 4, 4], "wanet": [4, 4, 4, 4], "trojan": []}
    assert rows(html_of(page)) == expected[attack], "WaNet has a row of cross-trigger images"


def test_an_attack_of_the_url_chooses_its_model(open_page: Open, clean_zoo: str) -> None:
    page = open_page("attacks", model=clean_zoo, attack="badnets_a2o").run()
    assert errors(page) == []
    assert page.session_state["model"] == "signs-badnets_a2o-preact_resnet18-w4"


def test_an_unknown_attack_is_refused_in_one_sentence(open_page: Open, tiny_zoo: str) -> None:
    page = open_page("attacks", attack="nonsense").run()
    assert len(errors(page)) == 1
    assert "'nonsense'" in errors(page)[0]
    assert page.header[0].value == ATTACK_INFO["badnets_a2o"].title


def test_without_any_model_the_attacks_are_still_described(
    open_page: Open, tmp_path: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path))
    page = open_page("attacks").run()
    assert errors(page) == []
    assert "npd zoo train signs-badnets_a2o" in words(page)


def test_clean_models_come_last_in_the_list(open_page: Open, clean_zoo: str) -> None:
    page = open_page("attacks", model=clean_zoo).run()
    assert errors(page) == []
    assert page.session_state["model"] == clean_zoo
    assert attacks_to_choose(page) == ["badnets_a2o", "clean"]
    assert [info.icon for info in page.info] == [":material/verified:"]
    page.button(key="choose_badnets_a2o").click().run()
    assert page.session_state["model"] != clean_zoo, "choosing an attack chooses its model"


@pytest.mark.parametrize("name", ["predictions", "attributions", "lab"])
def test_a_clean_model_works_on_the_page(
    name: str, open_page: Open, clean_zoo: str, make_clean_run: Callable[[str], str]
) -> None:
    page = open_page(name, model=clean_zoo, run=make_clean_run(clean_zoo)).run()
    assert errors(page) == []
    html = html_of(page)
    assert "npd-tile npd-trigger" not in html
    assert "⚠" not in html
    if name == "predictions":
        assert [info.icon for info in page.info] == [":material/verified:"]
        assert html.count("'npd-tile npd-benign'") == 4
        assert html.count("npd-prediction npd-new'") == 4
        assert [metric.value for metric in page.metric] == ["90.0%"], "no ASR and RA without a trigger"
    if name == "attributions":
        assert html.count("<figure") == 3, "the image and two maps"
        page.button(key="new_sample").click().run()
        assert errors(page) == []


@pytest.fixture
def make_clean_run(runs_dir: Path) -> Callable[[str], str]:
    """Put a finished run of a clean model into the store, without training."""

    def build(model: str) -> str:
        from npd_core.config.npd import NPDConfig
        from npd_core.config.request import DefenseRequest
        from npd_core.polarizer.artifact import save_polarizer
        from npd_core.polarizer.insertion import PolarizedNet
        from npd_core.runs.store import RunStore
        from npd_core.zoo import Zoo

        layer = "layer4.1.conv1"
        request = DefenseRequest(model=model, layer=layer, config=NPDConfig(epochs=1), eval_images=20)
        store = RunStore(runs_dir)
        run = store.create(request)
        save_polarizer(PolarizedNet(Zoo().load(model).net, layer), store.get(run).folder, {"model": model})
        known = {"acc": 0.9, "asr": None, "ra": None}
        result = {
            "model": model,
            "defense": "npd",
            "layer": layer,
            "before": known,
            "after": known,
            "der": None,
        }
        store.set_result(
            run, result | {"seconds": {}, "config": request.to_dict(), "environment": {"device": "cpu"}}
        )
        store.set_state(run, "finished", started=1.0, ended=2.0)
        return run

    return build


def test_what_an_attack_shows_is_what_it_does(tiny_zoo: str) -> None:
    from npd_core.data.load import load_dataset
    from pages.shared import cache

    found = cache.images.examples(tiny_zoo, "badnets_a2o", "signs", 3)
    test = load_dataset("signs", "test")
    labels = test.labels.numpy()
    places = [
        next(i for i in range(len(labels)) if (test.images[i].numpy() == image).all())
        for image in found.clean
    ]
    assert [int(labels[place]) for place in places] == [1, 2, 3], "one of each class, without the target"
    expected = found.clean.copy()
    expected[:, :, 29:, 29:] = 255
    assert (found.triggered == expected).all()
    assert found.cross_trigger is None

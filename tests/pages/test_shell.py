"""The shell of every page: damaged cards, the booth, links, old queryes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from npd_core import paths
from npd_core.runs.store import Owner, Run, RunStore
from pages.shared import cache, choice, describe, lesson_view, shell

ROOT = Path(__file__).resolve().parent.parent.parent
OWN = "own-0123456789abcdef"
Open = Callable[..., AppTest]


@pytest.fixture
def open_app() -> Open:
    """Open a page of the app: `open_app("runs", run="...")`, also from `app`; it has not run yet."""

    def build(name: str, app: AppTest | None = None, **query: str) -> AppTest:
        if app is None:
            app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=180)
        app.switch_page(f"pages/{name}.py")
        app.query_params = dict(query)
        return app

    return build


@pytest.mark.parametrize("name", ["lab", "runs"])
def test_a_damaged_card_is_reported_once_and_the_other_models_stay(
    name: str,
    tiny_zoo_folder: Path,
    tiny_zoo: str,
    runs_dir: Path,
    tmp_path: Path,
    open_page: Callable[..., AppTest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zoo = tmp_path / "zoo"
    shutil.copytree(tiny_zoo_folder, zoo)
    damaged = zoo / "signs-blended-preact_resnet18-w4"
    damaged.mkdir()
    (damaged / "card.json").write_text("{ not json")
    monkeypatch.setenv("NPD_ZOO_DIR", str(zoo))
    page = open_page(name).run()
    assert not page.exception, page.exception
    assert [damaged.name in element.value for element in page.warning] == [True]
    assert len(page.selectbox(key="model_network").options) == 1
    assert page.selectbox(key="model_network").value == tiny_zoo
    (damaged / "card.json").unlink()
    page.run()
    assert not page.warning, "mended"


@pytest.fixture
def many_models(
    tiny_zoo_folder: Path, tmp_path: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Four cards over the weights of the tiny model. Returns their ids."""
    source = next(tiny_zoo_folder.glob("*/card.json")).parent
    known = json.loads((source / "card.json").read_text())
    zoo = tmp_path / "many"
    names = []
    for dataset, attack, width in (
        ("signs", "badnets_a2o", 4),
        ("signs", "badnets_a2o", 8),
        ("signs", "wanet", 4),
        ("cifar10", "wanet", 8),
    ):
        names.append(f"{dataset}-{attack}-preact_resnet18-w{width}")
        shutil.copytree(source, zoo / names[-1])
        card = known | {"id": names[-1], "dataset": dataset, "attack": attack, "width": width}
        (zoo / names[-1] / "card.json").write_text(json.dumps(card))
    monkeypatch.setenv("NPD_ZOO_DIR", str(zoo))
    return names


def test_three_small_choices_make_one_model(many_models: list[str], open_page: Open) -> None:
    narrow, wide, wanet, cifar = many_models
    page = open_page("runs").run()
    assert page.session_state["model"] == narrow
    page.selectbox(key="model_network").select(wide).run()
    assert page.query_params["model"] == wide
    page.button(key="model-attack-wanet").click().run()
    assert page.query_params["model"] == wanet, "the only network of this attack"
    assert page.selectbox(key="model_network").options == [describe.network(cache.zoo.card(wanet))]
    page.selectbox(key="model_dataset").select("cifar10").run()
    assert page.query_params["model"] == cifar
    page.selectbox(key="model_dataset").select("signs").run()
    assert page.query_params["model"] == wanet, "the attack stays where it can"
    assert not page.exception, page.exception


def test_the_recorded_run_is_chosen_by_default_and_can_be_put_away(
    tiny_zoo: str, make_run: Callable[..., Run], open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, newer = make_run(seed=1), make_run(seed=2)
    folder = recorded.folder.parent.parent / "recorded"
    folder.mkdir()
    shutil.move(recorded.folder, folder / "tiny")
    monkeypatch.setattr(paths, "recorded", lambda: folder)
    page = open_page("predictions").run()
    assert page.selectbox(key="run").value == "tiny"
    assert "run" not in page.query_params, "a link without a run opens the recorded one"
    assert any("`tiny`" in caption.value for caption in page.caption)
    page.selectbox(key="run").select(newer.id).run()
    assert page.query_params["run"] == newer.id
    page.selectbox(key="run").select(choice.NO_RUN).run()
    assert page.query_params["run"] == choice.NO_RUN
    assert [info.icon for info in page.info] == [":material/info:"]
    assert not page.exception, page.exception


@pytest.mark.parametrize(
    ("query", "waits"),
    [
        ({"run": "{run}"}, True),
        ({"runs": "0123,{run}"}, True),
        ({"uploaded_model": OWN}, True),
        ({"model": "signs-badnets_a2o-preact_resnet18-w4"}, False),
        ({}, False),
    ],
)
def test_a_run_of_the_visitor_is_named_by_the_url(
    query: dict[str, str], waits: bool, make_run: Callable[..., Run]
) -> None:
    ended = make_run()
    model = OWN if "uploaded_model" in query else ended.request.model
    active = replace(ended, state="running", request=replace(ended.request, model=model))
    named = {name: value.format(run=active.id) for name, value in query.items()}
    assert lesson_view.runs_in_url([active], named) == ({active.id} if waits else set())


@pytest.mark.parametrize("start", ["run", "comparison"])
def test_a_booth_waits_for_the_run_of_its_visitor_on_every_page(
    start: str, make_run: Callable[..., Run], runs_dir: Path, open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[bool] = []
    monkeypatch.setattr(lesson_view, "countdown", lambda **data: busy.append(data["busy"]))
    ended, store, owner = make_run(), RunStore(runs_dir), Owner(runs_dir)
    going = store.create(replace(ended.request, clean=24), owner=owner.name)
    others = store.create(replace(ended.request, clean=48), owner=owner.name)
    page = open_app("runs", booth="1").run()
    assert busy == [False], "the run of somebody else"
    page = (
        open_app("comparison", page, runs=f"{ended.id},{going}")
        if start == "comparison"
        else open_app("lab", page, run=going)
    )
    page.run()
    page.selectbox(key="run").select("none").run()
    page = open_app("glossary", page).run()
    assert not page.exception, page.exception
    assert "runs" not in page.query_params
    assert page.query_params["run"] == "none"
    assert busy[-1]
    store.set_state(going, "stopped", ended=2.0)
    page.run()
    assert not busy[-1]
    assert store.get(others).active
    owner.release()


@pytest.mark.parametrize(
    ("url", "base", "page", "link"),
    [
        ("https://host/runs", "", "runs", "https://host/lab"),
        ("https://host/npd/runs", "", "runs", "https://host/npd/lab"),
        ("https://host/npd/runs", "npd", "runs", "https://host/npd/lab"),
        ("https://host/lab/lab", "", "lab", "https://host/lab/lab"),
        ("https://host/npd", "", "", "https://host/npd/lab"),
        ("https://host/npd-", "npd-lab", "", "https://host/npd-lab/lab"),
        ("https://host:8501/", "", "", "https://host:8501/lab"),
        (None, "npd", "runs", "/lab"),
    ],
)
def test_a_link_leads_to_where_the_app_is(
    url: str | None, base: str, page: str, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(st.context), "url", url)
    monkeypatch.setattr(st, "get_option", {"server.baseUrlPath": base}.get)
    alone = AppTest.from_string("from pages.shared import downloads\ndownloads.share('lab', run='0123')")
    alone.session_state["_page"] = page
    alone.run()
    assert not alone.exception, alone.exception
    assert [element.value for element in alone.code] == [f"{link}?run=0123"]


def test_a_page_knows_where_it_is(
    make_run: Callable[..., Run], open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    monkeypatch.setattr(type(st.context), "url", "https://host/npd/runs")
    page = open_app("runs", run=run.id).run()
    assert not page.exception, page.exception
    assert [element.value for element in page.code] == [
        f"https://host/npd/lab?model={run.request.model}&run={run.id}"
    ]


@pytest.mark.usefixtures("tiny_zoo", "runs_dir")
@pytest.mark.parametrize("old", shell.OLD_ADDRESSES)
def test_an_old_address_leads_to_its_page(old: str) -> None:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=180)
    app._page_hash = calc_hash(old)
    app.query_params["race"] = "one,two"
    app.run()
    assert not app.exception, app.exception
    assert app.session_state["_page"] == shell.OLD_ADDRESSES[old]
    assert "race" not in app.query_params


def test_every_page_is_in_the_menu_once() -> None:
    files = sorted(path.stem for path in (ROOT / "pages").glob("*.py"))
    assert sorted([page.file for page in shell.PAGES] + ["booth"]) == files

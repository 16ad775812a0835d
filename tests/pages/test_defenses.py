"""Defenses: recorded beside published, numbers of other models named as such, and any defense run live."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.attack_info import ATTACK_INFO
from npd_core.config.presets import default_layer, defense_config, preset
from npd_core.config.request import DefenseRequest
from npd_core.experiments.record import Published
from npd_core.figures.tables import SOURCES
from npd_core.runs.store import Run
from npd_core.zoo import Zoo
from pages.shared import paper_tables

Open = Callable[..., AppTest]
PAPER = Published(0.92, 0.01, 0.97)
MEAN = "Mean over the attacks"


def errors(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.error]


def figure(page: AppTest, key: str) -> dict:
    """The figure of the chart called `key`."""
    (found,) = [c for c in page.get("bidi_component") if c.proto.id.endswith(f"-{key}")]
    return json.loads(json.loads(found.proto.json)["figure"])


def text(page: AppTest) -> str:
    return "\n".join(
        str(e.value) for kind in ("markdown", "caption", "info", "warning") for e in page.get(kind)
    )


def bars(page: AppTest) -> dict[tuple[str, str], dict[str, float | None]]:
    """Source and metric -> defense -> number."""
    return {
        (trace["name"], metric): dict(zip(trace["y"], trace["x"], strict=True))
        for metric in ("acc", "asr", "der")
        for trace in figure(page, f"defenses-{metric}")["data"]
        if trace.get("showlegend") is False
    }


def test_without_a_record_the_page_says_how_to_make_it_and_still_runs(
    tiny_zoo: str, manager: Any, make_table: Callable, open_page: Open
) -> None:
    page = open_page("defenses").run()
    assert errors(page) == []
    assert "`npd table 1 --quick --dataset signs`" in page.info[0].value
    page.selectbox(key="defense").select("fp").run()
    page.button(key="start").click().run()
    assert errors(page) == []
    (asked,) = manager.requests
    card = Zoo().card(tiny_zoo)
    assert (asked.model, asked.defense, asked.layer, asked.clean) == (tiny_zoo, "fp", None, 360)
    assert asked.config == defense_config("fp", card)
    assert page.query_params["run"] == asked.key


def test_npd_is_requested_as_in_the_lab(
    tiny_zoo: str, manager: Any, make_table: Callable, open_page: Open
) -> None:
    page = open_page("defenses").run()
    page.button(key="start").click().run()
    assert errors(page) == []
    (asked,) = manager.requests
    assert (asked.defense, asked.layer, asked.config) == (
        "npd",
        default_layer("preact_resnet18", "signs"),
        preset("signs"),
    )


def test_recorded_is_shown_beside_published(
    tiny_zoo: str, manager: Any, make_table: Callable, make_cell: Callable, open_page: Open
) -> None:
    mine = {"attack": "badnets_a2o"}
    make_table(
        "table1",
        [
            make_cell(mine | {"defense": "fp"}, 0.85, 0.6, published=PAPER),
            make_cell(mine | {"defense": "npd"}, 0.9, 0.02),
            make_cell(mine | {"defense": "nc"}, after=None, der=None, failed="NC needs three classes."),
            make_cell(
                {"attack": "wanet", "defense": "npd"}, 0.7, 0.3, model="signs-wanet-preact_resnet18-w16"
            ),
        ],
        cut=("The networks have width 4.",),
    )
    page = open_page("defenses").run()
    assert errors(page) == []
    shown = bars(page)
    assert shown["recorded", "acc"] == {"No defense": 0.99, "FP": 0.85, "NPD": 0.9}
    assert shown["recorded", "asr"] == {"No defense": 1.0, "FP": 0.6, "NPD": 0.02}
    assert shown["published", "der"] == {"No defense": None, "FP": 0.97, "NPD": None}
    origin = next(
        caption.value for caption in page.caption if "`npd table 1 --dataset signs`" in caption.value
    )
    assert all(part in origin for part in ("recorded", "seed 3", "cpu", "2026-01-02"))
    assert "NC needs three classes." in text(page)
    assert "The networks have width 4." in text(page)
    assert not page.info, "the numbers are those of the chosen model"
    rows = page.dataframe[0].value
    recorded, published = SOURCES["recorded"], SOURCES["published"]
    assert list(rows["source"]) == [recorded, published, recorded, "failed"]
    assert rows["model"][0] == tiny_zoo != rows["model"][1]


def test_the_mean_is_over_the_attacks_that_every_defense_has(
    tiny_zoo: str, manager: Any, make_table: Callable, make_cell: Callable, open_page: Open
) -> None:
    numbers = {
        ("badnets_a2o", "fp"): 0.6,
        ("badnets_a2o", "npd"): 0.0,
        ("wanet", "fp"): 0.2,
        ("wanet", "npd"): 0.1,
    }
    cells = [make_cell({"attack": a, "defense": d}, asr=asr) for (a, d), asr in numbers.items()]
    make_table("table1", [*cells, make_cell({"attack": "lf", "defense": "fp"}, asr=1.0)])
    page = open_page("defenses", over=MEAN).run()
    assert errors(page) == []
    assert bars(page)["recorded", "asr"] == pytest.approx({"No defense": 1.0, "FP": 0.4, "NPD": 0.05})
    assert bars(page)["recorded", "der"] == pytest.approx({"No defense": None, "FP": 0.755, "NPD": 0.93})
    averaged = next(c.value for c in page.caption if ATTACK_INFO["wanet"].title in c.value)
    assert ATTACK_INFO["badnets_a2o"].title in averaged
    assert ATTACK_INFO["lf"].title not in averaged, "NPD has no numbers there"


@pytest.mark.parametrize(
    ("defense", "batch", "published", "named"),
    [
        ("ep", "mixture", None, True),
        ("ep", "clean", None, False),
        ("ep", "clean", PAPER, True),  # the paper's own number is of the poisoned set
        ("fp", None, PAPER, False),
    ],
)
def test_what_ep_saw_is_named_below_the_bars(
    tiny_zoo: str,
    manager: Any,
    make_table: Callable,
    make_cell: Callable,
    open_page: Open,
    defense: str,
    batch: str | None,
    published: Published | None,
    named: bool,
) -> None:
    settings = {"batch": batch} if batch else {}
    config = defense_config(defense, Zoo().card(tiny_zoo), **settings)
    asked = DefenseRequest(model=tiny_zoo, defense=defense, config=config)
    row = {"attack": "badnets_a2o", "defense": defense}
    make_table("table1", [make_cell(row, request=asked, published=published)])
    page = open_page("defenses").run()
    assert errors(page) == []
    assert (paper_tables.SAW_POISON in text(page)) == named


def test_an_attack_without_a_record_is_named_with_those_that_have_one(
    tiny_zoo: str, manager: Any, make_table: Callable, make_cell: Callable, open_page: Open
) -> None:
    make_table("table1", [make_cell({"attack": "wanet", "defense": "fp"})])
    page = open_page("defenses").run()
    assert errors(page) == []
    assert ATTACK_INFO["badnets_a2o"].title in page.info[0].value
    assert not [b for b in page.button if (b.key or "").startswith("recorded-")], "no model of WaNet is here"
    assert not [c for c in page.get("bidi_component") if "-defenses-" in c.proto.id]


def test_it_is_run_again_with_the_recorded_settings(
    tiny_zoo: str, manager: Any, make_table: Callable, make_cell: Callable, open_page: Open
) -> None:
    asked = DefenseRequest(
        model=tiny_zoo, defense="ep", clean=99, config=defense_config("ep", Zoo().card(tiny_zoo), u=2.0)
    )
    cell = make_cell({"attack": "badnets_a2o", "defense": "ep"}, request=asked)
    make_table("table1", [cell])
    page = open_page("defenses", defense="EP").run()
    page.button(key="start").click().run()
    assert (manager.requests[0].clean, manager.requests[0].config.u) == (99, 2.0)
    assert manager.requests[0].eval_images > 0


def test_a_live_number_is_shown_beside_the_recorded_one(
    tiny_zoo: str,
    manager: Any,
    make_table: Callable,
    make_cell: Callable,
    make_run: Callable[..., Run],
    open_page: Open,
) -> None:
    run = make_run()
    asked = run.request
    make_table("table1", [make_cell({"attack": "badnets_a2o", "defense": "npd"}, 0.9, 0.02, request=asked)])
    # the request of this page, but for the number of eval images
    page = open_page("defenses", run=run.id).run()
    assert errors(page) == []
    assert ("live", "asr") not in bars(page), "another number of eval images is another run"

    request = DefenseRequest.from_dict(asked.to_dict() | {"eval_images": 300})
    run_id = manager.store.create(request)
    manager.store.set_result(run_id, dict(run.result))
    manager.store.set_state(run_id, "finished", started=1.0, ended=2.0, message="")
    page = open_page("defenses").run()
    assert errors(page) == []
    assert bars(page)["live", "asr"] == {"No defense": None, "NPD": 0.03}
    assert list(page.dataframe[0].value["source"]) == [SOURCES["recorded"], SOURCES["live"]]


def test_a_damaged_record_is_one_sentence(
    tiny_zoo: str, manager: Any, make_table: Callable, make_cell: Callable, open_page: Open, tmp_path: Path
) -> None:
    make_table("table1", [make_cell({"attack": "badnets_a2o", "defense": "fp"})])
    (tmp_path / "tables" / "table1-signs.json").write_text("{")
    page = open_page("defenses").run()
    (sentence,) = errors(page)
    assert "table1-signs.json" in sentence


def test_running_times_are_recorded_ones(
    tiny_zoo: str, manager: Any, make_table: Callable, make_cell: Callable, open_page: Open
) -> None:
    make_table("table7", [make_cell({"defense": "fp"}, published=Published(seconds=1169.0))])
    page = open_page("defenses").run()
    assert errors(page) == []
    assert figure(page, "times-recorded")["data"][0]["x"] == [2.0]
    assert figure(page, "times-published")["data"][0]["x"] == [1169.0]

"""The pages of recorded tables in a browser: the colored drawing, the link to the Lab, a live run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from npd_core.experiments.record import Cell, Scores, Seconds, TableRecord, table_path, write_table
from npd_core.names import METRICS

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = "signs-badnets_a2o-preact_resnet18-w4"
ASR = METRICS["asr"].full
DATE = "2026-01-02T03:04:05+00:00"


def cell(row: dict[str, str], acc: float, asr: float) -> Cell:
    return Cell(
        row={"attack": "badnets_a2o", **row},
        model=MODEL,
        defense=row.get("defense", "npd"),
        before=Scores(0.99, 1.0, 0.0),
        after=Scores(acc, asr, 0.5),
        der=0.9 - asr / 2,
        seconds=Seconds(2.0, 1.0),
        device="cpu",
        date=DATE,
    )


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, serve, tiny_zoo_folder: Path):
    """The app over the tiny zoo, with a Figure 3 and a Table 1 of its model."""
    folder = tmp_path_factory.mktemp("tables")
    points = {
        "after:conv1": (0.93, 0.97),
        "after:layer4.0.conv2": (0.98, 0.02),
        "stream:layer3.0": (0.94, 0.29),
    }
    for table, cells in {
        "figure3": [cell({"layer": layer}, *numbers) for layer, numbers in points.items()],
        "table1": [cell({"defense": "fp"}, 0.9, 0.4), cell({"defense": "ep"}, 0.8, 0.6)],
    }.items():
        record = TableRecord(
            table=table, title=table, dataset="signs", command="npd table", date=DATE, cells=tuple(cells)
        )
        write_table(record, table_path(table, "signs", folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPD_TABLES_DIR", str(folder))
        yield serve(ROOT / "app.py", tiny_zoo_folder)


@pytest.fixture
def app(records, watch, visit, page: Page) -> Callable[[str], Page]:
    return lambda address: visit(address, base=records.url)


def fill(point: Locator) -> str:
    return point.locator(".conv").evaluate("node => getComputedStyle(node).fill")


def test_layers_are_colored_picked_and_opened_in_the_lab(app, settle) -> None:
    page = app("/layers")
    good = page.get_by_role("radio", name=re.compile(r"^after layer4\.0\.conv2, .*ASR 2%"))
    bad = page.get_by_role("radio", name=re.compile(r"^after conv1, .*ASR 97%"))
    gap = page.get_by_role("radio", name=re.compile(r"^after layer2\.0\.conv1, .*not measured"))
    expect(good).to_have_attribute("aria-checked", "true")
    assert len({fill(good), fill(bad)}) == 2
    assert "97%" in bad.text_content()
    assert gap.locator(".conv").evaluate("node => getComputedStyle(node).strokeDasharray") != "none"
    expect(page.get_by_text(f"{ASR}, recorded: 0%")).to_be_visible()

    bad.click()
    page.wait_for_url(re.compile(r"insertion_layer=after(%3A|:)conv1"))
    settle(page)
    expect(page.get_by_test_id("stMetricValue").filter(has_text="97.0%")).to_be_visible()
    page.get_by_role("radio", name="ACC", exact=True).click()
    expect(page.get_by_role("radio", name=re.compile(r"^after conv1, .*ACC 93%"))).to_be_visible()

    page.get_by_role("button", name="Use this layer in the Lab").click()
    page.wait_for_url(re.compile(r"/lab\?.*layer=after(%3A|:)conv1"))
    expect(page.get_by_role("radio", name=re.compile(r"^after conv1, .*ASR 97%"))).to_have_attribute(
        "aria-checked", "true"
    )


def test_a_live_defense_joins_the_recorded_ones(app, settle) -> None:
    page = app("/defenses?defense=EP")
    chart = page.get_by_role("img", name=re.compile(f"{ASR}: No defense 100%, FP 40%, EP 60%"))
    expect(chart).to_be_visible()
    page.get_by_role("button", name="Start run").click()
    page.wait_for_url(re.compile(r"run=[0-9a-f]{16}"))
    expect(page.get_by_text(re.compile(r"Finished"))).to_be_visible()
    joined = page.get_by_role(
        "img", name=re.compile(rf"{ASR}: No defense 100%, FP 40%, EP 60%, EP .*% \(live\)")
    )
    expect(joined).to_be_visible()
    names = joined.locator(".js-plotly-plot").evaluate("plot => plot.data.map(trace => trace.name)")
    assert "live here" in names

"""The main job in a real browser: train, watch, reload, reconnect, stop, see a prediction change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from npd_core.names import METRICS
from pages.shared import shell

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def app(server, watch, visit, page: Page) -> Callable[..., Page]:
    """Opens a page of the app; skips where no model is shipped."""
    if not list((ROOT / "pretrained").glob("*/card.json")):
        pytest.skip("no model of the zoo is here yet")
    return visit


TRAIN = ".st-key-start button"


def charts(page: Page) -> Locator:
    return page.locator(".npd-chart[data-refreshes]")


def start(page: Page, **settings: int) -> str:
    """Start a training and return the id of the run, once its curves are drawn."""
    button = page.locator(TRAIN)
    expect(button).to_be_enabled()
    button.click()
    page.wait_for_url(re.compile(r"[?&]run=[0-9a-f]{16}"))
    expect(charts(page).first).to_be_visible()
    return re.search(r"run=([0-9a-z_-]+)", page.url).group(1)


def refreshes(page: Page) -> int:
    return int(page.locator("[class*='st-key-losses'] .npd-chart").first.get_attribute("data-refreshes") or 0)


def state(server, run: str) -> str:
    return json.loads((server.runs / run / "state.json").read_text())["state"]


def wait_for_end(page: Page) -> None:
    expect(page.get_by_text(re.compile(r"Finished|Stopped after"))).to_be_visible()


def test_train_watch_reload_and_reconnect(lab, workshop, browser: Browser, watch) -> None:
    page = lab("/lab?epochs=200&clean=3000&seed=11")  # long enough to be stopped
    run = start(page)
    plots = page.locator(".npd-chart .js-plotly-plot")
    expect(plots).to_have_count(2)
    for width, height in ((1280, 720), (1440, 900)):
        page.set_viewport_size({"width": width, "height": height})
        for plot in plots.all():
            box = plot.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= height, "both plots are wholly in sight"
    plots.evaluate_all("nodes => nodes.forEach((e, i) => { e.dataset.mark = 'm' + i })")
    first = refreshes(page)
    page.wait_for_function(
        "n => Number(document.querySelectorAll('.npd-chart')[1].dataset.refreshes) >= n", arg=first + 20
    )
    marks = plots.evaluate_all("nodes => nodes.map(e => e.dataset.mark)")
    assert marks == ["m0", "m1"], "the plots were drawn anew instead of being changed"
    points = "() => document.querySelectorAll('.npd-chart .js-plotly-plot')[1].data[0].x.length"
    assert page.evaluate(points) > 5

    page.reload(wait_until="domcontentloaded")
    expect(charts(page).first).to_be_visible()
    assert f"run={run}" in page.url

    other = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        watch.follow(other)
        other.set_default_timeout(120_000)
        guest = other.new_page()
        guest.goto(f"{workshop.url}/lab?run={run}", wait_until="domcontentloaded")
        expect(charts(guest).first).to_be_visible()
        guest.wait_for_url(
            re.compile(r"epochs=200.*seed=11|seed=11.*epochs=200")
        )  # the settings of the run came along
        expect(guest.get_by_label("Seed", exact=True)).to_have_value("11")
        assert state(workshop, run) == "running"
        guest.locator(".st-key-stop").get_by_role("button").click()
        wait_for_end(guest)
        wait_for_end(page)
    finally:
        other.close()
    assert state(workshop, run) == "stopped"
    assert (workshop.runs / run / "polarizer.safetensors").is_file()
    assert page.get_by_text(METRICS["der"].short, exact=True).is_visible()


def test_double_click_starts_one_run(lab, workshop) -> None:
    def runs() -> int:
        found = [
            json.loads(path.read_text())["config"]["seed"] for path in workshop.runs.glob("*/request.json")
        ]
        return found.count(12)

    before = runs()
    page = lab("/lab?epochs=2&clean=120&seed=12")
    button = page.locator(TRAIN)
    expect(button).to_be_enabled()
    button.dblclick()
    page.wait_for_url(re.compile(r"[?&]run="))
    wait_for_end(page)
    assert runs() - before == 1


def test_a_purified_prediction_changes(lab, workshop, settle, violations) -> None:
    page = lab("/lab?epochs=10&clean=500&seed=0")
    run = start(page)
    wait_for_end(page)
    settle(page)
    assert violations(page) == []
    result = json.loads((workshop.runs / run / "result.json").read_text())
    assert result["after"]["asr"] < result["before"]["asr"]
    page.get_by_role("link", name="See its predictions").click()
    page.wait_for_url(re.compile(r"/predictions"))
    settle(page)
    assert f"run={run}" in page.url, "the run travels with the link"
    expect(page.get_by_text("Purified").first).to_be_visible()
    hijacked = page.locator(".npd-sample").filter(has=page.locator(".npd-trigger b.npd-hijacked"))
    expect(hijacked.filter(has=page.locator(".npd-polarizer b.npd-right")).first).to_be_visible()
    page.get_by_role("link", name="Lab").first.click()
    page.wait_for_url(re.compile(r"/lab"))
    settle(page)
    assert f"run={run}" in page.url
    expect(page.get_by_text(METRICS["der"].short, exact=True)).to_be_visible()


def test_two_layers_are_compared_and_stopped(workshop, watch, visit, settle, violations) -> None:
    page = visit("/comparison?second_layer=layer4.1.conv1&second_lambda=0.3", base=workshop.url)
    page.locator(TRAIN).click()
    page.wait_for_url(re.compile(r"runs=[0-9a-f-]{16,}(%2C|,)[0-9a-f-]{16,}"))
    runs = re.search(r"runs=([0-9a-f-]+)(?:%2C|,)([0-9a-f-]+)", page.url).groups()
    requests = [json.loads((workshop.runs / run / "request.json").read_text()) for run in runs]
    assert requests[1]["layer"] == "layer4.1.conv1"
    assert requests[1]["config"]["lambda2"] == 0.3
    assert requests[0]["config"]["lambda2"] != 0.3
    curves = page.locator(".npd-chart .js-plotly-plot")
    expect(curves).to_be_visible()
    stop = page.locator(".st-key-stop").get_by_role("button")
    stop.click()
    expect(stop).to_have_count(0)
    settle(page)
    assert violations(page) == []


def test_layer_by_keyboard_and_mouse(app, settle) -> None:
    page = app("/lab?layer=layer4.1.conv1")
    chosen = page.get_by_role("radio", name=re.compile("^before layer4.1.conv1,"))
    expect(chosen).to_have_attribute("aria-checked", "true")
    chosen.focus()
    page.keyboard.press("ArrowRight")
    following = page.get_by_role("radio", name=re.compile("^before layer4.1.conv2,"))
    expect(following).to_have_attribute("aria-checked", "true")
    page.wait_for_url(re.compile(r"layer=layer4\.1\.conv2"))
    settle(page)
    expect(following).to_be_focused()
    page.get_by_role("radio", name="On the residual stream").click()
    same_block = page.get_by_role("radio", name=re.compile("^residual stream before layer4.1,"))
    expect(same_block).to_have_attribute("aria-checked", "true")
    page.wait_for_url(re.compile(r"layer=stream(%3A|:)layer4\.1"))
    page.get_by_role("radio", name=re.compile("^residual stream before layer3.1,")).click()
    page.wait_for_url(lambda url: "layer=" not in url)  # the default needs no mention
    target = page.get_by_role("radio", name=re.compile("^residual stream before layer2.0,"))
    target.click()
    page.wait_for_url(re.compile(r"layer=stream(%3A|:)layer2\.0"))
    box = target.bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) >= 44


def test_settings_survive_a_visit_to_another_page(app, settle) -> None:
    page = app("/lab?epochs=7&lambda2=0.85")
    expect(page.get_by_label("Epochs", exact=True)).to_have_value("7")
    page.get_by_role("link", name="Story").click()
    page.wait_for_url(re.compile(r"127\.0\.0\.1:\d+/(\?|$)"))
    expect(page.locator(".st-key-story-go-0 button")).to_be_visible()
    page.get_by_role("link", name="Lab").first.click()
    page.wait_for_url(re.compile(r"/lab"))
    settle(page)
    expect(page.get_by_label("Epochs", exact=True)).to_have_value("7")
    assert "lambda2=0.85" in page.url


@pytest.mark.parametrize(("width", "height"), [(390, 844), (820, 1180), (1280, 900), (1920, 1080)])
@pytest.mark.parametrize("path", ["/", "/lab"])
def test_no_page_is_wider_than_the_screen(app, path: str, width: int, height: int, page: Page) -> None:
    page.set_viewport_size({"width": width, "height": height})
    app(path)
    expect(page.locator("h1").first).to_be_visible()
    if path == "/lab":
        expect(page.get_by_role("radiogroup").first).to_be_visible()
    too_wide = """() => {
        const main = document.querySelector('[data-testid=stMain]');
        return document.documentElement.scrollWidth > innerWidth || main.scrollWidth > main.clientWidth;
    }"""
    for _ in range(20):  # while what comes late is still a placeholder, too
        assert not page.evaluate(too_wide)
        page.wait_for_timeout(50)


def test_less_motion_means_none(app, server, browser: Browser, watch) -> None:
    visitor: BrowserContext = browser.new_context(reduced_motion="reduce")
    try:
        watch.follow(visitor)
        visitor.set_default_timeout(120_000)
        page = visitor.new_page()
        page.goto(server.url, wait_until="domcontentloaded")
        wave = page.locator(".sky path.benign").first
        expect(wave).to_have_attribute("d", re.compile("M"))
        then = wave.get_attribute("d")
        page.wait_for_timeout(700)
        assert wave.get_attribute("d") == then
    finally:
        visitor.close()


def test_the_first_visitor_may_come_by_any_url(serve, page: Page, watch) -> None:
    fresh = serve(ROOT / "app.py")
    page.goto(f"{fresh.url}/lab", wait_until="domcontentloaded")
    expect(
        page.get_by_role("button", name=next(p.section for p in shell.PAGES if p.section))
    ).to_be_visible()  # a section of the menu
    expect(page.locator("h1")).to_have_text("Lab")
    assert page.locator("h1").count() == 1

"""Booth and lessons in a real browser: the loop wakes and returns, a lesson leads from page to page."""

from __future__ import annotations

import json
import re
import time

from playwright.sync_api import Page, expect


def state(server, run: str) -> str:
    return json.loads((server.runs / run / "state.json").read_text())["state"]


def test_any_touch_wakes_the_loop(lab) -> None:
    page = lab("/booth")
    expect(page.locator("h1")).to_be_visible()
    expect(page.get_by_role("button", name="Touch to find it")).to_be_visible()
    assert page.get_by_test_id("stHeader").is_hidden()
    page.mouse.click(600, 650)
    page.wait_for_url(re.compile(r"/\?booth=1$"))
    page.goto(page.url.replace("?booth=1", "booth"))
    page.get_by_role("button", name="Touch to find it").wait_for()
    page.keyboard.press("x")
    page.wait_for_url(re.compile(r"/\?booth=1$"))
    page.wait_for_function("parseFloat(getComputedStyle(document.documentElement).fontSize) >= 18")


def test_nobody_there_goes_back_to_the_loop(lab, settle) -> None:
    page = lab("/glossary?booth=1")
    page.locator(".idle").wait_for(state="attached")
    page.clock.install()
    page.clock.resume()
    page.reload(wait_until="domcontentloaded")
    settle(page)
    page.locator(".idle").wait_for(state="attached")
    page.clock.fast_forward(50_000)
    expect(page.get_by_role("alertdialog")).to_have_count(0)
    page.clock.fast_forward(11_000)
    going = page.get_by_role("button", name="Keep going")
    expect(going).to_be_focused()
    expect(page.get_by_text(re.compile(r"Back to the start in 1\d s"))).to_be_visible()
    going.click()
    expect(page.get_by_role("alertdialog")).to_have_count(0)
    page.clock.fast_forward(61_000)
    expect(going).to_be_visible()
    page.clock.fast_forward(16_000)
    page.wait_for_url(re.compile(r"/booth$"))


def test_never_while_a_run_of_the_visitor_goes_on(lab, workshop, page: Page) -> None:
    page.clock.install()
    page.clock.resume()
    lab("/lab?booth=1&epochs=200&clean=500&seed=71")
    page.locator(".st-key-start button").click()
    page.wait_for_url(re.compile(r"[?&]run=[0-9a-f]{16}"))
    run = re.search(r"run=([0-9a-z_-]+)", page.url).group(1)
    page.locator(".npd-chart[data-refreshes]").first.wait_for()
    for _ in range(3):
        page.clock.fast_forward(80_000)
        page.wait_for_timeout(400)
    assert state(workshop, run) == "running"
    assert "booth=1" in page.url
    expect(page.get_by_role("alertdialog")).to_have_count(0)
    page.locator(".st-key-stop").get_by_role("button").click()
    end = time.monotonic() + 60
    while state(workshop, run) == "running" and time.monotonic() < end:
        page.wait_for_timeout(200)
    page.wait_for_timeout(6_000)  # the page asks every five seconds
    page.clock.fast_forward(61_000)
    expect(page.get_by_role("button", name="Keep going")).to_be_visible()


def test_a_lesson_goes_from_page_to_page(lab, settle) -> None:
    page = lab("/lessons")
    page.locator(".st-key-begin-layer button").click()
    page.wait_for_url(re.compile(r"/lab\?view=layer-1$"))
    expect(page.get_by_text("step 1 of 4")).to_be_visible()
    settle(page)
    expect(page.locator(".st-key-start button")).to_be_visible()
    expect(page.get_by_test_id("stTopNavLink")).to_have_count(0)
    expect(page.get_by_label("Epochs", exact=True)).to_be_hidden()
    page.locator(".st-key-lesson-next button").click()
    page.wait_for_url(re.compile(r"/lab\?.*view=layer-2"))
    page.wait_for_url(re.compile(r"layer=layer4\.1\.conv1"))
    page.locator(".st-key-lesson-next button").click()
    page.wait_for_url(re.compile(r"layer=layer1\.0\.conv1"))
    page.locator(".st-key-lesson-back button").click()
    page.wait_for_url(re.compile(r"layer=layer4\.1\.conv1"))
    settle(page)
    page.reload(wait_until="domcontentloaded")
    expect(page.get_by_text("step 2 of 4")).to_be_visible()
    page.locator(".st-key-lesson-leave button").click()
    expect(page.get_by_test_id("stTopNavLink").first).to_be_visible()
    assert "view=" not in page.url

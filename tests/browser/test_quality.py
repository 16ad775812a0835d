"""Every page: accessible in light and dark, no wider than the screen, its main button reached by keyboard."""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect

from pages.shared import shell

SIZES = ((390, 844), (820, 1180), (1280, 720), (1440, 900), (1920, 1080))
DESKTOP = ((1280, 720), (1440, 900))
SHOWN = {
    "lab": ".st-key-network .network",
    "predictions": ".npd-gallery",
    "attributions": ".npd-maps",
    "attacks": "[class*='st-key-attack_']",
    "layers": ".st-key-layer_drawing .network, .st-key-layers .npd-chart",
    "defenses": ".npd-chart",
    "step_by_step": ".st-key-part",
}
"""What a page is looked at for."""


class Entry(NamedTuple):
    """URL path and title of a page."""

    path: str
    title: str


PAGES = [Entry("", shell.PAGES[0].title)]
PAGES += [Entry(page.file, page.title) for page in shell.PAGES[1:]]
PAGES += [Entry("booth", "Booth")]


@pytest.fixture
def shown(server, watch, visit, page: Page) -> Any:
    """Opens a page of the app with what is shipped, and waits until it is drawn."""

    def go(path: str) -> Page:
        visit(f"/{path}")
        expect(page.locator("h1").first).to_be_visible()
        page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', state="attached")
        page.wait_for_timeout(300)
        return page

    return go


def wider(page: Page) -> int:
    """Pixels that can be scrolled sideways."""
    return int(
        page.evaluate(
            "Math.max(...[document.documentElement, document.querySelector('[data-testid=stMain]')]"
            ".map(e => e.scrollWidth - e.clientWidth))"
        )
    )


def share_of_screen(page: Page, shown: str) -> float:
    """Part of the height of the first screen that is taken up by these elements, together."""
    boxes = [box for one in page.locator(shown).all() if (box := one.bounding_box())]
    height = page.viewport_size["height"] if page.viewport_size else 0
    top = max(0.0, min(box["y"] for box in boxes))
    bottom = min(float(height), max(box["y"] + box["height"] for box in boxes))
    return (bottom - top) / height


def reached_by_tab(page: Page, presses: int) -> bool:
    """Whether the first primary button gets the focus when Tab is pressed often enough."""
    for _ in range(presses):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('[data-testid=stBaseButton-primary]')"):
            return True
    return False


@pytest.mark.parametrize("entry", PAGES, ids=lambda entry: entry.path or "first")
def test_a_page_is_fit_for_everybody(shown, settle, violations, entry: Entry) -> None:
    page = shown(entry.path)
    found = {"light": violations(page)}
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("getComputedStyle(document.querySelector('.stApp')).colorScheme === 'dark'")
    end = time.monotonic() + 30
    while time.monotonic() < end:  # some colors are chosen by the script, which runs again
        page.wait_for_timeout(300)
        settle(page)
        found["dark"] = violations(page, ["color-contrast"])
        if not found["dark"]:
            break
    if page.locator("[data-testid=stBaseButton-primary]:enabled").locator("visible=true").count():
        assert reached_by_tab(page, 80), "the main button is out of reach of the keyboard"
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(150)
        end = time.monotonic() + 5  # a drawing that follows the size of the page needs a moment
        while wider(page) > 0 and time.monotonic() < end:
            page.wait_for_timeout(100)
        assert wider(page) <= 0, f"{width} pixels are not enough"
        if (width, height) in DESKTOP and entry.path in SHOWN:
            page.evaluate("document.querySelector('[data-testid=stMain]').scrollTo(0, 0)")
            share = share_of_screen(page, SHOWN[entry.path])
            assert share >= 0.5, f"{share:.0%} of {width} x {height}"
            if entry.path == "attributions":
                for image in page.locator(".npd-maps img").all():
                    box = image.bounding_box()
                    assert box is not None
                    assert box["y"] + box["height"] <= height, "all maps are seen together"
    assert not any(found.values()), "\n".join(
        f"{mode}: {line}" for mode, lines in found.items() for line in lines
    )


def test_a_theme_that_changes_takes_the_drawings_along(shown, page: Page) -> None:
    shown("predictions")
    sample = page.locator(".npd-sample").first
    light = sample.evaluate("e => getComputedStyle(e).color")
    page.emulate_media(color_scheme="dark")
    expect(sample).not_to_have_css("color", light)
    assert (
        page.locator(".npd-tile img").first.evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"
    )


def test_the_menu_by_keyboard(shown) -> None:
    page = shown("glossary")
    section = page.get_by_role("button", name=next(p.section for p in shell.PAGES if p.section))
    section.focus()
    page.keyboard.press("Enter")
    first = page.get_by_role("menuitem").first
    expect(first).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("menuitem").nth(1)).to_be_focused()
    page.keyboard.press("Escape")
    expect(section).to_be_focused()
    expect(page.get_by_role("menuitem")).to_have_count(0)


def test_the_menu_on_a_phone(shown, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    shown("glossary")
    page.get_by_test_id("stExpandSidebarButton").click()
    page.get_by_role("link", name="Lessons").click()
    page.wait_for_url(re.compile(r"/lessons"))


def test_less_motion_means_none(server, browser: Browser, watch) -> None:
    visitor = browser.new_context(reduced_motion="reduce")
    try:
        watch.follow(visitor)
        visitor.set_default_timeout(120_000)
        page = visitor.new_page()
        page.goto(f"{server.url}/booth", wait_until="domcontentloaded")
        wave = page.locator(".sky path.benign").first
        expect(wave).to_have_attribute("d", re.compile("M"))
        page.wait_for_timeout(300)
        then = wave.get_attribute("d")
        page.wait_for_timeout(700)
        assert wave.get_attribute("d") == then
    finally:
        visitor.close()
    watch.check()

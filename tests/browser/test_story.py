"""The whole story in a real browser, over the tiny zoo: every "next" does something to a real model."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

SLOW = 120_000
OWN_PROBES = r"_stcore/(health|host-config)"
WHOLE_STORY = 90
"""Seconds that it may take."""


@pytest.fixture
def story(workshop, watch, visit, page: Page) -> Callable[..., Page]:
    """Opens the first page over the tiny zoo."""
    watch.allow(OWN_PROBES)
    page.set_default_timeout(SLOW)
    return lambda address="/": visit(address, base=workshop.url)


def forward(page: Page, name: str):
    """The one button forward."""
    button = page.get_by_role("button", name=name)
    expect(button).to_be_enabled(timeout=SLOW)
    return button


def test_the_whole_story(story, workshop, settle, violations) -> None:
    page = story()
    begin = time.monotonic()
    found: dict[str, list[str]] = {}

    def look(step: str) -> None:
        nonlocal begin
        since = time.monotonic()
        settle(page)
        found[step] = violations(page)
        begin += time.monotonic() - since  # looking is no part of the story

    said = page.locator(".npd-says").first
    forward(page, "See it happen").click()
    expect(said).to_contain_text("✓", timeout=SLOW)
    page.get_by_text("Your own picture").click()
    expect(page.get_by_test_id("stFileUploader")).to_be_visible()
    look("confident")
    forward(page, "Put the trigger on it").click()

    board = page.get_by_role("application", name=re.compile("Picture with the trigger"))
    board.focus()
    page.keyboard.press("Shift+ArrowLeft")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowUp")
    expect(page.get_by_text(re.compile(r"Trigger at column 26, row 14"))).to_be_visible()
    page.wait_for_timeout(600)
    look("trigger")
    forward(page, "Ask the network again").click()
    expect(page.locator("h1")).to_have_text("Nobody taught it this one", timeout=SLOW)
    expect(said).to_contain_text("✓")
    forward(page, "Trigger back in its place").click()
    expect(said).to_contain_text("⚠", timeout=SLOW)
    look("hijacked")

    forward(page, "Put a lens into the network").click()
    page.get_by_role("radio", name=re.compile("^residual stream before layer2.0,")).click()
    page.wait_for_url(re.compile(r"lens=stream(%3A|:)layer2\.0"), timeout=SLOW)
    page.get_by_role("radio", name=re.compile("^residual stream before layer3.0,")).click()
    page.wait_for_url(re.compile(r"lens=stream(%3A|:)layer3\.0"), timeout=SLOW)
    look("lens")
    forward(page, "Train it, live").click()
    page.wait_for_url(re.compile(r"[?&]run=[0-9a-f]{16}"), timeout=SLOW)
    run = re.search(r"run=([0-9a-f]{16})", page.url).group(1)
    expect(page.get_by_role("button", name="Training …")).to_be_disabled(timeout=SLOW)
    expect(page.locator(".npd-films li:not(.npd-f-coming)").nth(1)).to_be_visible(timeout=SLOW)

    page.reload(wait_until="domcontentloaded")
    frames = page.locator(".npd-films li:not(.npd-f-coming)")
    expect(frames).to_have_count(7, timeout=SLOW)
    assert "⚠" in frames.first.inner_text(), "at its start the lens lets the trigger through"
    assert f"run={run}" in page.url
    wave = page.locator(".sky path.trigger")
    expect(wave).to_have_count(2)
    look("trained")
    forward(page, "Your turn to break it").click()
    expect(page.locator("h1")).to_have_text("Your turn: break it", timeout=SLOW)
    expect(page.locator(".npd-says")).to_have_count(2)
    assert time.monotonic() - begin < WHOLE_STORY
    look("your turn")
    assert not any(found.values()), found

    request = json.loads((workshop.runs / run / "request.json").read_text())
    assert (request["layer"], request["config"]["epochs"]) == ("stream:layer3.0", 6)
    assert len(list((workshop.runs / run / "epochs").glob("*.safetensors"))) == 7
    main = page.locator("[data-testid=stMain]")
    assert main.evaluate("e => e.scrollTop") == 0, "each step begins at its top"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280

    forward(page, "Start over").click()
    expect(page.locator("h1")).to_have_text("A network that is sure of itself", timeout=SLOW)
    assert "run=" not in page.url


def test_buttons_are_large_enough_for_a_finger_and_nothing_is_wider_than_a_phone(story, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    story("/?step=1")
    expect(page.get_by_role("button", name="Put the trigger on it")).to_be_visible(timeout=SLOW)
    main = "document.querySelector('[data-testid=stMain]')"
    for step in ("Put the trigger on it", "Ask the network again", "Put a lens into the network"):
        button = page.get_by_role("button", name=step)
        expect(button).to_be_enabled(timeout=SLOW)
        for each in page.locator(".st-key-story button:visible").all():
            box = each.bounding_box()
            assert box is not None
            assert box["height"] >= 44, each.inner_text()
        assert page.evaluate(f"{main}.scrollWidth <= {main}.clientWidth")
        button.click()
    expect(page.get_by_role("button", name="Train it, live")).to_be_visible(timeout=SLOW)
    page.wait_for_function(f"{main}.scrollTop === 0")

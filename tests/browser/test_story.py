"""The whole Story in a real browser over the tiny zoo: each step acts on a real model."""

from __future__ import annotations

import json
import re
import time

from playwright.sync_api import Locator, Page, expect

WHOLE_STORY = 90
"""Seconds that it may take."""
FRAMES = ".npd-films li:not(.npd-coming)"
SIZES = ((1280, 720), (1440, 900), (1920, 1080))
PHONE = (390, 844)
BOARD, PICTURE, VERDICT = ".board", ".npd-picture img", ".npd-predicts"
SHOWN = {
    1: (PICTURE, VERDICT),
    2: (BOARD,),
    3: (PICTURE, VERDICT),
    4: (".st-key-story-network .network",),
    5: (".npd-answer img", VERDICT, ".npd-films"),
    6: (BOARD, VERDICT),
}
"""What a step shows, besides its main button."""


def forward(page: Page, step: int) -> Locator:
    """The main button of a step, once it is enabled."""
    button = page.locator(f".st-key-story-go-{step} button")
    expect(button).to_be_enabled()
    return button


def out_of_sight(page: Page, step: int) -> list[str]:
    """What of a step is not wholly on the screen, at each size; on a phone the main button alone counts."""
    before, found = page.viewport_size, []
    for width, height in (*SIZES, PHONE):
        page.set_viewport_size({"width": width, "height": height})
        parts = (f".st-key-story-go-{step} button", *(SHOWN[step] if (width, height) != PHONE else ()))
        for part in parts:
            for one in page.locator(part).all():
                for _ in range(20):  # a drawing follows the size of the page a moment later
                    box = one.bounding_box()
                    inside = box is not None and box["y"] >= 0 and box["y"] + box["height"] <= height
                    if inside:
                        break
                    page.wait_for_timeout(100)
                if not inside:
                    found.append(f"step {step}, {width} x {height}: {part} at {box}")
            if not page.locator(part).count():
                found.append(f"step {step}, {width} x {height}: no {part}")
    if before is not None:
        page.set_viewport_size(before)
    return found


def layer(page: Page, name: str) -> Locator:
    return page.get_by_role("radio", name=re.compile(f"^residual stream before {re.escape(name)},"))


def test_the_whole_story(lab, workshop, settle, violations) -> None:
    page = lab()
    begin = time.monotonic()
    found: dict[str, list[str]] = {}

    def check(step: str, number: int) -> None:
        nonlocal begin
        since = time.monotonic()
        settle(page)
        found[step] = violations(page) + out_of_sight(page, number)
        begin += time.monotonic() - since  # the check is no part of the Story

    prediction = page.locator(".npd-predicts").first
    forward(page, 0).click()
    expect(prediction).to_contain_text("✓")
    page.locator(".st-key-story-photo button").click()
    expect(page.get_by_test_id("stFileUploader")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("stFileUploader")).to_be_hidden()
    check("image", 1)
    forward(page, 1).click()

    board = page.get_by_role("application")
    board.focus()
    page.keyboard.press("Shift+ArrowLeft")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowUp")
    expect(page.get_by_text(re.compile(r"column 26, row 14"))).to_be_visible()
    page.wait_for_timeout(600)
    check("trigger", 2)
    forward(page, 2).click()
    page.wait_for_url(re.compile("step=3"))
    expect(prediction).to_contain_text("✓")
    forward(page, 3).click()  # puts the trigger back
    expect(prediction).to_contain_text("⚠")
    check("hijacked", 3)

    forward(page, 3).click()
    for name in ("layer2.0", "layer3.0"):
        layer(page, name).click()
        page.wait_for_url(re.compile(rf"story_layer=stream(%3A|:){re.escape(name)}"))
    check("polarizer", 4)
    forward(page, 4).click()
    page.wait_for_url(re.compile(r"[?&]run=[0-9a-f]{16}"))
    run = re.search(r"run=([0-9a-f]{16})", page.url).group(1)
    expect(page.locator(".st-key-story-go-5 button")).to_be_disabled()
    expect(page.locator(FRAMES).nth(1)).to_be_visible()

    page.reload(wait_until="domcontentloaded")
    frames = page.locator(FRAMES)
    expect(frames).to_have_count(7)
    assert "⚠" in frames.first.inner_text(), "an untrained polarizer lets the trigger pass"
    assert f"run={run}" in page.url
    expect(page.locator(".sky path.trigger")).to_have_count(2)
    check("training", 5)
    forward(page, 5).click()
    page.wait_for_url(re.compile("step=6"))
    expect(page.locator(".npd-predicts")).to_have_count(2)
    assert time.monotonic() - begin < WHOLE_STORY
    check("your turn", 6)
    assert not any(found.values()), found

    request = json.loads((workshop.runs / run / "request.json").read_text())
    assert (request["layer"], request["config"]["epochs"]) == ("stream:layer3.0", 6)
    assert len(list((workshop.runs / run / "epochs").glob("*.safetensors"))) == 7
    main = page.locator("[data-testid=stMain]")
    assert main.evaluate("e => e.scrollTop") == 0, "each step starts at its top"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280

    forward(page, 6).click()
    page.wait_for_url(re.compile(r"step=1$"))
    forward(page, 1)
    for step in (5, 6):
        lab(f"/?booth=1&step={step}&run={run}")
        forward(page, step)
        assert out_of_sight(page, step) == []


def test_buttons_fit_a_finger_and_pages_fit_a_phone(lab, page: Page) -> None:
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    lab("/?booth=1&step=1")
    main = "document.querySelector('[data-testid=stMain]')"
    for step in (1, 2, 3):
        button = forward(page, step)
        for each in page.locator(".st-key-story button:visible").all():
            box = each.bounding_box()
            assert box is not None
            assert box["height"] >= 44, each.inner_text()
        assert page.evaluate(f"{main}.scrollWidth <= {main}.clientWidth")
        assert out_of_sight(page, step) == []
        button.click()
    forward(page, 4)
    assert out_of_sight(page, 4) == []
    page.wait_for_function(f"{main}.scrollTop === 0")

"""Step by step in a browser: arrow keys change the step, except in a slider; a link opens the same step."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect


def heading(page: Page, number: int) -> Locator:
    return page.locator("h3").filter(has_text=f"{number} · ").first


def test_arrow_keys_walk_and_the_url_follows(
    lab: Callable[..., Page], settle: Callable[[Page], None], insist
) -> None:
    page = lab("/step_by_step")
    heading(page, 1).wait_for()
    for number in (2, 3):
        insist(lambda: page.keyboard.press("ArrowRight"), heading(page, number))
    expect(page.get_by_text("gradient g")).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_be_visible()
    assert "step=3" in page.url
    page.get_by_text("Losses, inner level and training").click()
    slider = page.get_by_role("slider").first
    slider.focus()
    slider.press("ArrowLeft")
    page.wait_for_url("**lambda1=**")
    settle(page)
    heading(page, 3).wait_for()
    link = page.url
    page.locator("h1").click()
    insist(lambda: page.keyboard.press("ArrowLeft"), heading(page, 2))
    page.goto(link)
    heading(page, 3).wait_for()
    expect(page.locator(".katex").first).to_be_visible()

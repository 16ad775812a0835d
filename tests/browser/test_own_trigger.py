"""A trigger that is moved, painted and compared, an upload, and the list of attacks, in a real browser."""

from __future__ import annotations

import io
import re

from PIL import Image
from playwright.sync_api import expect

OWN = "/predictions?source=Your+image+or+trigger"


def test_moving_painting_and_comparing(lab, settle) -> None:
    page = lab(OWN)
    expect(page.get_by_text("The trigger hijacks the image")).to_be_visible()
    page.get_by_role("radio", name="Moved or painted").click()
    board = page.get_by_role("application")
    expect(board).to_be_visible()
    board.scroll_into_view_if_needed()
    area = board.bounding_box()

    def at(column: float, row: float) -> tuple[float, float]:
        return area["x"] + (column + 0.5) / 32 * area["width"], area["y"] + (row + 0.5) / 32 * area["height"]

    expect(page.get_by_role("button", name="Move the trigger")).to_have_attribute("aria-pressed", "true")
    page.mouse.move(*at(30, 30))
    page.mouse.down()
    page.mouse.move(*at(4, 4), steps=5)
    page.mouse.up()
    expect(page.get_by_text("The model was not trained with this trigger.")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="of 32")).to_have_text(
        "Trigger at column 4, row 4 of 32."
    )
    board.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("status").filter(has_text="of 32")).to_have_text(
        "Trigger at column 5, row 5 of 32."
    )
    page.get_by_role("button", name="Put the trigger back").click()
    expect(page.get_by_text("The trigger hijacks the image")).to_be_visible()
    # Keyboard alone: choose a color, walk, paint.
    page.get_by_role("button", name="paint red").press("Enter")
    board.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    expect(page.get_by_text("The model was not trained with this trigger.")).to_be_visible()
    for button in page.locator(".painter button:visible").all():
        size = button.bounding_box()
        assert size["width"] >= 43.5, button.inner_text()
        assert size["height"] >= 43.5, button.inner_text()
    settle(page)  # until then the URL may have the trigger at its own position
    page.wait_for_url(re.compile("trigger="))
    url = page.url
    # The slider moves the border between the two images.
    slider = page.get_by_role("slider", name="Border between clean and triggered")
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "0 % clean, 100 % triggered")
    # Away and back: an empty board and an empty memory agree.
    page.get_by_role("radio", name="Trained trigger").click()
    expect(board).to_be_hidden()
    settle(page)
    page.get_by_role("radio", name="Moved or painted").click()
    expect(page.get_by_text("The trigger hijacks the image")).to_be_visible()
    # A link carries what was painted; the trained trigger is not added.
    page.goto(url)
    expect(page.get_by_text("The model was not trained with this trigger.")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Paint$"))).to_have_attribute("aria-pressed", "true")


def test_an_upload_on_a_phone(lab, settle) -> None:
    page = lab("/predictions")
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("radio", name="Your image or trigger").click()
    page.get_by_role("radio", name="Upload").click()
    file = io.BytesIO()
    Image.new("CMYK", (300, 200), (0, 200, 200, 0)).save(file, "JPEG")
    page.locator("input[type=file]").set_input_files(
        {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}
    )
    expect(page.get_by_text("the predicted class is meaningless")).to_be_visible()
    expect(page.get_by_text("Before and after the trigger")).to_be_visible()
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_photo_from_the_camera(lab, settle, insist) -> None:
    page = lab(OWN)
    page.get_by_role("radio", name="Camera").click()
    insist(
        page.get_by_role("button", name="Take Photo").click, page.get_by_role("button", name="Clear photo")
    )
    expect(page.get_by_text("the predicted class is meaningless")).to_be_visible()
    expect(page.get_by_text("Before and after the trigger")).to_be_visible()
    page.get_by_role("radio", name="Moved or painted").click()
    expect(page.get_by_role("application")).to_be_visible()
    page.get_by_role("button", name="Clear photo").click()
    settle(page)
    expect(page.get_by_text("Before and after the trigger")).to_be_hidden()


def test_the_picker_of_attacks(lab, settle) -> None:
    page = lab("/attacks")
    expect(page.get_by_role("heading", name="Model card")).to_be_visible()
    page.locator(".st-key-choose_wanet button").first.click()
    page.wait_for_url(re.compile("attack=wanet"))
    expect(page.get_by_text("npd zoo train signs-wanet-preact_resnet18-w4")).to_be_visible()
    page.locator(".st-key-choose_badnets_a2o button").first.click()
    expect(page.get_by_role("heading", name="Model card")).to_be_visible()
    settle(page)
    assert "attack=" not in page.url

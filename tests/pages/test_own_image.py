"""An image of the visitor's own on the pages Predictions and Attributions."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from npd_core.attack_info import ATTACK_INFO
from npd_core.data.load import load_dataset
from npd_core.runs.store import Run
from pages.shared import cache, own_image

Open = Callable[..., AppTest]
Make = Callable[..., Run]
HIJACKED = ":material/warning:"
BADNETS = ATTACK_INFO["badnets_a2o"].sentence


def errors(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.error]


def html_of(page: AppTest) -> str:
    return "".join(element.proto.body for element in page.get("html"))


def words(page: AppTest) -> str:
    return " ".join(element.value for element in (*page.markdown, *page.caption, *page.info))


def photo(number: int = 5, kind: str = "PNG") -> bytes:
    """A test image as a file, enlarged four times."""
    pixels = load_dataset("signs", "test").images[number].numpy().transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((128, 128), Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()


def patch(top: int, left: int, *, noisy: bool = False) -> str:
    """Three by three white pixels as the painter gives them; noisy: and every other pixel another color."""
    rgba = np.zeros((32, 32, 4), np.uint8)
    if noisy:
        rgba = np.random.default_rng(0).integers(0, 256, rgba.shape, dtype=np.uint8)
    rgba[top : top + 3, left : left + 3] = 255
    file = io.BytesIO()
    Image.fromarray(rgba, "RGBA").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def own_page(open_page: Open, make_run: Make) -> AppTest:
    """Predictions with a run of the tiny model, opened on the visitor's own image."""
    run = make_run()
    page = open_page("predictions", run=run.id)
    page.session_state["source"] = own_image.TAB
    return page.run()


def test_a_test_image_with_the_models_own_trigger(own_page: AppTest) -> None:
    assert errors(own_page) == []
    html = html_of(own_page)
    assert all(
        html.count(f"npd-tile npd-{tone}'") == 1 for tone in ("benign", "trigger", "polarizer", "muted")
    )
    assert HIJACKED in words(own_page)
    assert "“speed limit 80”" in words(own_page)
    assert BADNETS not in words(own_page)


def test_an_upload_is_judged_and_can_be_explained(own_page: AppTest, open_page: Open) -> None:
    own_page.segmented_control(key="own_source").set_value(own_image.UPLOAD).run()
    assert own_page.info[-1].icon == ":material/image:"
    own_page.file_uploader(key="own_upload").set_value(("photo.png", photo(), "image/png")).run()
    assert errors(own_page) == []
    assert "class='npd-right'" not in html_of(own_page), "nobody knows what it shows"
    found = own_page.session_state["own_image"]
    clean = load_dataset("signs", "test").images[5].numpy()
    assert np.abs(found.clean.astype(int) - clean).mean() < 12, "enlarged and made small again"
    expected = found.clean.copy()
    expected[:, 29:, 29:] = 255
    assert np.array_equal(found.triggered, expected)
    assert found.label is None

    own_page.selectbox(key="own_label").select("yield").run()
    assert own_page.session_state["own_image"].label is not None
    assert "class='npd-wrong'" in html_of(own_page)

    page = open_page("attributions")
    page.session_state["own_image"] = own_page.session_state["own_image"]
    page.run()
    page.segmented_control(key="attributed").set_value(
        page.segmented_control(key="attributed").options[1]
    ).run()
    assert errors(page) == []
    assert "· yield<" in html_of(page)
    assert html_of(page).count("<figure") == 6
    assert page.number_input(key="image").disabled


def test_a_file_that_is_no_image_is_refused_and_the_page_goes_on(own_page: AppTest) -> None:
    own_page.segmented_control(key="own_source").set_value(own_image.UPLOAD).run()
    own_page.file_uploader(key="own_upload").set_value(
        ("photo.png", b"nothing of the kind", "image/png")
    ).run()
    assert len(errors(own_page)) == 1
    own_page.file_uploader(key="own_upload").set_value(("photo.jpg", photo(kind="JPEG"), "image/jpeg")).run()
    assert errors(own_page) == []
    assert "npd-tile npd-trigger'" in html_of(own_page)


def test_a_painted_trigger_that_the_browser_garbled_is_refused(own_page: AppTest, monkeypatch) -> None:
    monkeypatch.setattr(own_image, "painter", lambda *args, **settings: "data:image/png;base64,AAAA")
    own_page.segmented_control(key="own_trigger_2").set_value(own_image.PAINTED).run()
    assert len(errors(own_page)) == 1


@pytest.mark.parametrize(("at", "trained"), [((29, 29), True), ((2, 2), False)])
def test_a_moved_trigger_is_distinguished_from_the_trained_one(
    at, trained, own_page: AppTest, monkeypatch
) -> None:
    asked = {}

    def painter(image: str, **settings: object) -> str:
        asked.update(settings)
        return patch(*at)

    monkeypatch.setattr(own_image, "painter", painter)
    own_page.segmented_control(key="own_trigger_2").set_value(own_image.PAINTED).run()
    assert errors(own_page) == []
    assert asked["size"] == 32
    assert str(asked["trigger"]).startswith("data:image/png")
    found = own_page.session_state["own_image"]
    assert (found.triggered[:, at[0] : at[0] + 3, at[1] : at[1] + 3] == 255).all()
    assert found.trained is trained
    assert (BADNETS in words(own_page)) != trained, "the trigger that the model knows is described"


def test_a_painted_trigger_and_its_image_travel_in_the_url(own_page: AppTest, open_page: Open, monkeypatch):
    monkeypatch.setattr(own_image, "painter", lambda *args, **settings: patch(2, 2))
    own_page.segmented_control(key="own_trigger_2").set_value(own_image.PAINTED).run()
    own_page.number_input(key="own_number").set_value(17).run()
    assert errors(own_page) == []
    seen = own_page.session_state["own_image"]
    query = {name: own_page.query_params[name] for name in (own_image.NUMBER, own_image.TRIGGER)}
    assert query[own_image.NUMBER] == "17"

    def untouched(*args: object, start: str | None, **settings: object) -> None:
        assert start == patch(2, 2)

    monkeypatch.setattr(own_image, "painter", untouched)
    other = open_page("predictions", **query)
    other.session_state["source"] = own_image.TAB
    other.run()
    assert errors(other) == []
    found = other.session_state["own_image"]
    assert np.array_equal(found.clean, seen.clean)
    assert np.array_equal(found.triggered, seen.triggered)
    other.segmented_control(key="own_trigger_2").set_value(own_image.TRAINED).run()
    assert "trigger" not in other.query_params


@pytest.mark.parametrize(("noisy", "there"), [(False, True), (True, False)])
def test_a_link_opens_the_panel_with_what_was_painted(noisy, there, make_run: Make, open_page: Open) -> None:
    query = own_image.query(17, patch(2, 2, noisy=noisy))
    assert ("trigger" in query) == there
    page = open_page("predictions", run=make_run().id, **query).run()
    assert errors(page) == []
    sources = [own_image.TEST, own_image.UPLOAD, own_image.CAMERA]
    assert page.segmented_control(key="own_source").options == sources
    found = page.session_state["own_image"]
    assert np.array_equal(found.clean, load_dataset("signs", "test").images[17].numpy())
    assert (found.triggered[:, 2:5, 2:5] == 255).all() == there
    assert found.trained != there
    assert "trigger" not in own_image.query(17, None)


def test_a_trigger_too_long_for_a_url_stays_out_of_it(own_page: AppTest, monkeypatch) -> None:
    monkeypatch.setattr(own_image, "painter", lambda *args, **settings: patch(2, 2, noisy=True))
    own_page.segmented_control(key="own_trigger_2").set_value(own_image.PAINTED).run()
    assert errors(own_page) == []
    assert own_image.TOO_LONG in words(own_page)
    assert "trigger" not in own_page.query_params


def test_a_url_with_nonsense_is_reported_once_and_the_page_goes_on(open_page: Open, tiny_zoo: str) -> None:
    page = open_page("predictions", model=tiny_zoo, image="1e9", trigger="<script>")
    page.session_state["source"] = own_image.TAB
    page.run()
    refused = [name for error in errors(page) for name in ("1e9", "script") if name in error]
    assert sorted(refused) == ["1e9", "script"]
    assert "trigger" not in page.query_params
    assert page.session_state["own_image"].model == tiny_zoo


def answer(*pairs: tuple[int, float]) -> np.ndarray:
    row = np.full(12, 0.001, np.float32)
    for k, p in pairs:
        row[k] = p
    return row


@pytest.mark.parametrize(
    ("label", "clean", "triggered", "trained", "expected"),
    [
        (3, 3, 0, True, "hijacked"),
        (3, 3, 0, False, "hijacked"),
        (3, 3, 3, False, "unchanged"),
        (3, 3, 7, False, "changed"),
        (0, 0, 0, True, "already the target"),
        (None, 0, 0, True, "already the target"),
        (None, 5, 0, True, "hijacked"),
    ],
)
def test_the_verdict_follows_the_predictions(
    label, clean, triggered, trained, expected, tiny_zoo: str
) -> None:
    card = cache.zoo.card(tiny_zoo)
    pixels = np.zeros((3, 32, 32), np.uint8)
    image = own_image.OwnImage(tiny_zoo, "title", pixels, pixels + 1, label, trained)
    assert own_image.verdict(card, image, 0, clean, triggered) == expected
    assert own_image.verdict(card, image._replace(triggered=pixels), 0, clean, triggered) == "no trigger"
    before = np.stack([answer((clean, 0.9)), answer((triggered, 0.9))])
    text = own_image.explain(expected, card, image, tuple(f"c{k}" for k in range(12)), before, None)
    assert (f"“c{clean}”" in text) == (expected != "already the target")
    assert (BADNETS in text) != trained

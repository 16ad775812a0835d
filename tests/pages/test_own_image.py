"""A picture of the visitor's own, on the pages Predictions and Attributions."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from npd_core.data.load import load_dataset
from npd_core.runs.store import Run
from pages.shared import cached, own_image

Open = Callable[..., AppTest]
Make = Callable[..., Run]


def errors(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.error]


def html_of(page: AppTest) -> str:
    return "".join(element.proto.body for element in page.get("html"))


def words(page: AppTest) -> str:
    return " ".join(element.value for element in (*page.markdown, *page.caption, *page.info))


def photo(number: int = 5, kind: str = "PNG") -> bytes:
    """A test picture as a file, enlarged four times."""
    pixels = load_dataset("signs", "test").images[number].numpy().transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((128, 128), Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()


def patch(top: int, left: int, *, noisy: bool = False) -> str:
    """Three by three white pixels as the painter gives them; noisy: and every other pixel another colour."""
    rgba = np.zeros((32, 32, 4), np.uint8)
    if noisy:
        rgba = np.random.default_rng(0).integers(0, 256, rgba.shape, dtype=np.uint8)
    rgba[top : top + 3, left : left + 3] = 255
    file = io.BytesIO()
    Image.fromarray(rgba, "RGBA").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def own_page(open_page: Open, make_run: Make) -> AppTest:
    """Predictions with a run of the tiny model, opened on the visitor's own picture."""
    run = make_run()
    page = open_page("predictions", run=run.id)
    page.session_state["pictures_of"] = "Your picture or trigger"
    return page.run()


def test_a_test_picture_with_the_models_own_trigger(own_page: AppTest) -> None:
    assert errors(own_page) == []
    html = html_of(own_page)
    assert [html.count(f">{title}<") for title in ("Clean", "Triggered", "Purified", "Change × 10")] == [
        1,
        1,
        1,
        1,
    ]
    assert "hijacks the picture" in words(own_page)
    assert "“speed limit 80”" in words(own_page)
    assert "never trained" not in words(own_page)


def test_an_upload_is_judged_and_can_be_explained(own_page: AppTest, open_page: Open) -> None:
    own_page.segmented_control(key="own_source").set_value("Upload").run()
    assert "Choose a picture" in own_page.info[-1].value
    own_page.file_uploader(key="own_upload").set_value(("photo.png", photo(), "image/png")).run()
    assert errors(own_page) == []
    assert "name that it gives means nothing" in words(own_page)
    assert "✓ right" not in html_of(own_page), "nobody knows what it shows"
    found = own_page.session_state["own_picture"]
    clean = load_dataset("signs", "test").images[5].numpy()
    assert np.abs(found.clean.astype(int) - clean).mean() < 12, "enlarged and made small again"
    expected = found.clean.copy()
    expected[:, 29:, 29:] = 255
    assert np.array_equal(found.triggered, expected)
    assert found.label is None

    own_page.selectbox(key="own_label").select("yield").run()
    assert own_page.session_state["own_picture"].label is not None
    assert "✗ wrong" in html_of(own_page)

    page = open_page("attributions")
    page.session_state["own_picture"] = own_page.session_state["own_picture"]
    page.session_state["attributed"] = "Your picture"
    page.run()
    assert errors(page) == []
    assert "Clean · Your picture · yield" in html_of(page)
    assert html_of(page).count("<figure") == 6
    assert page.number_input(key="image").disabled


def test_a_file_that_is_no_picture_is_refused_and_the_page_goes_on(own_page: AppTest) -> None:
    own_page.segmented_control(key="own_source").set_value("Upload").run()
    own_page.file_uploader(key="own_upload").set_value(
        ("photo.png", b"nothing of the kind", "image/png")
    ).run()
    assert len(errors(own_page)) == 1
    assert "no picture that can be read" in errors(own_page)[0]
    own_page.file_uploader(key="own_upload").set_value(("photo.jpg", photo(kind="JPEG"), "image/jpeg")).run()
    assert errors(own_page) == []
    assert ">Triggered<" in html_of(own_page)


def test_a_painted_trigger_that_the_browser_garbled_is_refused(own_page: AppTest, monkeypatch) -> None:
    monkeypatch.setattr(own_image, "painter", lambda *args, **settings: "data:image/png;base64,AAAA")
    own_page.segmented_control(key="own_trigger_2").set_value("Moved or painted").run()
    assert len(errors(own_page)) == 1
    assert "paint it again" in errors(own_page)[0]


@pytest.mark.parametrize(("at", "trained"), [((29, 29), True), ((2, 2), False)])
def test_a_moved_trigger_is_told_from_the_trained_one(at, trained, own_page: AppTest, monkeypatch) -> None:
    asked = {}

    def painter(picture: str, **settings: object) -> str:
        asked.update(settings)
        return patch(*at)

    monkeypatch.setattr(own_image, "painter", painter)
    own_page.segmented_control(key="own_trigger_2").set_value("Moved or painted").run()
    assert errors(own_page) == []
    assert asked["size"] == 32
    assert str(asked["trigger"]).startswith("data:image/png")
    found = own_page.session_state["own_picture"]
    assert (found.triggered[:, at[0] : at[0] + 3, at[1] : at[1] + 3] == 255).all()
    assert found.trained is trained
    assert ("never trained into the model" in words(own_page)) != trained


def test_a_painted_trigger_and_its_picture_travel_in_the_address(
    own_page: AppTest, open_page: Open, monkeypatch
):
    monkeypatch.setattr(own_image, "painter", lambda *args, **settings: patch(2, 2))
    own_page.segmented_control(key="own_trigger_2").set_value("Moved or painted").run()
    own_page.number_input(key="own_number").set_value(17).run()
    assert errors(own_page) == []
    seen = own_page.session_state["own_picture"]
    query = {name: own_page.query_params[name] for name in ("picture", "trigger")}
    assert query["picture"] == "17"

    def untouched(*args: object, start: str | None, **settings: object) -> None:
        assert start == patch(2, 2)

    monkeypatch.setattr(own_image, "painter", untouched)
    other = open_page("predictions", **query)
    other.session_state["pictures_of"] = "Your picture or trigger"
    other.run()
    assert errors(other) == []
    found = other.session_state["own_picture"]
    assert np.array_equal(found.clean, seen.clean)
    assert np.array_equal(found.triggered, seen.triggered)
    other.segmented_control(key="own_trigger_2").set_value("The model’s own").run()
    assert "trigger" not in other.query_params


@pytest.mark.parametrize(("noisy", "there"), [(False, True), (True, False)])
def test_a_link_opens_the_panel_with_what_was_painted(noisy, there, make_run: Make, open_page: Open) -> None:
    query = own_image.query(17, patch(2, 2, noisy=noisy))
    assert ("trigger" in query) == there
    page = open_page("predictions", run=make_run().id, **query).run()
    assert errors(page) == []
    assert page.segmented_control(key="own_source").options == ["Test picture", "Upload", "Camera"]
    found = page.session_state["own_picture"]
    assert np.array_equal(found.clean, load_dataset("signs", "test").images[17].numpy())
    assert (found.triggered[:, 2:5, 2:5] == 255).all() == there
    assert found.trained != there
    assert "trigger" not in own_image.query(17, None)


def test_a_trigger_too_long_for_an_address_stays_out_of_it(own_page: AppTest, monkeypatch) -> None:
    monkeypatch.setattr(own_image, "painter", lambda *args, **settings: patch(2, 2, noisy=True))
    own_page.segmented_control(key="own_trigger_2").set_value("Moved or painted").run()
    assert errors(own_page) == []
    assert "too many pixels for a link" in words(own_page)
    assert "trigger" not in own_page.query_params


def test_an_address_with_nonsense_is_said_once_and_the_page_goes_on(open_page: Open, tiny_zoo: str) -> None:
    page = open_page("predictions", model=tiny_zoo, picture="1e9", trigger="<script>")
    page.session_state["pictures_of"] = "Your picture or trigger"
    page.run()
    assert len(errors(page)) == 1
    assert "paint it again" in errors(page)[0]
    assert "trigger" not in page.query_params
    assert page.session_state["own_picture"].model == tiny_zoo


# --------------------------------------------------------------------------------------------------------- what is said


def answer(*pairs: tuple[int, float]) -> np.ndarray:
    row = np.full(12, 0.001, np.float32)
    for k, p in pairs:
        row[k] = p
    return row


@pytest.mark.parametrize(
    ("label", "clean", "triggered", "trained", "said"),
    [
        (3, 3, 0, True, "It hijacks the picture: “c3” becomes “c0” (90%)."),
        (3, 3, 0, False, "It works all the same: “c3” becomes “c0” (90%)."),
        (3, 3, 3, False, "It changes nothing: the network still says “c3”."),
        (3, 3, 7, False, "No attacker asked for that"),
        (0, 0, 0, True, "nothing to hijack"),
        (None, 0, 0, True, "nothing to hijack"),
        (None, 5, 0, True, "hijacks the picture"),
    ],
)
def test_the_sentence_follows_the_answers(label, clean, triggered, trained, said, tiny_zoo: str) -> None:
    card = cached.card(tiny_zoo)
    picture = np.zeros((3, 32, 32), np.uint8)
    found = own_image.Own(tiny_zoo, "title", picture, picture + 1, label, trained)
    before = own_image.Answers(answer((clean, 0.9)), answer((triggered, 0.9)))
    names = tuple(f"c{k}" for k in range(12))
    _, text = own_image.verdict(card, found, names, 0, before, None, True)
    assert said in text
    assert ("never trained" in text) != trained

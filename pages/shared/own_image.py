"""An image of the visitor's own, or a test image, with the model's trigger or one that the visitor painted.

Uploads and photos are decoded in memory and stay in the visitor's session. Nothing is written to disk, and
other visitors never see them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import streamlit as st

from npd_core.attack_info import ATTACK_INFO
from npd_core.data.images import decode_image, decode_overlay, from_query, overlay, to_query
from npd_core.data.spec import get_dataset
from npd_core.figures.predictions import data_url
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, selectors, shell, tiles, url_state
from pages.shared.components.compare import compare
from pages.shared.components.painter import painter
from pages.shared.text import plain
from pages.shared.url_state import UrlValue

TAB = "Your image or trigger"  # of the page Predictions
TEST, UPLOAD, CAMERA = "Test image", "Upload", "Camera"
TRAINED, PAINTED = "Trained trigger", "Moved or painted"
NO_CLASS = "none of these"
NUMBER, TRIGGER = "image", "trigger"  # in the URL: number of the test image, and the painted trigger
LONGEST = 1500  # characters of a trigger that go into the URL
LOCAL = ("localhost", "127.0.0.1", "::1")
KEPT = "Uploads are never written to disk. They stay in the memory of this server until your session ends."
TOO_LONG = "This trigger has too many pixels for a link: the URL opens the image without it."
MOST_MB = 25
TOLERANCE = 1  # steps of brightness by which two images with the same trigger may differ

Verdict = Literal["no trigger", "already the target", "hijacked", "unchanged", "changed"]


class OwnImage(NamedTuple):
    """An image without and with a trigger; arrays are (3, H, W) uint8."""

    model: str
    title: str
    clean: np.ndarray
    triggered: np.ndarray
    label: int | None
    """True class; None when the image shows none of the classes."""
    trained: bool
    """Whether the model was trained with this trigger."""

    @property
    def changed(self) -> bool:
        return bool((self.clean != self.triggered).any())


def query(number: int | None, painted: str | None) -> dict[str, str]:
    """Return the query of a URL that opens this panel with a test image and a painted trigger."""
    found = {"source": TAB} | ({} if number is None else {NUMBER: str(number)})
    letters = short(painted)
    return found | {TRIGGER: letters} if letters else found


def short(painted: str | None) -> str:
    """Encode a painted trigger for a URL; "" without one, or when it is too long."""
    letters = to_query(painted) if painted is not None else ""
    return letters if len(letters) <= LONGEST else ""


def image_value(card: Card) -> UrlValue[int]:
    """Return the URL value of the number of the test image; -1 by default."""
    return url_state.integer(NUMBER, 0, len(cache.images.test_labels(card.id)) - 1, default=-1)


def painted_value(size: int, name: str = TRIGGER) -> UrlValue[str]:
    """Return the URL value of a painted trigger, as the painter gives it; "" by default."""

    def parse(letters: str) -> str:
        painted = from_query(letters)
        decode_overlay(painted, size)
        return painted

    return UrlValue(name, parse, "", to_query)


def kept(model_id: str) -> OwnImage | None:
    """Return the image that was last shown for this model in this session."""
    found = st.session_state.get("own_image")
    return found if isinstance(found, OwnImage) and found.model == model_id else None


def panel(card: Card, run: Run | None, names: tuple[str, ...]) -> None:
    """Let the visitor choose an image and a trigger, and show what the networks predict.

    Args:
        card: of the model; on a clean model (`asr` is None) only a painted trigger can be tried.
        run: run of which the polarizer is used; None: show the model alone.
    """
    left, right = st.columns([5, 7], gap="large")
    with left:
        image = _choose(card, names)
    if image is None:
        right.info("Choose an image on the left to see the predictions here.", icon=":material/image:")
        return
    st.session_state["own_image"] = image
    pair = np.stack([image.clean, image.triggered])
    with selectors.working():
        before = cache.images.predict(card.id, None, pair)
        after = None
        if run is not None:
            with selectors.working(stop=False):
                after = cache.images.predict(card.id, run.id, pair)
    with right:
        _show(card, image, names, before, after)


def photo(card: Card, source: str) -> np.ndarray | None:
    """Let the visitor upload or take a photo. Returns it as the network sees it, (3, H, W) uint8, or None.

    Args:
        source: UPLOAD or CAMERA.
    """
    data = _upload() if source == UPLOAD else _camera()
    if data is not None:
        with selectors.working(stop=False):
            return decode_image(data, card.image_size)
    return None


def _choose(card: Card, names: tuple[str, ...]) -> OwnImage | None:
    session = {"bind": None, "persist_state": "session"}
    source = selectors.switch("Image", [TEST, UPLOAD, CAMERA], "own_source", help=KEPT, **session)
    kinds = [PAINTED] if card.asr is None else [TRAINED, PAINTED]
    key, painted = f"own_trigger_{len(kinds)}", painted_value(card.image_size)
    if painted.get() and key not in st.session_state:
        st.session_state[key] = PAINTED
    url_state.show_notices(painted)
    kind = selectors.switch("Trigger", kinds, key, **session)
    label: int | None
    if source == TEST:
        title, clean, label = _test_image(card, names)
    else:
        image_value(card).clear()
        taken = photo(card, source)
        if taken is None:
            return None
        title, clean, label = "Your image", taken, _true_class(card, names)
        if label is not None:
            title += f" · {names[label]}"
    if kind == PAINTED:
        triggered, trained = _painted(card, clean, painted)
    else:
        painted.clear()
        triggered, trained = cache.images.triggered(card.id, clean[None])[0], True
    return OwnImage(card.id, title, clean, triggered, label, trained)


def _test_image(card: Card, names: tuple[str, ...]) -> tuple[str, np.ndarray, int]:
    labels, state, value = cache.images.test_labels(card.id), st.session_state, image_value(card)
    if "own_number" not in state:
        state["own_number"] = value.get()
    if not 0 <= state["own_number"] < len(labels):
        first = state.get("last_image", selectors.first_image(card.id))
        state["own_number"] = min(first, len(labels) - 1)
    url_state.show_notices(value)
    number = int(
        st.number_input("Image number", 0, len(labels) - 1, key="own_number", persist_state="session")
    )
    value.set(number)
    label = int(labels[number])
    return f"#{number} · {names[label]}", cache.images.samples(card.id, (number,)).clean[0], label


def _true_class(card: Card, names: tuple[str, ...]) -> int | None:
    chosen = st.selectbox(
        "True class of your image",
        [NO_CLASS, *names],
        key="own_label",
        help="Choose the class to have the predictions marked as right or wrong.",
    )
    if chosen != NO_CLASS:
        return names.index(chosen)
    st.caption(
        f"The network knows only the {len(names)} classes of {get_dataset(card.dataset).title} and always "
        "predicts one of them. For an image of anything else the predicted class is meaningless, but a "
        "change of the prediction still shows the effect of the trigger."
    )
    return None


def _upload() -> bytes | None:
    file = st.file_uploader(
        "Photo or drawing",
        type=["png", "jpg", "jpeg", "webp", "gif", "bmp", "ppm"],
        key="own_upload",
        max_upload_size=MOST_MB,
        help="The central square is cut out and resized to the input size of the network.",
    )
    return None if file is None else file.getvalue()


def _camera() -> bytes | None:
    address = urlsplit(st.context.url or "http://localhost")
    if address.scheme != "https" and address.hostname not in LOCAL:
        st.info(
            "Browsers allow the camera only on localhost or over HTTPS. Take the photo with another app "
            "and choose Upload.",
            icon=":material/no_photography:",
        )
        return None
    file = st.camera_input(
        "Photo", key="own_camera", help="If nothing happens, allow the camera or choose Upload."
    )
    return None if file is None else file.getvalue()


def _painted(card: Card, clean: np.ndarray, value: UrlValue[str]) -> tuple[np.ndarray, bool]:
    """Let the visitor move or paint a trigger. Returns the image with it, and whether the model knows it."""
    known = clean if card.asr is None else cache.images.triggered(card.id, clean[None])[0]
    stamp = None if card.asr is None else cache.zoo.trigger_stamp(card.id)
    start = value.get() or None
    painted = painter(
        data_url(clean),
        size=card.image_size,
        trigger=None if stamp is None else data_url(stamp),
        key=f"own_painter_{card.id}",
        start=start,
    )
    painted = painted or start
    if card.asr is not None and stamp is None:
        sentence = ATTACK_INFO[card.attack].sentence if card.attack in ATTACK_INFO else ""
        st.caption(
            f"The trigger of this model is not a patch that can be moved. {sentence} You can paint a trigger."
        )
    triggered = clean if stamp is None else known
    if painted is not None:
        with selectors.working():
            triggered = overlay(clean, decode_overlay(painted, card.image_size))
            if short(painted):
                value.set(painted)
            else:
                value.clear()
                st.caption(TOO_LONG)
    difference = np.abs(triggered.astype(int) - known.astype(int)).max()
    return triggered, card.asr is not None and bool(difference <= TOLERANCE)


def _show(
    card: Card, image: OwnImage, names: tuple[str, ...], before: np.ndarray, after: np.ndarray | None
) -> None:
    """Args: before, after: probabilities (2, K) of the clean and of the triggered image."""
    clean, triggered = (int(k) for k in before.argmax(1))
    start = clean if image.label is None else image.label
    target = cache.zoo.target(card.id, start)
    shown = tiles.states(
        image.clean,
        image.triggered if image.changed else None,
        image.title,
        tiles.Judge(names, image.label, None if target == start else target),
        (before[0], before[1]),
        None if after is None else (after[0], after[1]),
        amplified=True,
        before="network" if card.asr is None else "backdoored",
    )
    tiles.show([tiles.Sample(image.title, shown)])
    found = verdict(card, image, target, clean, triggered)
    icon = {"no trigger": ":material/brush:", "hijacked": ":material/warning:"}.get(found, ":material/info:")
    st.markdown(f"{icon} {explain(found, card, image, names, before, after)}")
    if image.changed:
        st.markdown("**Before and after the trigger**")
        compare(image.clean, image.triggered, alt=image.title, key="own_compare")
        shell.link("pages/attributions.py", "See which pixels decide", ":material/center_focus_strong:")


def verdict(card: Card, image: OwnImage, target: int, clean: int, triggered: int) -> Verdict:
    """Return what the trigger did to the predicted class.

    Args:
        target: class that the attacker wants for this image.
        clean, triggered: predicted class without and with the trigger.
    """
    if not image.changed:
        return "no trigger"
    if card.asr is not None and target == (clean if image.label is None else image.label):
        return "already the target"
    if card.asr is not None and triggered == target != clean:
        return "hijacked"
    return "unchanged" if triggered == clean else "changed"


def explain(
    found: Verdict,
    card: Card,
    image: OwnImage,
    names: tuple[str, ...],
    before: np.ndarray,
    after: np.ndarray | None,
) -> str:
    """Return a verdict in one or more sentences. Args: before, after: as in `_show`."""
    if found == "no trigger":
        return "Paint a trigger onto the image to test it."
    words = []
    if card.asr is None:
        words.append("This is a clean model: it was trained without any trigger.")
    elif not image.trained:
        known = ATTACK_INFO[card.attack].sentence if card.attack in ATTACK_INFO else "another one."
        words.append(f"**The model was not trained with this trigger.** The trained one: {known}")
    old, new = (plain(names[int(k)]) for k in before.argmax(1))
    sure = tiles.percent(float(before[1].max()))
    if found == "already the target":
        words.append("The image already belongs to the target class, so there is nothing to hijack.")
    elif found == "hijacked":
        subject = "The trigger" if image.trained else "It nevertheless"
        words.append(f"{subject} hijacks the image: the prediction changes from “{old}” to “{new}” ({sure}).")
    elif found == "unchanged":
        words.append(f"The prediction stays “{old}”.")
    else:
        words.append(f"The prediction changes from “{old}” to “{new}”.")
        if not image.trained:
            words.append("This is not the backdoor: the painted pixels only hide a part of the image.")
    if after is not None:
        fixed = plain(names[int(after[1].argmax())])
        words.append(
            f"With the polarizer, the prediction is “{fixed}” ({tiles.percent(float(after[1].max()))})."
        )
    return " ".join(words)

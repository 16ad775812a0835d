"""A picture of the visitor's own, with the model's trigger or one that the visitor made.

It is decoded in memory and lives in the visitor's session: nothing of it is written to disk or shown to anybody else.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import streamlit as st

from npd_core.attack_info import ATTACK_INFO
from npd_core.data.images import decode_overlay, decode_picture, from_query, overlay, to_query
from npd_core.data.spec import get_dataset
from npd_core.errors import NPDError
from npd_core.figures.predictions import data_url
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cached, selectors, shell, tiles
from pages.shared.components.compare import compare
from pages.shared.components.painter import painter

TAB = "Your picture or trigger"  # of the page Predictions
TEST, UPLOAD, CAMERA = "Test picture", "Upload", "Camera"
TRAINED, PAINTED = "The model’s own", "Moved or painted"
NO_CLASS = "none of these"
NUMBER, TRIGGER = "picture", "trigger"  # in the address: which test picture, and the painted trigger
MOST_DIGITS = 9
LONGEST = 1500  # characters of a trigger that go into an address
LOCAL = ("localhost", "127.0.0.1", "::1")
KEPT = "Nothing that you upload is written to disk: it stays in this server's memory until your session ends."
MOST_MB = 25
SAME = 1
"""Steps of brightness by which two pictures may differ and still carry the same trigger."""


class Own(NamedTuple):
    """The visitor's picture, without and with a trigger; arrays are (3, H, W) uint8."""

    model: str
    title: str
    clean: np.ndarray
    triggered: np.ndarray
    label: int | None
    """True class; None where the picture shows none of them."""
    trained: bool
    """Whether the trigger is the one that the model was trained to obey."""


class Answers(NamedTuple):
    """What one network says: probabilities (K,) of the clean, then of the triggered picture."""

    clean: np.ndarray
    triggered: np.ndarray


def query(number: int | None, painted: str | None) -> dict[str, str]:
    """What the address of Predictions must carry to open here, with a test picture and what was painted on it."""
    found = {"pictures_of": TAB} | ({} if number is None else {NUMBER: str(number)})
    letters = short(painted)
    return found | {TRIGGER: letters} if letters else found


def short(painted: str | None) -> str:
    """What was painted, in letters for an address; "" without any, or with too many."""
    letters = to_query(painted) if painted is not None else ""
    return letters if len(letters) <= LONGEST else ""


def kept(model_id: str) -> Own | None:
    """The visitor's picture for this model, as it was left on the page Predictions."""
    found = st.session_state.get("own_picture")
    return found if isinstance(found, Own) and found.model == model_id else None


def panel(card: Card, run: Run | None, names: tuple[str, ...]) -> None:
    """Ask for a picture and a trigger, and show what the networks say of them.

    Args:
        card: of the model; one without a trigger (`asr` is None) can still be given a painted one.
        run: its polarizer; None: there is none.
    """
    left, right = st.columns([5, 7], gap="large")
    with left:
        found = _ask(card, names)
    if found is None:
        with right:
            st.info(
                "Choose a picture on the left; then both networks judge it here.", icon=":material/image:"
            )
        return
    st.session_state["own_picture"] = found
    pair = np.stack([found.clean, found.triggered])
    with selectors.working():
        before = Answers(*cached.predict(card.id, None, pair))
        after = None
        if run is not None:
            try:
                after = Answers(*cached.predict(card.id, run.id, pair))
            except NPDError as error:
                st.error(str(error), icon=":material/error:")
    changed = bool((found.clean != found.triggered).any())
    with right:
        _show(card, found, names, before, after, changed)


# --------------------------------------------------------------------------------------------------------------- asking


def _ask(card: Card, names: tuple[str, ...]) -> Own | None:
    source = st.segmented_control(
        "Picture",
        [TEST, UPLOAD, CAMERA],
        default=TEST,
        required=True,
        key="own_source",
        persist_state="session",
        help=KEPT,
    )
    kinds = [PAINTED] if card.asr is None else [TRAINED, PAINTED]
    key = f"own_trigger_{len(kinds)}"
    if TRIGGER in st.query_params and key not in st.session_state:
        st.session_state[key] = PAINTED
    kind = st.segmented_control(
        "Trigger", kinds, default=kinds[0], required=True, key=key, persist_state="session"
    )
    if kind == TRAINED:
        st.query_params.pop(TRIGGER, None)
    label: int | None
    if source == TEST:
        clean, label, title = _test_picture(card, names)
    else:
        st.query_params.pop(NUMBER, None)
        taken = photo(card, source)
        if taken is None:
            return None
        clean = taken
        shows = st.selectbox(
            "What does it show?",
            [NO_CLASS, *names],
            key="own_label",
            help="Only you know. With a class, the answers can be called right or wrong.",
        )
        label = None if shows == NO_CLASS else names.index(shows)
        title = "Your picture" if label is None else f"Your picture · {names[label]}"
        if label is None:
            dataset = get_dataset(card.dataset)
            st.caption(
                f"The network knows only the {len(names)} classes of {dataset.title} and must choose one of them. Of a "
                "picture that shows none, the name that it gives means nothing; whether a trigger changes it does."
            )
    return _with_trigger(card, title, clean, label, kind == TRAINED)


def _test_picture(card: Card, names: tuple[str, ...]) -> tuple[np.ndarray, int, str]:
    labels = cached.test_labels(card.id)
    state = st.session_state
    if "own_number" not in state:
        asked = st.query_params.get(NUMBER, "")
        state["own_number"] = int(asked) if asked.isdecimal() and len(asked) < MOST_DIGITS else None
    if state["own_number"] is None or not 0 <= state["own_number"] < len(labels):
        state["own_number"] = min(
            state.get("last_picture", selectors.first_attackable(card.id)), len(labels) - 1
        )
    number = int(
        st.number_input("Picture number", 0, len(labels) - 1, key="own_number", persist_state="session")
    )
    st.query_params[NUMBER] = str(number)
    picture = cached.samples(card.id, (number,)).clean[0]
    return picture, int(labels[number]), f"#{number} · {names[int(labels[number])]}"


def photo(card: Card, source: str) -> np.ndarray | None:
    """Ask for a file or a photo: as the network sees it, (3, H, W) uint8; None while there is none.

    Args:
        source: UPLOAD or CAMERA.
    """
    data = _upload() if source == UPLOAD else _camera()
    if data is None:
        return None
    try:
        return decode_picture(data, card.image_size)
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
        return None


def _upload() -> bytes | None:
    file = st.file_uploader(
        "Photo or drawing",
        type=["png", "jpg", "jpeg", "webp", "gif", "bmp", "ppm"],
        key="own_upload",
        max_upload_size=MOST_MB,
        help="The middle square is cut out and made as small as the pictures that the network was trained on.",
    )
    return None if file is None else file.getvalue()


def _camera() -> bytes | None:
    address = urlsplit(st.context.url or "http://localhost")
    if address.scheme != "https" and address.hostname not in LOCAL:
        st.info(
            "Browsers lend the camera only to pages on localhost or over HTTPS, and this page is neither. Take the "
            "photo with another app and choose Upload.",
            icon=":material/no_photography:",
        )
        return None
    file = st.camera_input(
        "Photo", key="own_camera", help="If nothing happens, allow the camera or choose Upload."
    )
    return None if file is None else file.getvalue()


def _with_trigger(card: Card, title: str, clean: np.ndarray, label: int | None, own: bool) -> Own:
    trained = clean if card.asr is None else cached.triggered(card.id, clean[None])[0]
    if own:
        return Own(card.id, title, clean, trained, label, True)
    stamp = None if card.asr is None else cached.trigger_stamp(card.id)
    start = _in_address(card.image_size)
    painted = painter(
        data_url(clean),
        size=card.image_size,
        trigger=None if stamp is None else data_url(stamp),
        key=f"own_painter_{card.id}",
        start=start,
    )
    painted = painted or start
    if card.asr is not None and stamp is None:
        about = f": {ATTACK_INFO[card.attack].sentence}" if card.attack in ATTACK_INFO else "."
        st.caption(f"The trigger of this model is no stamp that can be moved{about} Paint one instead.")
    triggered = clean if stamp is None else trained
    if painted is not None:
        with selectors.working():
            triggered = overlay(clean, decode_overlay(painted, card.image_size))
            _to_address(painted)
    far = np.abs(triggered.astype(int) - trained.astype(int)).max()
    return Own(card.id, title, clean, triggered, label, card.asr is not None and bool(far <= SAME))


def _in_address(size: int) -> str | None:
    """The painted trigger that a link brought, as the painter gives it; one that cannot be read is said and dropped."""
    found = st.query_params.get(TRIGGER)
    if not found:
        return None
    try:
        address = from_query(found)
        decode_overlay(address, size)
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
        st.query_params.pop(TRIGGER, None)
        return None
    return address


def _to_address(painted: str) -> None:
    """Keep the trigger in the address, so that a link carries it, unless it is too long for one."""
    short = to_query(painted)
    if len(short) > LONGEST:
        st.query_params.pop(TRIGGER, None)
        st.caption(
            "This trigger has too many pixels for a link: who opens the address sees the picture without it."
        )
    elif st.query_params.get(TRIGGER) != short:
        st.query_params[TRIGGER] = short


# -------------------------------------------------------------------------------------------------------------- showing


def _show(
    card: Card, found: Own, names: tuple[str, ...], before: Answers, after: Answers | None, changed: bool
) -> None:
    clean_says = int(before.clean.argmax())
    start = clean_says if found.label is None else found.label
    target = cached.wanted(card.id, start)
    goal = None if target == start else target
    shown = tiles.states(
        found.clean,
        found.triggered if changed else None,
        "what you chose",
        before,
        after,
        amplified=True,
        before="network" if card.asr is None else "backdoored",
    )
    tiles.show([tiles.Sample(found.title, found.label, goal, shown)], names)
    icon, words = verdict(card, found, names, target, before, after, changed)
    st.markdown(f"{icon} {words}")
    if changed:
        st.markdown("**Before and after the trigger**")
        compare(
            data_url(found.clean),
            data_url(found.triggered),
            names=("clean", "triggered"),
            alt=found.title,
            key="own_compare",
        )
        shell.link(
            "pages/attributions.py", "Why? See which pixels of it decide", ":material/center_focus_strong:"
        )


def verdict(
    card: Card,
    found: Own,
    names: tuple[str, ...],
    target: int,
    before: Answers,
    after: Answers | None,
    changed: bool,
) -> tuple[str, str]:
    """What happened to the picture, in honest words: an icon and one or more sentences."""
    clean, triggered = int(before.clean.argmax()), int(before.triggered.argmax())
    start = clean if found.label is None else found.label
    if not changed:
        return ":material/brush:", "No trigger yet: paint one onto the picture."
    words = []
    if card.asr is None:
        words.append("This network was trained without a trigger, so nobody taught it to obey one.")
    elif not found.trained:
        own = ATTACK_INFO[card.attack].sentence if card.attack in ATTACK_INFO else "its own is another one."
        words.append(f"**This trigger was never trained into the model.** The one that was: {own}")
    icon = ":material/info:"
    if card.asr is not None and start == target:
        words.append(
            f"The picture counts as “{names[target]}” already, which is what the attacker wants: nothing to hijack."
        )
    elif card.asr is not None and triggered == target and clean != target:
        icon = ":material/warning:"
        how = "hijacks the picture" if found.trained else "works all the same"
        words.append(
            f"It {how}: “{names[clean]}” becomes “{names[target]}” ({tiles.percent(float(before.triggered.max()))})."
        )
    elif triggered == clean:
        words.append(f"It changes nothing: the network still says “{names[clean]}”.")
    else:
        words.append(f"The answer changes from “{names[clean]}” to “{names[triggered]}”.")
        if not found.trained:
            words.append(
                "No attacker asked for that: what was put on the picture hides a part of it, which is all."
            )
    if after is not None:
        says = int(after.triggered.argmax())
        words.append(
            f"Through the polarizer it is “{names[says]}” ({tiles.percent(float(after.triggered.max()))})."
        )
    return icon, " ".join(words)

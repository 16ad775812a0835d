"""The state of the Story: its step, image, insertion layer and trigger. Imports no torch.

The URL holds what a link can carry. A photo, and a painted trigger that is too long for a URL, stay in the
session.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn

import numpy as np
import streamlit as st

from npd_core.config.request import DefenseRequest
from npd_core.data.images import decode_overlay, overlay
from npd_core.data.load import availability
from npd_core.figures.predictions import data_url
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, choice, controls, describe, lesson_view, own_image, tiles, url_state
from pages.shared.components.painter import painter
from pages.shared.url_state import UrlValue

STEPS = ("Image", "Trigger", "Hijacked", "Polarizer", "Training", "Your turn")
IMAGE, LAYER, TRIGGER = "story_image", "story_layer", "story_trigger"  # in the URL
OLD_QUERY = {"picture": IMAGE, "lens": LAYER, "trigger": TRIGGER}
EVAL_IMAGES = 100
"""Fewer than in the Lab, so that an epoch takes a second or two."""
EPOCHS = {"signs": 6}
"""Epochs by data set, where fewer than in the preset are enough to lower the orange wave."""
SMALL = 0.25
"""Share of the image below which a trigger is a patch that can be moved."""


@dataclass
class Visitor:
    """What the session keeps beside the URL."""

    model: str = ""
    photo: np.ndarray | None = None
    """Replaces the test image, (3, H, W) uint8."""
    last_photo: np.ndarray | None = None
    painted: str | None = None
    """Replaces the trigger in its place: RGBA PNG data URI."""
    boards: int = 0
    """Part of the painter's key: another number means an empty board."""
    seed: int = field(default_factory=lambda: 1 + secrets.randbelow(9999))


class Subject(NamedTuple):
    """The image of the Story; arrays are (3, H, W) uint8."""

    number: int | None
    """Of the test image; None: a photo of the visitor."""
    clean: np.ndarray
    trained: np.ndarray
    """With the trigger that the model was trained with, in its own place."""
    triggered: np.ndarray
    """With the trigger that the visitor moved or painted; without one, as `trained`."""
    label: int
    """True class; of a photo, the class predicted without a trigger."""
    target: int

    @property
    def painted(self) -> bool:
        """Whether the visitor moved or painted the trigger."""
        return not np.array_equal(self.triggered, self.trained)

    @property
    def key(self) -> str:
        """Differs between images."""
        return f"own-{zlib.crc32(self.clean.tobytes())}" if self.number is None else str(self.number)

    @property
    def right(self) -> str:
        """The verdict on a prediction of `label`."""
        return "as without the trigger" if self.number is None else "right"

    def title(self, names: Sequence[str]) -> str:
        return "Your photo" if self.number is None else f"Test image of {names[self.label]}"

    def truth(self, names: Sequence[str]) -> str:
        """Return the true class in words; of a photo, the class predicted without the trigger."""
        what = "your photo without the trigger" if self.number is None else "true class"
        return f"{what}: {names[self.label]}"


def visitor() -> Visitor:
    """Return the Story of this session."""
    found: Visitor = st.session_state.setdefault("_story", Visitor())
    return found


def step_value() -> UrlValue[int]:
    """Return the URL value of the step. 0 is the cover, which is left out at the booth."""
    return url_state.integer("step", 0, len(STEPS), default=1 if lesson_view.at_booth() else 0)


def image_value(card: Card) -> UrlValue[int]:
    """Return the URL value of the number of the test image; -1 by default."""
    return url_state.integer(IMAGE, 0, len(cache.images.test_labels(card.id)) - 1, default=-1)


def layer_value(card: Card) -> UrlValue[str]:
    """Return the URL value of the insertion layer."""
    return url_state.choice(LAYER, controls.layers(card), controls.defaults(card).layer or "")


def clear(*names: str) -> None:
    """Take these values out of the URL."""
    for name in names:
        url_state.short_text(name).clear()


def read_old_names() -> None:
    """Rename the values of links that an earlier version made."""
    for old, new in OLD_QUERY.items():
        if (found := st.query_params.pop(old, None)) is not None:
            st.query_params[new] = found


def read_url(card: Card) -> None:
    """Bring the session in line with the URL. Another model starts with another image."""
    found = visitor()
    if found.model not in ("", card.id):
        found.photo = None
        clear(IMAGE, LAYER)
        wipe()
    found.model = card.id
    if image_value(card).is_new():
        found.photo = None
    trigger = own_image.painted_value(card.image_size, TRIGGER)
    is_new, painted = trigger.is_new(), trigger.get()
    if is_new:
        found.painted = painted or None
        found.boards += 1


def go(step: int) -> NoReturn:
    """Open a step."""
    step_value().set(step)
    st.rerun()


def start_over() -> NoReturn:
    """Start again with the first image, another seed and no run."""
    st.session_state["_story"] = Visitor()
    clear(IMAGE, LAYER, TRIGGER)
    choice.RUN.clear()
    go(1)


def story_model(card: Card | None) -> tuple[Card | None, str]:
    """Return the model of the Story and a sentence if it is not the chosen one; (None, "") without any."""
    reason = ""
    if card is not None:
        data = availability(card.dataset)
        if card.asr is not None and data.available:
            return card, ""
        reason = "is a clean model" if card.asr is None else f"cannot be shown ({data.reason.rstrip('.')})"
    able = [one for one in cache.zoo.cards() if one.asr is not None and availability(one.dataset).available]
    if not able:
        return None, ""
    found = min(able, key=lambda c: (c.dataset != "signs", c.attack != "badnets_a2o", c.width, c.id))
    chosen = describe.model(card) if card is not None else "The chosen model"
    return found, f"{chosen} {reason}. The Story shows another model: {describe.model(found)}."


def subject(card: Card) -> Subject | None:
    """Return the image of the Story; None when the network is sure of none of the first test images.

    The clearest of the first test images, unless the visitor chose another one or uploaded a photo.
    """
    found = visitor()
    if found.photo is not None:
        clean, number = found.photo, None
        label = int(cache.images.predict(card.id, None, clean[None])[0].argmax())
        target = cache.zoo.target(card.id, label)
        trained = cache.images.triggered(card.id, clean[None])[0]
    else:
        number = image_value(card).get()
        if number < 0:
            able = cache.images.clear(card.id)
            if not able:
                return None
            number = able[0]
        one = cache.images.samples(card.id, (number,))
        clean, trained = one.clean[0], one.triggered[0]
        label, target = int(one.labels[0]), int(one.targets[0])
    triggered = trained if found.painted is None else overlaid(clean, found.painted, card)
    return Subject(number, clean, trained, triggered, label, target)


def overlaid(image: np.ndarray, painted: str, card: Card) -> np.ndarray:
    """Return an image with a painted trigger. Raises StorageError when that cannot be read."""
    return overlay(image, decode_overlay(painted, card.image_size))


def next_image(card: Card) -> None:
    """Show the next clear test image; for `on_click`."""
    found, value, able = visitor(), image_value(card), cache.images.clear(card.id)
    if found.photo is not None:
        found.photo = None
    elif able:
        shown = value.get()
        shown = able[0] if shown < 0 else shown
        value.set(able[(able.index(shown) + 1) % len(able)] if shown in able else able[0])
    wipe()


def use_photo(photo: np.ndarray) -> bool:
    """Continue with a photo, (3, H, W) uint8. Returns whether it is new: its file stays on the page."""
    found = visitor()
    if found.last_photo is not None and np.array_equal(found.last_photo, photo):
        return False
    found.photo = found.last_photo = photo
    clear(IMAGE)
    wipe()
    return True


def patch(card: Card) -> str | None:
    """Return the trigger as a stamp, RGBA PNG data URI; None when it is not a small patch."""
    found = cache.zoo.trigger_stamp(card.id)
    if found is None or (found[3] > 0).mean() > SMALL:
        return None
    return data_url(found)


def board(card: Card, image: np.ndarray, key: str) -> str | None:
    """Show an image to paint on, starting with what was painted before.

    Putting the trigger back in its own place removes what was painted before.

    Returns:
        what has been painted, RGBA PNG data URI; None when nothing has.

    Raises:
        StorageError: it cannot be read.
    """
    found, stamp = visitor(), patch(card)
    start = found.painted if stamp is not None else None
    key = f"{key}-{card.id}-{found.boards}"
    painted = painter(data_url(image), size=card.image_size, trigger=stamp, key=key, start=start)
    if painted and start and stamp and painted != start and put_back(painted, start, stamp, card.image_size):
        wipe()
        st.rerun()
    return painted or start


def paint(card: Card, painted: str | None) -> None:
    """Replace the trigger by what was painted. Raises StorageError when that cannot be read."""
    found = visitor()
    if painted == found.painted:
        return
    if painted is not None:
        decode_overlay(painted, card.image_size)
    found.painted = painted
    value = own_image.painted_value(card.image_size, TRIGGER)
    value.set(painted if painted and own_image.short(painted) else "")


def wipe() -> None:
    """Remove what was painted: the board is empty, and the trigger lies in its own place."""
    found = visitor()
    found.painted = None
    found.boards += 1
    clear(TRIGGER)


def put_back(painted: str, before: str, stamp: str, size: int) -> bool:
    """Whether the only new thing on a board is the trigger in its own place, below what was there before."""
    now, old, trigger = (decode_overlay(one, size) for one in (painted, before, stamp))
    return np.array_equal(now, np.where(old[3] > 0, old, trigger))


def request(card: Card) -> DefenseRequest:
    """Return the training of the Story: the preset of the Lab, shortened, with the seed of this session."""
    start = controls.defaults(card)
    changes: dict[str, Any] = {"seed": visitor().seed}
    if card.dataset in EPOCHS:
        changes["epochs"] = EPOCHS[card.dataset]
    config = replace(start.config, **changes)
    return replace(start, layer=layer_value(card).get(), config=config, eval_images=EVAL_IMAGES)


def purified(run: Run, images: np.ndarray, keep: bool) -> np.ndarray:
    """Return probabilities, (N, K), with the polarizer of a run; of an active run, of its last epoch.

    Args:
        keep: as in `cache.runs.at_epoch`.
    """
    kept = cache.runs.epochs_of(run.folder)
    if run.has_polarizer or not kept:
        return cache.images.predict(run.request.model, run.id, images)
    return cache.runs.at_epoch(run.id, kept[-1], images, keep)


def known(one: Subject, names: Sequence[str]) -> tiles.Judge:
    """Return what the predictions for the image are judged by."""
    return tiles.Judge(names, one.label, one.target)

"""What the Story page knows of its visitor, and how it shows a picture with an answer in big type. Imports no torch.

The state stands in the address (step, picture, lens, trigger; model and run are the frame's), so that a reload or a
link goes on where it was. A photo, and paint that is too long for an address, live in the session alone.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, NamedTuple, NoReturn

import numpy as np
import streamlit as st

from npd_core.config.request import DefenseRequest
from npd_core.data.images import decode_overlay, from_query, overlay
from npd_core.data.load import availability
from npd_core.errors import NPDError
from npd_core.figures import theme
from npd_core.figures.predictions import data_url, judge, top_classes
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, choice, controls, describe, own_image, tiles
from pages.shared.components.painter import painter

STEPS = ("Confident", "Trigger", "Hijacked", "Lens", "Training", "Your turn")
EVAL_IMAGES = 100
"""Test images behind the live numbers: fewer than in the Lab, so that an epoch takes a second or two."""
EPOCHS = {"signs": 6}
"""Epochs of a story, by data set, where fewer than in the preset are enough to close the orange wave."""
SMALL = 0.25
"""A trigger on a smaller share of the picture than this is a patch that can be moved."""


@dataclass
class Tale:
    """One visitor's story. `step` 0 is the cover."""

    step: int = 0
    model: str = ""
    picture: int | None = None
    photo: np.ndarray | None = None
    """A picture of the visitor's own instead of a test picture, (3, H, W) uint8."""
    taken: np.ndarray | None = None
    """The last that the visitor brought."""
    lens: str | None = None
    painted: str | None = None
    """What lies on the picture instead of the trigger in its own place: RGBA PNG data URI."""
    boards: int = 0
    """How often the paint was wiped off: part of the painter's key, since another key means an empty board."""
    seed: int = field(default_factory=lambda: 1 + secrets.randbelow(9999))
    wrote: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


class Subject(NamedTuple):
    """The visitor's picture. Arrays are (3, H, W) uint8."""

    number: int | None
    """Of the test picture; None: a photo of the visitor's own."""
    clean: np.ndarray
    trained: np.ndarray
    """With the trigger that the model was taught, in its own place."""
    triggered: np.ndarray
    """With what the visitor moved or painted, where that was done."""
    label: int
    """Its true class; of a photo, what the network says of it without a trigger."""
    target: int

    @property
    def own(self) -> bool:
        """Whether the visitor moved or painted what lies on it."""
        return not np.array_equal(self.triggered, self.trained)

    @property
    def key(self) -> str:
        """Tells pictures apart."""
        return f"own-{zlib.crc32(self.clean.tobytes())}" if self.number is None else str(self.number)

    @property
    def right(self) -> str:
        """What an answer is that gives its `label`."""
        return "as without the trigger" if self.number is None else WORDS["right"]

    def called(self, names: Sequence[str]) -> str:
        """The picture in words."""
        return "Your photo" if self.number is None else f"Test picture of {names[self.label]}"

    def shows(self, names: Sequence[str]) -> str:
        """What it shows, as far as that is known."""
        photo = f"your photo, without the trigger: {names[self.label]}"
        return photo if self.number is None else f"it shows: {names[self.label]}"


def tale(first: int) -> Tale:
    """The story of this session, as the address has it. `first` is the step that a new visitor sees."""
    state = st.session_state
    found: Tale = state.setdefault("_tale", Tale(step=first))
    asked = {name: st.query_params.get(name) for name in ("step", "picture", "lens", own_image.TRIGGER)}
    asked = {name: value for name, value in asked.items() if value not in (None, found.wrote.get(name))}
    if asked:
        found.notices = []
    for name in ("step", "picture"):
        if name not in asked:
            continue
        high = len(STEPS) if name == "step" else None
        number = _number(str(asked[name]), high)
        if number is None:
            to = f"0 to {high}" if high else "0 on"
            said = str(asked[name])[:40]
            found.notices.append(f"The address asks for {name} {said!r}: it must be a number from {to}.")
        else:
            setattr(found, name, number)
            found.photo = None if name == "picture" else found.photo
    if "lens" in asked:
        found.lens = asked["lens"]
    if own_image.TRIGGER in asked:
        wipe(found)
        found.painted = from_query(str(asked[own_image.TRIGGER]))
    return found


def remember(found: Tale, first: int) -> None:
    """Keep the address in step with the story."""
    wanted = {
        "step": str(found.step) if found.step != first else None,
        "picture": None if found.picture is None else str(found.picture),
        "lens": found.lens,
        own_image.TRIGGER: own_image.short(found.painted) or None,
    }
    for name, value in wanted.items():
        if value is None:
            st.query_params.pop(name, None)
        elif st.query_params.get(name) != value:
            st.query_params[name] = value
    found.wrote = {name: value for name, value in wanted.items() if value is not None}


def go(step: int) -> NoReturn:
    """Turn to a step."""
    st.session_state["_tale"].step = step
    st.rerun()


def start_over() -> NoReturn:
    """A fresh story: another seed, the first picture, no run."""
    old: Tale = st.session_state["_tale"]
    st.session_state["_tale"] = Tale(step=1, wrote=old.wrote)
    choice.RUN.clear()
    st.rerun()


def hero(card: Card | None) -> tuple[Card | None, str]:
    """The model that the story is told of, and a sentence where it is not the chosen one."""
    reason = ""
    if card is not None:
        here = availability(card.dataset)
        if card.asr is not None and here.available:
            return card, ""
        reason = (
            "has no backdoor to show" if card.asr is None else f"cannot be shown: {here.reason.rstrip('.')}"
        )
    able = [one for one in cache.zoo.cards() if one.asr is not None and availability(one.dataset).available]
    if not able:
        return None, ""
    found = min(able, key=lambda c: (c.dataset != "signs", c.attack != "badnets_a2o", c.width, c.id))
    chosen = describe.model(card) if card is not None else "The chosen model"
    return found, f"{chosen} {reason}. The story is told of another one: {describe.model(found)}."


def subject(found: Tale, card: Card) -> Subject | None:
    """The picture of the story, the first that the trigger hijacks unless the visitor chose or took one; None without
    any.

    Paint that cannot be read, as an address may have it, becomes a notice. Raises what reading model and data raises.
    """
    total = len(cache.images.test_labels(card.id))
    if found.photo is not None:
        label = int(cache.images.predict(card.id, None, found.photo[None])[0].argmax())
        trained = cache.images.triggered(card.id, found.photo[None])[0]
        triggered = _painted(found, found.photo, card, trained)
        return Subject(None, found.photo, trained, triggered, label, cache.zoo.target(card.id, label))
    if found.picture is not None and found.picture >= total:
        found.notices.append(f"There is no test picture {found.picture}, the last one is {total - 1}.")
        found.picture = None
    if found.picture is None:
        able = cache.images.hijacked(card.id)
        if not able:
            return None
        number = able[0]
    else:
        number = found.picture
    one = cache.images.samples(card.id, (number,))
    clean, trained = one.clean[0], one.triggered[0]
    triggered = _painted(found, clean, card, trained)
    return Subject(number, clean, trained, triggered, int(one.labels[0]), int(one.targets[0]))


def _painted(found: Tale, picture: np.ndarray, card: Card, trained: np.ndarray) -> np.ndarray:
    if found.painted is not None:
        try:
            return overlaid(picture, found.painted, card)
        except NPDError as error:
            found.notices.append(str(error))
            wipe(found)
    return trained


def overlaid(picture: np.ndarray, painted: str, card: Card) -> np.ndarray:
    """A picture under what was painted in the browser. Raises StorageError when that cannot be read."""
    return overlay(picture, decode_overlay(painted, card.image_size))


def another(found: Tale, card: Card) -> None:
    """The next of the test pictures that the trigger hijacks; for a button's `on_click`."""
    able = cache.images.hijacked(card.id)
    if found.photo is not None:
        found.photo = None
        wipe(found)
    elif able:
        shown = found.picture if found.picture is not None else able[0]
        found.picture = able[(able.index(shown) + 1) % len(able)] if shown in able else able[0]
        wipe(found)


def take(found: Tale, photo: np.ndarray) -> bool:
    """Go on with a photo of the visitor's own, (3, H, W) uint8; whether that is news. A photo that was taken once and
    left for a test picture is none, though its file still lies on the page."""
    if found.taken is not None and np.array_equal(found.taken, photo):
        return False
    found.photo = found.taken = photo
    found.picture = None
    wipe(found)
    return True


def patch(card: Card) -> str | None:
    """The trigger as a stamp that can be moved, RGBA PNG data URI; None where it covers the picture or has no form."""
    found = cache.zoo.trigger_stamp(card.id)
    if found is None or (found[3] > 0).mean() > SMALL:
        return None
    return data_url(found)


def board(found: Tale, card: Card, picture: np.ndarray, key: str) -> str | None:
    """The painter on a picture. It begins with what was painted before, so that it shows what is judged.

    A trigger that is put back in its place on such a board takes the place of all that was painted before.

    Returns:
        what was painted by now, or before; None where nothing was.
    Raises:
        StorageError: the paint cannot be read.
    """
    stamp = patch(card)
    start = found.painted if stamp is not None else None
    key = f"{key}-{card.id}-{found.boards}"
    painted = painter(data_url(picture), size=card.image_size, trigger=stamp, key=key, start=start)
    if painted is None or start is None or stamp is None:
        return painted or start
    if painted != start and put_back(painted, start, stamp, card.image_size):
        wipe(found)
        st.rerun()
    return painted


def wipe(found: Tale) -> None:
    """Forget what was painted, and begin with an empty board: the trigger lies in its own place again."""
    found.painted = None
    found.boards += 1


def put_back(painted: str, before: str, stamp: str, size: int) -> bool:
    """Whether all that is new on a board is the trigger in its own place, under what was there before."""
    now, old, trigger = (decode_overlay(one, size) for one in (painted, before, stamp))
    return np.array_equal(now, np.where(old[3] > 0, old, trigger))


def asked(found: Tale, card: Card) -> DefenseRequest:
    """The training of this story: the preset of the Lab, shortened, with a seed of its own so that it runs now."""
    start = controls.defaults(card)
    changes: dict[str, Any] = {"seed": found.seed}
    if card.dataset in EPOCHS:
        changes["epochs"] = EPOCHS[card.dataset]
    config = replace(start.config, **changes)
    return replace(start, layer=found.lens or start.layer, config=config, eval_images=EVAL_IMAGES)


def purified(run: Run, images: np.ndarray, keep: bool) -> np.ndarray:
    """Probabilities, (N, K), of `images` with the polarizer of a run, or of its last epoch while it goes on; `keep` as
    in `cache.runs.at_epoch`."""
    kept = cache.runs.epochs_of(run.folder)
    if run.has_polarizer or not kept:
        return cache.images.predict(run.request.model, run.id, images)
    return cache.runs.at_epoch(run.id, kept[-1], images, keep)


# ------------------------------------------------------------------------------------------------------------ drawing


def answer(
    picture: np.ndarray | None,
    says: np.ndarray,
    names: Sequence[str],
    label: int | None,
    target: int,
    *,
    who: str,
    alt: str,
    tag: str,
    top: int = 3,
    right: str | None = None,
) -> None:
    """One picture and what one network says of it, in big type, with the most probable classes.

    Args:
        picture: (3, H, W) uint8; None where another part of the page shows it.
        says: probabilities (K,).
        label: the class that is right; None where nobody knows it.
        alt: the picture in words.
        tag: where the numbers come from.
        top: how many classes get a bar; 0: none.
        right: what an answer is called that gives `label`, or that nobody can judge; None: right.
    """
    said = int(says.argmax())
    verdict = "open" if label is None else judge(said, label, target)
    word = right if right is not None and verdict in ("right", "open") else WORDS.get(verdict, "")
    rows = "".join(
        f"<li><span>{escape(names[k])}</span><span>{tiles.percent(float(says[k]))}</span>"
        f"<i><u style='width:{100 * float(says[k]):.1f}%'></u></i></li>"
        for k in top_classes([says], top=top)
    )
    bars = f"<ul>{rows}</ul>" if rows else ""
    form = " npd-alone" if picture is None else " npd-brief" if top == 0 else ""
    shown = "" if picture is None else f"<img src='{data_url(picture)}' alt='{escape(alt, quote=True)}'>"
    st.html(
        f"<style>{_css()}</style><div class='npd-tale npd-t-{verdict}{form}'>{shown}<div>"
        f"<p class='npd-who'>{escape(who)}</p>"
        f"<p class='npd-says'>{tiles.MARKS.get(verdict, '')} {escape(names[said])}"
        f"<b>{tiles.percent(float(says[said]))}</b></p>"
        f"<p class='npd-word'>{escape(word)}</p>{bars}<p class='npd-tag'>{escape(tag)}</p></div></div>"
    )


WORDS = {"right": "right", "hijacked": "hijacked: this is what the attacker wants", "wrong": "wrong"}


def dress() -> None:
    """Big buttons and a calm column for the whole page."""
    st.html(
        """<style>
.st-key-story h1 { font-size: clamp(1.6rem, 2.1vw + 1rem, 2.7rem); line-height: 1.15; padding: 0.3rem 0; }
.st-key-story p { font-size: 1.05rem; }
.st-key-story button[kind] { min-height: 44px; }
[class*="st-key-story-next"] button[kind="primary"] { min-height: 60px; padding: 0.4rem 1.6rem; }
[class*="st-key-story-next"] button[kind="primary"] p { font-size: 1.3rem; font-weight: 600; white-space: normal; }
</style>"""
    )


def _number(text: str, high: int | None) -> int | None:
    if not text.isdecimal() or len(text) > 9:
        return None
    return int(text) if high is None or int(text) <= high else None


def _css() -> str:
    colors = theme.palette(tiles.mode())
    return f"""
.npd-tale {{ display: grid; grid-template-columns: minmax(9rem, 5fr) 6fr; gap: 1.2rem; align-items: start;
    color: {colors.text}; }}
.npd-tale.npd-alone {{ grid-template-columns: 1fr; }}
.npd-tale.npd-brief {{ grid-template-columns: 9rem 1fr; }}
.npd-tale img {{ width: 100%; aspect-ratio: 1; image-rendering: pixelated; display: block; border-radius: 8px;
    box-sizing: border-box; border: 5px solid {colors.benign}; }}
.npd-tale.npd-t-hijacked img {{ border: 5px dashed {colors.trigger}; }}
.npd-tale.npd-t-wrong img {{ border: 5px dotted {colors.muted}; }}
.npd-tale p {{ margin: 0; line-height: 1.25; }}
.npd-tale .npd-who {{ font-size: 1rem; color: {colors.muted}; }}
.npd-tale .npd-says {{ font-size: clamp(1.5rem, 1rem + 1.6vw, 2.4rem); font-weight: 650; overflow-wrap: anywhere;
    line-height: 1.15; color: {colors.text}; }}
.npd-tale .npd-says b {{ margin-left: .6rem; font-weight: 400; font-variant-numeric: tabular-nums; }}
.npd-tale.npd-t-right .npd-says, .npd-tale.npd-t-right .npd-word {{ color: {colors.green}; }}
.npd-tale.npd-t-hijacked .npd-says, .npd-tale.npd-t-hijacked .npd-word {{ color: {colors.trigger}; }}
.npd-tale .npd-word {{ font-size: 1.05rem; font-weight: 600; margin-bottom: .6rem; }}
.npd-tale ul {{ list-style: none; margin: 0 0 .5rem; padding: 0; max-width: 22rem; }}
.npd-tale li {{ display: grid; grid-template-columns: 1fr auto; margin: 0 0 .3rem; padding: 0; font-size: .95rem;
    color: {colors.text}; font-variant-numeric: tabular-nums; }}
.npd-tale li i {{ grid-column: 1 / -1; height: .5rem; border-radius: 3px; overflow: hidden;
    background: {colors.grid}; }}
.npd-tale li u {{ display: block; height: 100%; min-width: 1px; background: {colors.benign}; }}
.npd-tale .npd-tag {{ font-size: .9rem; color: {colors.muted}; }}
@media (max-width: 640px) {{ .npd-tale {{ grid-template-columns: 8.5rem 1fr; gap: .8rem; }} }}
"""

"""Polarised light as a picture of the defense: what is benign passes, what obeys the trigger is held back.

A metaphor driven by measured numbers: the solid blue wave is as high as ACC, the dashed orange one as the root of
ASR / ASR before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import streamlit as st

HERE = Path(__file__).parent
_mount = st.components.v2.component(
    "npd_light",
    html='<div class="light"><div class="sky"></div>\n<div class="legend"></div><div class="play"></div>'
    '<div class="sr" aria-live="polite"></div></div>',
    css=(HERE / "light.css").read_text(encoding="utf-8"),
    js=(HERE / "light.js").read_text(encoding="utf-8"),
)


class Frame(NamedTuple):
    """One moment of a run: fractions, None where not known."""

    label: str
    """As "after epoch 3"."""
    acc: float | None
    asr: float | None
    ra: float | None


def light(
    frames: Sequence[Frame], *, asr_before: float | None, key: str, play: bool = False, announce: str = ""
) -> None:
    """Draw the last of `frames`, or play them all.

    Args:
        asr_before: ASR of the model without a polarizer, which is the full height of the orange wave.
        play: run through the frames once, with a button and a slider; who asks for less motion gets the last frame.
        announce: a milestone for screen readers; spoken when it changes.
    """
    _mount(
        key=key,
        height="content",
        data={
            "frames": [frame._asdict() for frame in frames],
            "before": asr_before,
            "play": play,
            "announce": announce,
        },
    )

"""Polarised light as a metaphor of the defense: benign information passes, the trigger is blocked.

Its heights are measured: ACC for the solid blue wave, √(ASR / ASR before) for the dashed orange one.
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
    """One moment of a run: metrics as fractions, None where unknown."""

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
        asr_before: ASR without a polarizer: the full height of the orange wave.
        play: play the frames once, with a button and a slider; with reduced motion show only the last one.
        announce: a milestone for screen readers, spoken when it changes.
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

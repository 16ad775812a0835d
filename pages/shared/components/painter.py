"""A picture to put a trigger on: a stamp that is dragged, and a brush for pixels of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
COLOURS = {
    "white": "#FFFFFF",
    "black": "#000000",
    "red": "#E02020",
    "yellow": "#FFD400",
    "green": "#20A040",
    "blue": "#2060E0",
}
"""What the brush paints with."""
_mount = st.components.v2.component(
    "npd_painter",
    html='<div class="painter"><div class="tools"></div>\n<div class="board"><canvas></canvas>'
    '<div class="frame"></div></div><div class="side"></div>'
    '<p class="said" role="status" aria-live="polite"></p></div>',
    css=(HERE / "painter.css").read_text(encoding="utf-8"),
    js=(HERE / "painter.js").read_text(encoding="utf-8"),
)


def _nothing() -> None:
    """For callers who read the value only."""


def painter(
    picture: str,
    *,
    size: int,
    trigger: str | None,
    key: str,
    on_change: Callable[[], None] = _nothing,
    start: str | None = None,
) -> str | None:
    """Draw `picture`, big and pixelated, with the trigger on it; the visitor moves the trigger and paints.

    The trigger lies at its own place from the start. Another picture keeps what was done; another trigger starts at its
    own place again, the paint stays.

    Args:
        picture: PNG data URI, size x size pixels.
        size: height and width in pixels, 32 or 64.
        trigger: RGBA PNG data URI of the same size, a stamp in its own place; None: there is only the brush.
        start: what an empty board begins with, as this function returned it elsewhere: it counts as painted, and the
            stamp waits until it is asked for.
        on_change: called after the pointer (or key) was released on a change; `st.session_state[key].overlay` has it.
    A painter that was away for a while (another page, another choice) starts anew.

    Returns:
        the stamp at its place under the paint, RGBA PNG data URI of size x size pixels, from the browser: to be read
        with `npd_core.data.images.decode_overlay`. None before anything was done.
    """
    held = (st.session_state.get(key) or {}).get("overlay")
    found = _mount(
        key=key,
        height="content",
        on_overlay_change=on_change,
        data={
            "picture": picture,
            "trigger": trigger,
            "size": size,
            "colours": COLOURS,
            "held": held is not None,
            "start": start,
        },
    )
    overlay = found.overlay
    return overlay if isinstance(overlay, str) else None

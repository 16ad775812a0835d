"""An image to paint on: a trigger that can be dragged, and a brush."""

from __future__ import annotations

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
"""Colors of the brush."""
_mount = st.components.v2.component(
    "npd_painter",
    html='<div class="painter"><div class="tools"></div>\n<div class="board"><canvas></canvas>'
    '<div class="frame"></div></div><div class="side"></div>'
    '<p class="message" role="status" aria-live="polite"></p></div>',
    css=(HERE / "painter.css").read_text(encoding="utf-8"),
    js=(HERE / "painter.js").read_text(encoding="utf-8"),
)


def painter(image: str, *, size: int, trigger: str | None, key: str, start: str | None = None) -> str | None:
    """Show an image on which the visitor moves the trigger and paints.

    The trigger starts at its own position. Another image keeps what was painted; another trigger starts at
    its own position. A painter that was not on the page for a while is empty again.

    Args:
        image: PNG data URI, size x size pixels.
        size: height and width in pixels, 32 or 64.
        trigger: RGBA PNG data URI of the same size, the trigger at its own position; None: only a brush.
        start: what an empty board starts with, as returned earlier; the trigger is then not yet on it.

    Returns:
        the trigger at its position below the paint, RGBA PNG data URI of size x size pixels; None before any
        change. It comes from the browser: read it with `npd_core.data.images.decode_overlay`.
    """
    held = (st.session_state.get(key) or {}).get("overlay")
    found = _mount(
        key=key,
        height="content",
        on_overlay_change=lambda: None,
        data={
            "image": image,
            "trigger": trigger,
            "size": size,
            "colors": COLOURS,
            "held": held is not None,
            "start": start,
        },
    )
    overlay = found.overlay
    return overlay if isinstance(overlay, str) else None

"""What a screen at a booth needs: a touch that wakes the loop, and a countdown that goes back to it.

Both load the page anew, so that every visitor begins with a fresh session, even after a restart of the server.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
IDLE, WAIT = 60.0, 15.0
"""Seconds without a touch before the countdown, and of the countdown."""
_mount = st.components.v2.component(
    "npd_idle",
    html='<div class="idle"></div>\n',
    css=(HERE / "idle.css").read_text(encoding="utf-8"),
    js=(HERE / "idle.js").read_text(encoding="utf-8"),
)


def countdown(*, page: str, busy: bool, idle: float = IDLE, wait: float = WAIT, key: str) -> None:
    """Go to /booth when nobody touches anything for `idle` seconds and nobody stops the countdown of `wait` seconds.

    Args:
        page: url path of the page on show.
        busy: something of the visitor's goes on: the seconds count from its end.
    """
    _mount(
        key=key, height="content", data={"page": page, "busy": busy, "idle": idle, "wait": wait, "wake": ""}
    )


def wake(label: str, *, page: str, key: str) -> None:
    """A big button; it, any other touch and any key open the first page in booth mode.

    Args:
        page: url path of the page on show.
    """
    _mount(key=key, height="content", data={"page": page, "busy": True, "idle": 0, "wait": 0, "wake": label})

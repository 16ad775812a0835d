"""The loop of a booth: a button that leaves it, and a countdown that goes back to it.

Both load the page again, so that every visitor starts with a new session, even after a restart of the server.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
IDLE, WAIT = 60.0, 15.0
"""Seconds without input before the countdown, and seconds of the countdown."""
_mount = st.components.v2.component(
    "npd_idle",
    html='<div class="idle"></div>\n',
    css=(HERE / "idle.css").read_text(encoding="utf-8"),
    js=(HERE / "idle.js").read_text(encoding="utf-8"),
)


def countdown(*, page: str, busy: bool, idle: float = IDLE, wait: float = WAIT, key: str) -> None:
    """Go to /booth after `idle` seconds without input and a countdown of `wait` seconds.

    Args:
        page: URL path of the current page.
        busy: a run of the visitor is active; the seconds count from its end.
    """
    _mount(
        key=key, height="content", data={"page": page, "busy": busy, "idle": idle, "wait": wait, "wake": ""}
    )


def wake(label: str, *, page: str, key: str) -> None:
    """Draw a big button; the button, any other touch and any key open the first page in booth mode.

    Args:
        page: URL path of the current page.
    """
    _mount(key=key, height="content", data={"page": page, "busy": True, "idle": 0, "wait": 0, "wake": label})

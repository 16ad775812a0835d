"""Run the script again when the theme changes to light or dark, for the colors that Python chooses."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
_mount = st.components.v2.component(
    "npd_appearance",
    html='<div class="appearance" hidden></div>\n',
    js=(HERE / "appearance.js").read_text(encoding="utf-8"),
)


def _nothing() -> None:
    """Do nothing: the new run of the script reads the theme."""


def follow(drawn: str) -> None:
    """Run the script again when the theme differs from `drawn`, as after a change in the app's menu.

    Args:
        drawn: the theme of this run of the script, "light" or "dark".
    """
    with st.container(key="appearance"):
        _mount(key="appearance-watch", height="content", data={"drawn": drawn}, on_changed_change=_nothing)

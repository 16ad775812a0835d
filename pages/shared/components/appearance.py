"""Tells the script when the visitor changes between light and dark, for the colours that Python chooses."""

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
    """The rerun is all that is wanted: each one says which theme is on."""


def follow(drawn: str) -> None:
    """Run the script again when the theme is another than `drawn`, changed by the app's menu or by the system. Draws
    nothing.

    Args:
        drawn: "light" or "dark", for which this run of the script draws.
    """
    with st.container(key="appearance"):
        _mount(key="appearance-watch", height="content", data={"drawn": drawn}, on_changed_change=_nothing)

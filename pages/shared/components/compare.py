"""Two pictures of one scene in one frame, and a slider that moves the border between them."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
_mount = st.components.v2.component(
    "npd_compare",
    html='<figure class="compare"><div class="pictures"><img class="left" alt=""><img class="right" alt=""><i></i>'
    '</div>\n<input type="range" min="0" max="100" value="50" aria-label="Border between the two pictures">'
    "<figcaption><span></span><span></span></figcaption></figure>",
    css=(HERE / "compare.css").read_text(encoding="utf-8"),
    js=(HERE / "compare.js").read_text(encoding="utf-8"),
)


def compare(left: str, right: str, *, names: tuple[str, str], alt: str, key: str) -> None:
    """Draw `left` before the border and `right` behind it.

    Args:
        left, right: PNG data URIs of equal size.
        names: a word for each, shown below its side.
        alt: what the two pictures show, for screen readers.
    """
    _mount(key=key, height="content", data={"left": left, "right": right, "names": list(names), "alt": alt})

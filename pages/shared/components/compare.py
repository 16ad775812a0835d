"""An image without and with the trigger in one frame, and a slider that moves the border between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import streamlit as st

from npd_core.figures.predictions import data_url

HERE = Path(__file__).parent
_mount = st.components.v2.component(
    "npd_compare",
    html='<figure class="compare"><div class="images"><img class="left" alt=""><img class="right" alt="">'
    '<i></i></div>\n<input type="range" min="0" max="100" value="50">'
    "<figcaption><span></span><span></span></figcaption></figure>",
    css=(HERE / "compare.css").read_text(encoding="utf-8"),
    js=(HERE / "compare.js").read_text(encoding="utf-8"),
)


def compare(clean: np.ndarray, triggered: np.ndarray, *, alt: str, key: str) -> None:
    """Show an image, (3, H, W) uint8, without and with the trigger. Args: alt: for screen readers."""
    images = {"left": data_url(clean), "right": data_url(triggered), "names": ["clean", "triggered"]}
    _mount(key=key, height="content", data=images | {"alt": alt})

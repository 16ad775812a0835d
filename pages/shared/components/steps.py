"""The steps of the story in a row. Announces milestones to screen readers and scrolls to a new step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
_mount = st.components.v2.component(
    "npd_steps",
    html='<div class="steps"><ol></ol>\n<p class="sr" role="status" aria-live="polite"></p></div>',
    css=(HERE / "steps.css").read_text(encoding="utf-8"),
    js=(HERE / "steps.js").read_text(encoding="utf-8"),
)


def steps(names: Sequence[str], *, now: int, announce: str, key: str) -> None:
    """Draw the steps.

    Args:
        names: a word or two for each step.
        now: number of the current step, from 1; when it changes, the page scrolls to its top.
        announce: a milestone for screen readers, spoken when it changes.
    """
    _mount(key=key, height="content", data={"names": list(names), "now": now, "announce": announce})

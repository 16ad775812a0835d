"""A drawing of the network on which the insertion layer is chosen by mouse, finger or keyboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from npd_core.figures.network import Plan, Tint

HERE = Path(__file__).parent
_mount = st.components.v2.component(
    "npd_network",
    html='<div class="network"><div class="kinds"></div>\n<p class="status"></p><p class="scale" hidden></p>'
    '<div class="stages"></div></div>',
    css=(HERE / "network.css").read_text(encoding="utf-8"),
    js=(HERE / "network.js").read_text(encoding="utf-8"),
)


def network(
    plan: Plan,
    *,
    selected: str,
    default: str,
    paper: str,
    key: str,
    on_pick: Callable[[], None],
    disabled: bool = False,
    tint: Tint | None = None,
    gaps: bool = True,
) -> None:
    """Draw the network with the polarizer at `selected`.

    Args:
        selected: insertion layer in its canonical spelling.
        default, paper: the default layer and the layer of the paper; both are marked.
        key: `st.session_state[key].layer` has the chosen layer before `on_pick` is called.
        disabled: only show.
        tint: colors and numbers of a metric at each layer.
        gaps: mark the layers without a number as not measured.
    """
    _mount(
        key=key,
        height="content",
        on_layer_change=on_pick,
        data={
            "plan": plan.to_dict(),
            "kinds": plan.kinds(),
            "selected": selected,
            "standard": default,
            "paper": paper,
            "disabled": disabled,
            "tint": tint and {**tint.to_dict(), "gaps": gaps},
        },
    )

"""The theme of all figures: blue is benign, orange the trigger, violet the polarizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

FONT = "'Avenir Next', 'Segoe UI', 'Helvetica Neue', 'Noto Sans', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Palette:
    """Colors of one mode, as hex. Each of the first six has a contrast of at least 4.5 on `background`."""

    benign: str
    trigger: str
    polarizer: str
    green: str
    text: str
    muted: str
    grid: str
    background: str


PALETTES: dict[str, Palette] = {
    "light": Palette("#005A9C", "#B34700", "#5B3FD6", "#2E6B4F", "#141A2E", "#566080", "#DADDEA", "#FFFFFF"),
    "dark": Palette("#6FC3FF", "#FF9E64", "#B9A7FF", "#7FD6A8", "#E8ECFA", "#A4AECB", "#2A3353", "#0B1020"),
}


def palette(mode: str | None) -> Palette:
    """Return the colors for "light" or "dark"; anything else counts as light."""
    return PALETTES["dark" if mode == "dark" else "light"]


def layout(mode: str | None, **changes: Any) -> go.Layout:
    """Return the layout that every figure starts from: transparent, quiet axes, legend above.

    Args:
        mode: "light" or "dark".
        changes: fields of plotly's layout that differ; nested ones with the underscore form
            (`yaxis_range=...`).
    """
    colors = palette(mode)
    axis = {
        "gridcolor": colors.grid,
        "linecolor": colors.grid,
        "zeroline": False,
        "automargin": True,
        "tickfont": {"color": colors.muted, "size": 13},
        "title": {"font": {"color": colors.muted, "size": 13}},
    }
    base = go.Layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=300,
        margin={"l": 8, "r": 12, "t": 44, "b": 8},
        font={"family": FONT, "color": colors.text, "size": 14},
        xaxis=axis,
        yaxis=axis,
        hovermode="x unified",
        uirevision="keep",
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 13}},
        hoverlabel={"bgcolor": colors.background, "font": {"color": colors.text}},
    )
    return base.update(**changes) if changes else base

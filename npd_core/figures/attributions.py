"""Attribution maps on one color scale, and the channels that the polarizer suppresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from npd_core.figures import theme


class MapGrid(NamedTuple):
    """Images in the first column, one map per image and network in the others."""

    rows: list[str]
    """Name of each image: clean, triggered."""
    columns: list[str]
    """Which network each map explains."""
    images: list[np.ndarray]
    """One per row, (3, H, W) uint8."""
    maps: list[list[np.ndarray]]
    """By row, then column, (H, W), signed."""
    scale: float
    """Colors run from -scale to scale in every map."""
    notes: list[list[str]]
    """By row, then column: the network's prediction."""
    unit: str
    """Text: what the maps add up to."""


class ChannelBars(NamedTuple):
    """The channels whose contribution to a logit the polarizer lowers most, in descending order."""

    channels: list[int]
    before: list[float]
    """Contribution to the logit without the polarizer."""
    after: list[float]
    """Contribution with it."""
    suppressed: list[float]
    """before - after."""
    activation_before: list[float]
    """Mean absolute activation that reaches the polarizer."""
    activation_after: list[float]
    share: float
    """Share of these channels in the whole lowering, in [0, 1]."""
    logit_before: float
    logit_after: float


def scale_stops(mode: str | None) -> list[tuple[float, str]]:
    """Return diverging colors: blue is against the class, orange for it, the page background neutral."""
    middle = "#F4F5FA" if mode != "dark" else "#161D35"
    cold, warm = ("#003A66", "#7A2E00") if mode != "dark" else ("#BFE4FF", "#FFD9BD")
    colors = theme.palette(mode)
    return [(0.0, cold), (0.25, colors.benign), (0.5, middle), (0.75, colors.trigger), (1.0, warm)]


def map_image(found: np.ndarray, scale: float, mode: str | None = "light") -> np.ndarray:
    """Return a map as an image in the colors of `scale_stops`; values beyond the scale take the end colors.

    Args:
        found: (H, W), signed.
        scale: value of the last color; its negative is the first.
    Returns:
        (3, H, W) uint8.
    """
    stops = scale_stops(mode)
    colors = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for _, color in stops], dtype=float)
    at = np.clip(np.asarray(found, dtype=float) / (2 * scale) + 0.5, 0.0, 1.0)
    return (
        np.stack([np.interp(at, [s for s, _ in stops], colors[:, k]) for k in range(3)])
        .round()
        .astype(np.uint8)
    )


def channel_bars(
    before: Sequence[float],
    after: Sequence[float],
    activation_before: Sequence[float],
    activation_after: Sequence[float],
    logit_before: float,
    logit_after: float,
    top: int = 12,
) -> ChannelBars:
    """Return the `top` channels by how much of the logit the polarizer took from them.

    Each sequence holds one number per channel, see `npd_core.attribution.ChannelAttribution`.
    """
    gone = np.asarray(before, dtype=float) - np.asarray(after, dtype=float)
    chosen = [int(k) for k in np.argsort(-gone, kind="stable")[:top] if gone[k] > 0]
    lowering = gone[gone > 0].sum()

    def pick(values: Sequence[float]) -> list[float]:
        return [float(values[k]) for k in chosen]

    return ChannelBars(
        chosen,
        pick(before),
        pick(after),
        [float(gone[k]) for k in chosen],
        pick(activation_before),
        pick(activation_after),
        float(gone[chosen].sum() / lowering) if lowering > 0 else 0.0,
        float(logit_before),
        float(logit_after),
    )


def channel_figure(bars: ChannelBars, mode: str | None = "light") -> go.Figure:
    """Draw the contribution of each channel to the logit: hatched before, plain after the polarizer."""
    colors = theme.palette(mode)
    names = [f"#{k}" for k in bars.channels]
    rows = [
        ("before the polarizer", bars.before, bars.activation_before, colors.trigger, "/"),
        ("after the polarizer", bars.after, bars.activation_after, colors.polarizer, ""),
    ]
    drawn = [
        go.Bar(
            name=name,
            x=names,
            y=values,
            customdata=activations,
            marker={"color": color, "pattern": {"shape": shape, "size": 6, "solidity": 0.45}},
            hovertemplate="%{y:.3f} of the logit, mean |activation| %{customdata:.3f}<extra>"
            + name
            + "</extra>",
        )
        for name, values, activations, color, shape in rows
    ]
    return go.Figure(
        drawn,
        theme.layout(
            mode,
            barmode="group",
            height=340,
            xaxis_title_text="channel, most suppressed first",
            xaxis_type="category",
            yaxis_title_text="contribution to the logit",
            yaxis_zeroline=True,
            yaxis_zerolinecolor=colors.muted,
        ),
    )

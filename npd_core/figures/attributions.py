"""Attribution maps on one colour scale, and the channels that the polarizer suppressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from npd_core.figures import theme


class MapGrid(NamedTuple):
    """Pictures in the first column, one map for each picture and network in the others."""

    rows: list[str]
    """What each picture is: clean, triggered."""
    columns: list[str]
    """Which network each map explains."""
    pictures: list[np.ndarray]
    """One for each row, (3, H, W) uint8."""
    maps: list[list[np.ndarray]]
    """By row, then column, (H, W), signed."""
    scale: float
    """Colours run from -scale to scale in every map."""
    notes: list[list[str]] | None = None
    """By row, then column: what that network predicts."""


class ChannelBars(NamedTuple):
    """The channels whose contribution to a logit the polarizer lowered most, most first."""

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
    """Of all lowering over all channels, the part of the channels shown, in [0, 1]."""
    logit_before: float
    logit_after: float


def scale_stops(mode: str | None) -> list[tuple[float, str]]:
    """Diverging colours: blue speaks against the class, orange for it, the page's own ground is nothing."""
    middle = "#F4F5FA" if mode != "dark" else "#161D35"
    cold, warm = ("#003A66", "#7A2E00") if mode != "dark" else ("#BFE4FF", "#FFD9BD")
    colors = theme.palette(mode)
    return [(0.0, cold), (0.25, colors.benign), (0.5, middle), (0.75, colors.trigger), (1.0, warm)]


def map_figure(grid: MapGrid, mode: str | None = "light", title: str = "logit") -> go.Figure:
    """Rows of pictures with their maps, all on one colour bar.

    Args:
        title: unit of the maps, beside the colour bar.
    """
    colors = theme.palette(mode)
    columns = 1 + len(grid.columns)
    notes = grid.notes or [[""] * len(grid.columns) for _ in grid.rows]
    titles = []
    for row, words in zip(grid.rows, notes, strict=True):
        titles.append(f"<b>{row}</b>")
        titles += [f"{name}<br>{note}" if note else name for name, note in zip(grid.columns, words, strict=True)]
    figure = make_subplots(
        len(grid.rows), columns, subplot_titles=titles, horizontal_spacing=0.03, vertical_spacing=0.14)
    for r, (picture, maps) in enumerate(zip(grid.pictures, grid.maps, strict=True), start=1):
        figure.add_trace(go.Image(z=picture.transpose(1, 2, 0), hoverinfo="skip"), r, 1)
        for c, found in enumerate(maps, start=2):
            figure.add_trace(go.Heatmap(
                z=found, coloraxis="coloraxis", hovertemplate="x %{x}, y %{y}: %{z:.3g}<extra></extra>"), r, c)
    side = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": "", "showline": True,
            "mirror": True, "linecolor": colors.grid, "constrain": "domain"}
    height = grid.pictures[0].shape[1] if grid.pictures else 1
    figure.update_xaxes(**side)
    figure.update_yaxes(**side, scaleanchor="x", range=[height - 0.5, -0.5])
    for axis in figure.select_yaxes():
        axis.scaleanchor = axis.anchor
    base = theme.layout(mode)
    figure.update_layout(
        paper_bgcolor=base.paper_bgcolor, plot_bgcolor=base.plot_bgcolor, font=base.font, hoverlabel=base.hoverlabel,
        height=70 + 340 * len(grid.rows), margin={"l": 4, "r": 4, "t": 52, "b": 8}, showlegend=False,
        coloraxis={"cmin": -grid.scale, "cmax": grid.scale, "colorscale": scale_stops(mode), "colorbar": {
            "title": {"text": title, "side": "right"}, "thickness": 14, "outlinewidth": 0, "tickfont": {"size": 12},
            "tickvals": [-grid.scale, 0, grid.scale],
            "ticktext": [f"against<br>{-grid.scale:.2g}", "0", f"for<br>{grid.scale:.2g}"]}})
    figure.update_annotations(font={"size": 14, "color": colors.text})
    return figure


def channel_bars(
    before: Sequence[float], after: Sequence[float],
    activation_before: Sequence[float], activation_after: Sequence[float],
    logit_before: float, logit_after: float, top: int = 12,
) -> ChannelBars:
    """The record of `top` channels, by how much of the logit the polarizer took from them.

    Each sequence holds one number a channel, see `npd_core.attribution.ChannelAttribution`.
    """
    gone = np.asarray(before, dtype=float) - np.asarray(after, dtype=float)
    chosen = [int(k) for k in np.argsort(-gone, kind="stable")[:top] if gone[k] > 0]
    lowering = gone[gone > 0].sum()

    def pick(values: Sequence[float]) -> list[float]:
        return [float(values[k]) for k in chosen]

    return ChannelBars(chosen, pick(before), pick(after), [float(gone[k]) for k in chosen], pick(activation_before),
                       pick(activation_after), float(gone[chosen].sum() / lowering) if lowering > 0 else 0.0,
                       float(logit_before), float(logit_after))


def channel_figure(bars: ChannelBars, mode: str | None = "light") -> go.Figure:
    """Contribution of each channel to the logit: hatched before, plain after the polarizer."""
    colors = theme.palette(mode)
    names = [f"#{k}" for k in bars.channels]
    rows = [("before the polarizer", bars.before, bars.activation_before, colors.trigger, "/"),
            ("after the polarizer", bars.after, bars.activation_after, colors.polarizer, "")]
    drawn = [
        go.Bar(name=name, x=names, y=values, customdata=activations,
               marker={"color": color, "pattern": {"shape": shape, "size": 6, "solidity": 0.45}},
               hovertemplate="%{y:.3f} of the logit, mean |activation| %{customdata:.3f}<extra>" + name + "</extra>")
        for name, values, activations, color, shape in rows
    ]
    return go.Figure(drawn, theme.layout(
        mode, barmode="group", height=340, xaxis_title_text="channel, most suppressed first", xaxis_type="category",
        yaxis_title_text="contribution to the logit", yaxis_zeroline=True, yaxis_zerolinecolor=colors.muted))

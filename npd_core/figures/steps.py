"""One training step in slow motion: logits as bars, perturbations as images, numbers for formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from npd_core.figures import theme
from npd_core.figures.predictions import top_classes


class LogitBars(NamedTuple):
    """Logits of a few classes, the largest first, in one or two rows."""

    classes: list[str]
    rows: dict[str, list[float]]
    """Name of the row -> one logit per class."""
    label: int
    """Position of the true class in these lists."""
    target: int
    """Position of y', the surrogate target."""


def logit_bars(
    rows: dict[str, np.ndarray], names: Sequence[str], label: int, target: int, top: int = 12
) -> LogitBars:
    """Return at most `top` classes, always with y and y', sorted by the last row.

    Args:
        rows: name of the row -> (K,) logits.
        names: class names by number.
    """
    last = list(rows.values())[-1]
    chosen = sorted(top_classes(list(rows.values()), (label, target), top), key=lambda k: -float(last[k]))
    return LogitBars(
        [names[k] for k in chosen],
        {name: [float(values[k]) for k in chosen] for name, values in rows.items()},
        chosen.index(label),
        chosen.index(target),
    )


def logit_figure(bars: LogitBars, mode: str | None = "light") -> go.Figure:
    """Draw one bar per class and row; of two rows, the first is hatched. A tick marks y."""
    colors = theme.palette(mode)
    marks = {bars.target: "y′ ", bars.label: "✓ "}
    words = [marks.get(i, "") + name for i, name in enumerate(bars.classes)]
    styles = [(colors.muted, "/"), (colors.polarizer, "")][-len(bars.rows) :]
    drawn = []
    for (row, values), (color, shape) in zip(bars.rows.items(), styles, strict=True):
        shades = [color] * len(values)
        if not shape:
            shades[bars.label], shades[bars.target] = colors.benign, colors.trigger
        drawn.append(
            go.Bar(
                name=row,
                x=values,
                y=words,
                orientation="h",
                text=[f"{v:.1f}" for v in values],
                textposition="outside",
                cliponaxis=False,
                hovertemplate="%{y}: %{x:.3f}<extra>" + row + "</extra>",
                marker={"color": shades, "pattern": {"shape": shape, "size": 6, "solidity": 0.45}},
            )
        )
    everything = [value for values in bars.rows.values() for value in values]
    low, high = min(0.0, *everything), max(0.0, *everything)
    room = 0.16 * (high - low or 1.0)
    return go.Figure(
        drawn,
        theme.layout(
            mode,
            barmode="group",
            height=90 + (26 if len(bars.rows) == 1 else 40) * len(words),
            bargap=0.25,
            hovermode="closest",
            showlegend=len(bars.rows) > 1,
            margin_t=44 if len(bars.rows) > 1 else 8,
            xaxis_range=[low - (room if low < 0 else 0), high + room],
            xaxis_title_text="logit",
            yaxis_autorange="reversed",
            yaxis_showgrid=False,
            yaxis_tickfont_color=colors.text,
            legend_traceorder="normal",
        ),
    )


def signed_image(values: np.ndarray, scale: float) -> np.ndarray:
    """Return signed values as an image: mid gray for 0, full brightness for `scale`, black for its negative.

    Args:
        values: (3, H, W).
        scale: above 0; values beyond it are clipped.
    Returns:
        (3, H, W) uint8.
    """
    return np.clip(np.rint(127.5 + 127.5 * values / scale), 0, 255).astype(np.uint8)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Return a (3, H, W) image in [0, 1] as uint8."""
    return np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)


def probability(logits: np.ndarray, k: int) -> float:
    """Return s_k, the softmax of the logits."""
    return math.exp(-_minus_log(logits, k))


def rest(logits: np.ndarray, k: int) -> float:
    """Return 1 - s_k, summed over the other classes, which stays exact where s_k is almost 1."""
    return sum(probability(logits, other) for other in range(len(logits)) if other != k)


def _minus_log(logits: np.ndarray, k: int) -> float:
    z = logits.astype(np.float64)
    peak = z.max()
    return float(peak + np.log(np.exp(z - peak).sum()) - z[k])


def tex(value: float) -> str:
    """Return a number for a formula, three digits: 0.0213, 12.3, 4.56 \\cdot 10^{-7}."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:.{min(digits, 5)}f}"
    exponent = math.floor(math.log10(abs(value)))
    return rf"{value / 10**exponent:.2f} \cdot 10^{{{exponent}}}"

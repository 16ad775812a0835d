"""Predictions for one image or many: right, hijacked or wrong, and their probabilities."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from npd_core.figures import theme

Verdict = Literal["right", "hijacked", "wrong"]
GAIN = 10
"""Amplification of the difference of two images."""


class Bars(NamedTuple):
    """Probabilities of a few classes without and with the polarizer, as fractions, in descending order."""

    classes: list[str]
    indices: list[int]
    backdoored: list[float]
    polarized: list[float] | None
    """None without a polarizer."""
    label: int | None
    """Position of the true class in these lists; None where it is unknown."""
    target: int | None
    """Position of the attacker's class; None where there is none."""


class Tally(NamedTuple):
    """Numbers of images by verdict."""

    right: int
    hijacked: int
    wrong: int

    @property
    def total(self) -> int:
        return self.right + self.hijacked + self.wrong


def judge(prediction: int, label: int, target: int) -> Verdict:
    """Return `right` for the true class, `hijacked` for the attacker's, otherwise `wrong`."""
    if prediction == label:
        return "right"
    return "hijacked" if prediction == target else "wrong"


def tally(predictions: Iterable[int], labels: Iterable[int], targets: Iterable[int]) -> Tally:
    """Count the verdicts of many images. Args: class numbers, equally many of each."""
    verdicts = [judge(*three) for three in zip(predictions, labels, targets, strict=True)]
    return Tally(*(verdicts.count(name) for name in ("right", "hijacked", "wrong")))


def top_classes(probabilities: Sequence[np.ndarray], always: Iterable[int] = (), top: int = 5) -> list[int]:
    """Return the classes to show: those in `always`, and the most probable in any row, by probability.

    Args:
        probabilities: rows of K probabilities.
        always: classes that are always shown.
        top: number of classes in all, at least the number in `always`.
    """
    peak = np.max(np.stack(list(probabilities)), axis=0)
    order = [int(k) for k in np.argsort(-peak, kind="stable")]
    fixed = list(dict.fromkeys(int(k) for k in always))
    rest = [k for k in order if k not in fixed][: max(0, top - len(fixed))]
    return sorted([*fixed, *rest], key=order.index)


def probability_bars(
    backdoored: np.ndarray,
    polarized: np.ndarray | None,
    names: Sequence[str],
    label: int | None,
    target: int | None,
    top: int = 6,
) -> Bars:
    """Return at most `top` classes of one image, always with the true and the attacker's class, if any.

    Args:
        backdoored, polarized: (K,) probabilities for the same image.
        names: class names by number.
    """
    rows = [backdoored] if polarized is None else [backdoored, polarized]
    chosen = top_classes(rows, [k for k in (label, target) if k is not None], top)
    return Bars(
        [names[k] for k in chosen],
        chosen,
        [float(backdoored[k]) for k in chosen],
        None if polarized is None else [float(polarized[k]) for k in chosen],
        None if label is None else chosen.index(label),
        None if target is None else chosen.index(target),
    )


def probability_figure(bars: Bars, mode: str | None = "light", before: str = "backdoored") -> go.Figure:
    """Draw two bars per class: hatched for the backdoored network, plain with the polarizer.

    A tick marks the true class, a warning sign the attacker's. `before` names the network without the
    polarizer.
    """
    colors = theme.palette(mode)
    marks = {bars.target: "⚠ ", bars.label: "✓ "}  # None is no position
    words = [marks.get(i, "") + name for i, name in enumerate(bars.classes)]
    rows = [(before, bars.backdoored, colors.trigger, "/")]
    if bars.polarized is not None:
        rows.append(("with polarizer", bars.polarized, colors.polarizer, ""))
    drawn = [
        go.Bar(
            name=name,
            x=values,
            y=words,
            orientation="h",
            text=[f"{v:.1%}" for v in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.2%}<extra>" + name + "</extra>",
            marker={"color": color, "pattern": {"shape": shape, "size": 6, "solidity": 0.45}},
        )
        for name, values, color, shape in rows
    ]
    return go.Figure(
        drawn,
        theme.layout(
            mode,
            barmode="group",
            height=110 + 46 * len(words),
            bargap=0.25,
            hovermode="closest",
            xaxis_range=[0, 1.24],
            xaxis_tickformat=".0%",
            xaxis_tickvals=[0, 0.25, 0.5, 0.75, 1],
            yaxis_autorange="reversed",
            yaxis_showgrid=False,
            yaxis_tickfont_color=colors.text,
            legend_traceorder="normal",
        ),
    )


def difference(clean: np.ndarray, triggered: np.ndarray, gain: int = GAIN) -> np.ndarray:
    """Return the change by the trigger as an image: mid gray, brighter or darker by `gain` times the change.

    Args:
        clean, triggered: uint8, any equal shape.
    Returns:
        uint8, the same shape.
    """
    change = triggered.astype(np.int32) - clean.astype(np.int32)
    return np.clip(128 + gain * change, 0, 255).astype(np.uint8)


def png(image: np.ndarray, scale: int = 1) -> bytes:
    """Return an image as a PNG file, enlarged `scale` times without smoothing.

    Args:
        image: (3, H, W) uint8.
    """
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0)).repeat(scale, axis=0).repeat(scale, axis=1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(image: np.ndarray, scale: int = 1) -> str:
    """Return the PNG of an image as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png(image, scale)).decode("ascii")

"""Curves of one run from its events: loss terms, and ACC, ASR and RA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import plotly.graph_objects as go

from npd_core.figures import theme
from npd_core.names import CURVES, LOSS_TERMS, METRICS

DASHES = {
    "total": "solid",
    "bn": "solid",
    "asr": "dash",
    "bce1": "dot",
    "bce2": "dashdot",
    "acc": "solid",
    "ra": "dot",
}
MARKERS = {"acc": "circle", "asr": "x", "ra": "diamond"}


class LossCurves(NamedTuple):
    """Loss terms over training."""

    x: list[float]
    """Position in epochs: 2.5 is the middle of the third; warm-up is below 0."""
    terms: dict[str, list[float | None]]
    """Batch means by term, one value per x; None where a term was not computed (warm-up)."""


class MetricCurves(NamedTuple):
    """ACC, ASR and RA on test images, as fractions. Epoch 0 is the backdoored model, epoch k k epochs
    later."""

    epochs: list[int]
    acc: list[float | None]
    asr: list[float | None]
    ra: list[float | None]


def read_losses(records: Iterable[Mapping[str, Any]], limit: int = 300) -> LossCurves:
    """Return the losses by step, or by epoch where there are no step events.

    Args:
        records: events as plain values, in order (see npd_core.events.to_record).
        limit: largest number of points; more are thinned evenly, keeping the last.
    """
    records = list(records)
    per_epoch = next((int(r["steps_per_epoch"]) for r in records if r["type"] == "Started"), 1) or 1
    kept = [r for r in records if r["type"] == "StepEnd"]
    positions = [r["epoch"] + (r["step"] + 1) / per_epoch for r in kept]
    if not kept:
        kept = [r for r in records if r["type"] == "EpochEnd"]
        positions = [float(r["epoch"] + 1) for r in kept]
    if len(kept) > limit:
        chosen = sorted({round(i * (len(kept) - 1) / (limit - 1)) for i in range(limit)})
        kept, positions = [kept[i] for i in chosen], [positions[i] for i in chosen]
    terms = [name for name in LOSS_TERMS if any(name in r["losses"] for r in kept)]
    return LossCurves(positions, {name: [r["losses"].get(name) for r in kept] for name in terms})


def read_metrics(
    records: Iterable[Mapping[str, Any]], before: Mapping[str, Any] | None = None
) -> MetricCurves:
    """Return ACC, ASR and RA after every measured epoch.

    Args:
        records: events as plain values, in order.
        before: those of the model without a polarizer, for epoch 0.
    """
    rows: dict[int, Mapping[str, Any]] = {0: before} if before else {}
    for record in records:
        if record["type"] == "Measured" and record["epoch"] >= -1:
            rows[record["epoch"] + 1] = record if record["epoch"] >= 0 or not before else before
    epochs = sorted(rows)
    return MetricCurves(epochs, *([rows[e].get(name) for e in epochs] for name in ("acc", "asr", "ra")))


def loss_figure(curves: LossCurves, mode: str | None = "light", epochs: int | None = None) -> go.Figure:
    """Draw the loss terms over the epochs on a log scale, each with its own dash and color.

    Args:
        mode: "light" or "dark".
        epochs: right end of the axis; None: the end of the data.
    """
    colors = theme.palette(mode)
    shades = {
        "total": colors.text,
        "bn": colors.benign,
        "asr": colors.trigger,
        "bce1": colors.polarizer,
        "bce2": colors.green,
    }
    lines = [
        go.Scatter(
            x=[round(x, 3) for x in curves.x],
            y=[_drawn(v) for v in values],
            name=LOSS_TERMS[name],
            mode="lines",
            connectgaps=False,
            line={"color": shades[name], "dash": DASHES[name], "width": 3 if name == "total" else 2},
        )
        for name, values in curves.terms.items()
    ]
    start = min([0.0, *curves.x])
    return go.Figure(
        lines,
        theme.layout(
            mode,
            xaxis_title_text="epoch",
            yaxis_type="log",
            yaxis_title_text="loss (log scale)",
            yaxis_exponentformat="power",
            yaxis_dtick=1,
            **({"xaxis_range": [start, epochs]} if epochs else {}),
        ),
    )


def metric_figure(curves: MetricCurves, mode: str | None = "light", epochs: int | None = None) -> go.Figure:
    """Draw ACC, ASR and RA over the epochs, in percent.

    Args:
        mode: "light" or "dark".
        epochs: right end of the axis; None: the end of the data.
    """
    colors = theme.palette(mode)
    shades = {"acc": colors.benign, "asr": colors.trigger, "ra": colors.polarizer}
    dashes = {"acc": "solid", "asr": "dash", "ra": "dot"}
    lines = [
        go.Scatter(
            x=curves.epochs,
            y=getattr(curves, name),
            name=METRICS[name].short,
            mode="lines+markers",
            line={"color": shades[name], "dash": dashes[name], "width": 3},
            marker={"symbol": MARKERS[name], "size": 8, "color": shades[name]},
            hovertemplate="%{y:.1%}<extra>" + name.upper() + "</extra>",
        )
        for name in CURVES
    ]
    return go.Figure(
        lines,
        theme.layout(
            mode,
            xaxis_title_text="epoch",
            yaxis_range=[-0.03, 1.03],
            yaxis_tickformat=".0%",
            **({"xaxis_range": [-0.2, epochs + 0.2]} if epochs else {}),
        ),
    )


def _drawn(value: float | None) -> float | None:
    """Return a loss for a log scale with four digits, to keep figures small while they update."""
    return float(f"{value:.4g}") if value is not None and value > 0 else None

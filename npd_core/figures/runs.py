"""Several runs side by side: table rows, curves on one scale, and the settings that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from npd_core.config.baselines import CONFIGS
from npd_core.figures import theme
from npd_core.figures.curves import MetricCurves
from npd_core.names import CURVES, METRICS

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "x", "diamond", "square", "triangle-up", "cross")


class Row(NamedTuple):
    """One run as a table row. Fractions in [0, 1]; None where nothing was measured."""

    id: str
    kind: str
    """recorded or live."""
    state: str
    model: str
    defense: str
    layer: str | None
    """None, as are lambda2, lambda3 and rho, for a baseline, which has no polarizer."""
    lambda2: float | None
    lambda3: float | None
    rho: float | None
    acc_before: float | None
    acc: float | None
    asr_before: float | None
    asr: float | None
    ra_before: float | None
    ra: float | None
    der: float | None
    seconds: float | None
    """Training only."""
    created: float
    """Unix seconds."""


def read_row(
    run_id: str,
    recorded: bool,
    state: str,
    created: float,
    request: Mapping[str, Any],
    result: Mapping[str, Any] | None,
) -> Row:
    """Return the row of a run.

    Args:
        request: plain values of the DefenseRequest.
        result: the result of the run; None before its end.
    """
    result = result or {}
    before, after = result.get("before") or {}, result.get("after") or {}
    config = request.get("config") or {}
    defense = str(request.get("defense", "npd"))
    layer = result.get("layer") or request.get("layer") or "default"
    if defense in CONFIGS:
        layer, config = None, {}
    return Row(
        run_id,
        "recorded" if recorded else "live",
        state,
        str(request.get("model", "")),
        defense,
        layer,
        config.get("lambda2"),
        config.get("lambda3"),
        config.get("rho"),
        before.get("acc"),
        after.get("acc"),
        before.get("asr"),
        after.get("asr"),
        before.get("ra"),
        after.get("ra"),
        result.get("der"),
        (result.get("seconds") or {}).get("train"),
        created,
    )


def differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs: name -> one value per run, in the given order.

    Args:
        settings: by run, the plain values of its request; nested ones are named `config.rho`.
    """
    flat = [_flatten(values) for values in settings.values()]
    names = list(dict.fromkeys(name for values in flat for name in values))
    rows = {name: [values.get(name) for values in flat] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def comparison_figure(runs: Mapping[str, MetricCurves], mode: str | None = "light") -> go.Figure:
    """Draw ACC, ASR and RA side by side over the epochs; a run has the same color, dash and marker in all
    three.

    Args:
        runs: name of a run -> its curves.
    """
    colors = theme.palette(mode)
    shades = (colors.benign, colors.trigger, colors.polarizer, colors.green, colors.text, colors.muted)
    figure = make_subplots(
        1,
        len(CURVES),
        subplot_titles=[METRICS[name].short for name in CURVES],
        shared_yaxes=True,
        horizontal_spacing=0.03,
    )
    for number, (words, curves) in enumerate(runs.items()):
        look = number % len(shades)
        for column, name in enumerate(CURVES, start=1):
            figure.add_trace(
                go.Scatter(
                    x=curves.epochs,
                    y=getattr(curves, name),
                    name=words,
                    legendgroup=words,
                    showlegend=column == 1,
                    mode="lines+markers",
                    line={"color": shades[look], "dash": DASHES[look], "width": 3},
                    marker={"symbol": SYMBOLS[look], "size": 8},
                    hovertemplate="epoch %{x}: %{y:.1%}<extra>" + name.upper() + "</extra>",
                ),
                1,
                column,
            )
    base = theme.layout(mode)
    figure.update_layout(
        paper_bgcolor=base.paper_bgcolor,
        plot_bgcolor=base.plot_bgcolor,
        font=base.font,
        hoverlabel=base.hoverlabel,
        height=360,
        margin={"l": 8, "r": 12, "t": 40, "b": 8},
        hovermode="closest",
        template="none",
        legend={"orientation": "h", "x": 0, "y": -0.18, "yanchor": "top"},
    )
    figure.update_xaxes(base.xaxis, title_text="epoch")
    figure.update_yaxes(base.yaxis, range=[-0.03, 1.03], tickformat=".0%")
    figure.update_annotations(font={"size": 14, "color": colors.text})
    return figure


def outcome_figure(rows: Sequence[Row], names: Sequence[str], mode: str | None = "light") -> go.Figure:
    """Draw ACC, ASR and RA after each run as bars; the tooltip shows the value before."""
    colors = theme.palette(mode)
    looks = {"acc": (colors.benign, ""), "asr": (colors.trigger, "/"), "ra": (colors.polarizer, ".")}
    figure = go.Figure(
        layout=theme.layout(
            mode,
            barmode="group",
            yaxis_range=[0, 1.08],
            yaxis_tickformat=".0%",
            hovermode="closest",
            height=320,
        )
    )
    for name, (color, shape) in looks.items():
        after, before = [getattr(row, name) for row in rows], [getattr(row, f"{name}_before") for row in rows]
        figure.add_trace(
            go.Bar(
                name=METRICS[name].short,
                x=list(names),
                y=after,
                customdata=before,
                text=["" if v is None else f"{v:.1%}" for v in after],
                textposition="outside",
                cliponaxis=False,
                marker={"color": color, "pattern": {"shape": shape, "size": 6, "solidity": 0.45}},
                hovertemplate="%{y:.1%}, before %{customdata:.1%}<extra>" + name.upper() + "</extra>",
            )
        )
    return figure


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat

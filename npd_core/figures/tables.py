"""Measured tables of the paper as figures: bars, curves, and a heatmap.

Each figure shows one metric, so that a narrow screen can stack several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from npd_core.figures import theme
from npd_core.figures.curves import DASHES, MARKERS
from npd_core.figures.runs import DASHES as LINE_DASHES
from npd_core.figures.runs import SYMBOLS
from npd_core.names import METRICS

SOURCES = {"recorded": "recorded here", "live": "live here", "published": "published in the paper"}
"""Sources of a number, in drawing order."""
PATTERNS = {"recorded": "", "live": ".", "published": "/"}


class Outcome(NamedTuple):
    """Measured numbers of one defense. Fractions in [0, 1]; None where unknown."""

    label: str
    """Its position on the axis: a defense, a layer, a number of images."""
    source: str
    """A name in SOURCES."""
    acc: float | None = None
    asr: float | None = None
    ra: float | None = None
    der: float | None = None
    seconds: float | None = None
    """Of training."""


def bars(outcomes: Sequence[Outcome], metric: str, mode: str | None = "light") -> go.Figure:
    """Draw one metric as a bar per label and source; the pattern shows the source.

    Args:
        metric: a name in METRICS.
        mode: "light" or "dark".
    """
    colors = theme.palette(mode)
    labels, sources = _labels(outcomes), _sources(outcomes)
    figure = _bar_chart(mode, METRICS[metric].full, len(labels), len(sources))
    for source in sources:
        rows = {outcome.label: getattr(outcome, metric) for outcome in outcomes if outcome.source == source}
        values = [rows.get(label) for label in labels]
        figure.add_trace(_bar(labels, values, source, _shade(metric, colors), colors, percent))
        figure.add_trace(_key(labels[0], source, colors))
    figure.update_xaxes(range=[0, 1.25], tickformat=".0%", tickvals=[0, 0.5, 1])
    return figure


def time_bars(outcomes: Sequence[Outcome], mode: str | None = "light") -> go.Figure:
    """Draw the training time by label, for one source: times of two machines cannot be compared."""
    colors = theme.palette(mode)
    (source,) = _sources(outcomes)
    labels = _labels(outcomes)
    figure = _bar_chart(mode, f"seconds, {SOURCES[source]}", len(labels), 1)
    figure.add_trace(_bar(labels, [o.seconds for o in outcomes], source, colors.polarizer, colors, seconds))
    longest = max((outcome.seconds or 0.0 for outcome in outcomes), default=0.0) or 1.0
    figure.update_xaxes(range=[0, longest * 1.25], nticks=5)
    return figure


def curves(
    series: Mapping[str, Sequence[Outcome]],
    metric: str,
    order: Sequence[str],
    axis: str = "",
    mode: str | None = "light",
) -> go.Figure:
    """Draw one metric over the labels, a line per series.

    Args:
        series: name of a line, such as "NPD" -> its outcomes. Published ones have the same color, thin lines
            and hollow markers; live ones are stars.
        metric: a name in METRICS.
        order: every label, from left to right.
        axis: title of the axis.
    """
    colors = theme.palette(mode)
    shades = (colors.polarizer, colors.trigger, colors.benign, colors.green, colors.text, colors.muted)
    figure = go.Figure(layout=theme.layout(mode, height=400, hovermode="closest"))
    for number, (words, outcomes) in enumerate(series.items()):
        look = number % len(shades)
        for source in _sources(outcomes):
            rows = {
                outcome.label: getattr(outcome, metric) for outcome in outcomes if outcome.source == source
            }
            solid = source != "published"
            figure.add_scatter(
                x=order,
                y=[rows.get(label) for label in order],
                name=words if source == "recorded" else f"{words}, {source}",
                mode="markers" if source == "live" else "lines+markers",
                connectgaps=True,
                line={"color": shades[look], "dash": LINE_DASHES[look], "width": 3 if solid else 1.5},
                marker={
                    "symbol": "star" if source == "live" else SYMBOLS[look] + ("" if solid else "-open"),
                    "size": 15 if source == "live" else 9,
                    "color": shades[look],
                },
                hovertemplate=f"%{{x}}: %{{y:.1%}}<extra>{words}, {SOURCES[source]}</extra>",
            )
    figure.update_layout(title=_title(METRICS[metric].full), legend={"y": -0.25, "yanchor": "top"})
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, title_text=axis)
    figure.update_yaxes(range=[-0.04, 1.05], tickformat=".0%")
    return figure


def along_layers(
    outcomes: Sequence[Outcome],
    chosen: str,
    mode: str | None = "light",
    metrics: Sequence[str] = ("acc", "asr", "ra"),
) -> go.Figure:
    """Draw ACC, ASR and RA by insertion layer. A line joins the layers after a convolution, as in Figure 3.

    Other layers are hollow markers, live measurements stars.


    Args:
        outcomes: in forward order; `label` is the insertion layer.
        chosen: layer to mark by a vertical line, where it is among them.
    """
    colors = theme.palette(mode)
    labels = _labels(outcomes)
    figure = go.Figure(layout=theme.layout(mode, height=420, hovermode="closest"))
    for name in metrics:
        for words, kept in (
            ("line", [o for o in outcomes if o.source != "live" and o.label.startswith("after:")]),
            ("other", [o for o in outcomes if o.source != "live" and not o.label.startswith("after:")]),
            ("live", [o for o in outcomes if o.source == "live"]),
        ):
            if not kept:
                continue
            symbol = {"line": MARKERS.get(name, "square"), "other": MARKERS.get(name, "square") + "-open"}
            figure.add_scatter(
                x=[o.label for o in kept],
                y=[getattr(o, name) for o in kept],
                name=METRICS[name].short + {"line": "", "other": ", not after", "live": ", live"}[words],
                showlegend=words == "line" or not any(o.label.startswith("after:") for o in outcomes),
                legendgroup=name,
                mode="lines+markers" if words == "line" else "markers",
                line={"color": _shade(name, colors), "dash": DASHES.get(name, "solid"), "width": 3},
                marker={
                    "symbol": symbol.get(words, "star"),
                    "size": {"line": 8, "other": 11, "live": 15}[words],
                    "color": _shade(name, colors),
                },
                hovertemplate=f"%{{x}}<br>{name.upper()} %{{y:.1%}}<extra>{_source(words)}</extra>",
            )
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=labels, tickangle=-60)
    figure.update_yaxes(range=[-0.04, 1.05], tickformat=".0%")
    if chosen in labels:
        figure.add_vline(x=labels.index(chosen), line={"color": colors.text, "width": 1.5, "dash": "dot"})
    return figure


def tiles(
    rows: Mapping[str, Mapping[str, float | None]], metric: str, mode: str | None = "light"
) -> go.Figure:
    """Draw one metric of every row and column as a heatmap with numbers in percent.

    Args:
        rows: attack -> defense -> fraction; None or a missing name leaves an empty cell.
    """
    colors = theme.palette(mode)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    values = [[row.get(name) for name in columns] for row in rows.values()]
    figure = go.Figure(
        go.Heatmap(
            x=columns,
            y=list(rows),
            z=values,
            text=[["" if value is None else f"{100 * value:.0f}" for value in row] for row in values],
            texttemplate="%{text}",
            textfont={"size": 13, "color": colors.text},
            zmin=0.5 if metric == "der" else 0,
            zmax=1,
            colorscale=[[0, colors.background], [1, mix(_shade(metric, colors), colors.background, 0.45)]],
            showscale=False,
            xgap=2,
            ygap=2,
            hoverongaps=False,
            hovertemplate=f"%{{y}}, %{{x}}: {metric.upper()} %{{z:.1%}}<extra></extra>",
        ),
        theme.layout(mode, height=90 + 34 * len(rows), hovermode="closest", showlegend=False),
    )
    figure.update_xaxes(side="top", showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def mix(first: str, second: str, share: float) -> str:
    """Return a mixture of two hex colors. Args: share: of the first, in [0, 1]."""
    parts = [[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in (first, second)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02X}" for a, b in zip(*parts, strict=True))


def percent(value: float, unit: str = "%") -> str:
    """Return a fraction as text: "0.4%", "97.5%", "100%"."""
    return f"{100 * value:.1f}".removesuffix(".0") + unit


def seconds(value: float) -> str:
    """Return seconds as text: "0.6", "12", "1,169"."""
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def _labels(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(outcome.label for outcome in outcomes))


def _sources(outcomes: Sequence[Outcome]) -> list[str]:
    present = {outcome.source for outcome in outcomes}
    return [source for source in SOURCES if source in present]


def _source(words: str) -> str:
    return "live" if words == "live" else "recorded"


def _shade(metric: str, colors: theme.Palette) -> str:
    return {"acc": colors.benign, "asr": colors.trigger, "ra": colors.polarizer, "der": colors.green}[metric]


def _bar(
    labels: list[str],
    values: list[float | None],
    source: str,
    color: str,
    colors: theme.Palette,
    text_of: Callable[[float], str],
) -> go.Bar:
    return go.Bar(
        y=labels,
        x=values,
        name=source,
        orientation="h",
        offsetgroup=source,
        legendgroup=source,
        showlegend=False,
        text=["" if value is None else text_of(value) for value in values],
        textposition="outside",
        textfont={"size": 12},
        cliponaxis=False,
        marker=_marker(source, color, colors),
        hovertemplate=f"%{{y}}: %{{text}}<extra>{SOURCES[source]}</extra>",
    )


def _key(label: str, source: str, colors: theme.Palette) -> go.Bar:
    """Return the legend entry of a source: a bar without length."""
    return go.Bar(
        y=[label],
        x=[None],
        name=SOURCES[source],
        orientation="h",
        offsetgroup=source,
        legendgroup=source,
        marker=_marker(source, colors.text, colors),
    )


def _marker(source: str, color: str, colors: theme.Palette) -> dict[str, Any]:
    pattern = {"shape": PATTERNS[source], "size": 6, "solidity": 0.35}
    if source == "recorded":
        return {"color": color, "pattern": pattern, "line": {"color": color, "width": 1}}
    pattern |= {"fillmode": "overlay", "fgcolor": color, "bgcolor": colors.background, "fgopacity": 0.9}
    return {"color": colors.background, "pattern": pattern, "line": {"color": color, "width": 1.5}}


def _bar_chart(mode: str | None, title: str, labels: int, sources: int) -> go.Figure:
    height = 112 + labels * (12 + 15 * sources)
    figure = go.Figure(
        layout=theme.layout(
            mode,
            height=height,
            hovermode="closest",
            barmode="group",
            bargap=0.22,
            bargroupgap=0.05,
            margin_r=28,
        )
    )
    figure.update_layout(title=_title(title), legend={"y": 0, "yref": "container", "yanchor": "bottom"})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def _title(words: str) -> dict[str, Any]:
    return {
        "text": words,
        "font": {"size": 15},
        "x": 0,
        "xref": "container",
        "y": 1,
        "yanchor": "top",
        "pad": {"t": 10},
    }

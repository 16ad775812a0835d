"""Figures of measured tables: every number is on its bar or point, and sources are told apart without
color."""

from __future__ import annotations

import pytest

from npd_core.figures import theme
from npd_core.figures.tables import (
    Outcome,
    along_layers,
    bars,
    curves,
    mix,
    percent,
    seconds,
    tiles,
    time_bars,
)
from npd_core.names import METRICS

MEASURED = Outcome("NPD", "recorded", 0.9, 0.02, 0.8, 0.95, 12.0)
PRINTED = Outcome("NPD", "published", 0.92, 0.01, None, 0.97, 55.16)
FP = Outcome("FP", "recorded", 0.85, 0.6, 0.3, 0.7, 40.0)


def drawn(figure) -> dict[str, dict[str, float | None]]:
    """What the bars say: name of the source -> label -> value."""
    return {t.name: dict(zip(t.y, t.x, strict=True)) for t in figure.data if t.showlegend is False}


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_bars_have_a_pattern_for_each_source(mode: str) -> None:
    figure = bars([FP, MEASURED, PRINTED], "asr", mode)
    assert drawn(figure) == {"recorded": {"FP": 0.6, "NPD": 0.02}, "published": {"FP": None, "NPD": 0.01}}
    keys = [trace for trace in figure.data if trace.showlegend is None]
    assert [trace.name for trace in keys] == ["recorded here", "published in the paper"]
    assert len({trace.marker.pattern.shape for trace in keys}) == 2
    assert {t.marker.line.color for t in figure.data if t.showlegend is False} == {
        theme.palette(mode).trigger
    }
    assert list(figure.data[0].text) == ["60%", "2%"]
    assert figure.layout.title.text == METRICS["asr"].full
    assert drawn(bars([FP, MEASURED], "der", mode)) == {"recorded": {"FP": 0.7, "NPD": 0.95}}


def test_times_are_of_one_machine() -> None:
    figure = time_bars([FP, MEASURED])
    assert drawn(figure) == {"recorded": {"FP": 40.0, "NPD": 12.0}}
    assert figure.layout.xaxis.range[1] >= 40
    with pytest.raises(ValueError, match="unpack"):
        time_bars([FP, PRINTED])
    assert time_bars([FP._replace(seconds=0.0)]).layout.xaxis.range[1] > 0


def test_curves_keep_the_order_of_the_axis_and_tell_the_sources_apart() -> None:
    few, many = MEASURED._replace(label="50"), MEASURED._replace(label="500", acc=0.91)
    live = Outcome("50", "live", 0.7, 0.1, 0.6, 0.8)
    series = {"NPD": [many, few, PRINTED._replace(label="50"), live], "FP": [FP._replace(label="250")]}
    figure = curves(series, "acc", ["50", "250", "500"], "clean images")
    lines = {trace.name: trace for trace in figure.data}
    assert all(list(line.x) == ["50", "250", "500"] for line in lines.values())
    assert {name: list(line.y) for name, line in lines.items()} == {
        "NPD": [0.9, None, 0.91],
        "NPD, published": [0.92, None, None],
        "NPD, live": [0.7, None, None],
        "FP": [None, 0.85, None],
    }
    assert len({lines[name].marker.symbol for name in lines}) == 4
    assert lines["NPD"].line.dash == lines["NPD, published"].line.dash != lines["FP"].line.dash
    assert list(figure.layout.xaxis.categoryarray) == ["50", "250", "500"]
    of_asr = {trace.name: list(trace.y) for trace in curves(series, "asr", ["50", "250", "500"]).data}
    assert of_asr["NPD, published"] == [0.01, None, None]


def test_layers_join_the_points_after_a_convolution_only() -> None:
    rows = [
        Outcome("after:conv1", "recorded", 0.9, 1.0, 0.0),
        Outcome("stream:layer1.0", "recorded", 0.8, 0.5, 0.2),
        Outcome("after:layer1.0.conv1", "recorded", 0.95, 0.1, 0.7),
        Outcome("after:layer1.0.conv1", "live", 0.94, 0.2, 0.6),
    ]
    figure = along_layers(rows, "stream:layer1.0")
    asr = [t for t in figure.data if t.legendgroup == "asr"]
    assert [(t.mode, list(t.x), list(t.y)) for t in asr] == [
        ("lines+markers", ["after:conv1", "after:layer1.0.conv1"], [1.0, 0.1]),
        ("markers", ["stream:layer1.0"], [0.5]),
        ("markers", ["after:layer1.0.conv1"], [0.2]),
    ]
    assert len({t.marker.symbol for t in asr}) == 3
    assert [t.showlegend for t in asr] == [True, False, False]
    assert list(figure.layout.xaxis.categoryarray) == [
        "after:conv1",
        "stream:layer1.0",
        "after:layer1.0.conv1",
    ]
    assert figure.layout.shapes[0].x0 == 1
    assert not along_layers(rows, "layer9").layout.shapes
    alone = along_layers(rows[1:2], "")
    assert all(t.showlegend for t in alone.data)


def test_tiles_say_their_number_and_leave_gaps_where_there_is_none() -> None:
    figure = tiles({"WaNet": {"FP": 0.5, "NPD": None}, "LF": {"NPD": 0.987}}, "der")
    (grid,) = figure.data
    assert (list(grid.x), list(grid.y)) == (["FP", "NPD"], ["WaNet", "LF"])
    assert [list(row) for row in grid.z] == [[0.5, None], [None, 0.987]]
    assert [list(row) for row in grid.text] == [["50", ""], ["", "99"]]
    assert (grid.zmin, grid.zmax) == (0.5, 1), "0.5 is nothing done"


def test_numbers_for_people() -> None:
    assert [percent(v) for v in (0.0, 0.0042, 0.975, 1.0)] == ["0%", "0.4%", "97.5%", "100%"]
    assert [seconds(v) for v in (0.64, 9.96, 12.4, 1169.01)] == ["0.6", "10", "12", "1,169"]


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("metric", ["acc", "asr", "ra", "der"])
def test_numbers_on_tiles_can_be_read(metric: str, mode: str) -> None:
    (grid,) = tiles({"a": {"b": 1.0}}, metric, mode).data
    for _, color in grid.colorscale:
        assert contrast(color, grid.textfont.color) >= 4.5


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast of two hex colors."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_mixed_colors() -> None:
    assert mix("#FFFFFF", "#000000", 0.0) == "#000000"
    assert mix("#FF0080", "#001080", 0.5) == "#800880"

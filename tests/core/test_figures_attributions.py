"""Attribution figures: records by value, one colour scale, nothing told by colour alone."""

from __future__ import annotations

import numpy as np
import pytest

from npd_core.figures.attributions import ChannelBars, MapGrid, channel_bars, channel_figure, map_figure, scale_stops


@pytest.fixture
def grid() -> MapGrid:
    picture = np.zeros((3, 6, 6), np.uint8)
    maps = [[np.full((6, 6), row + column / 2 - 1.0) for column in range(2)] for row in range(2)]
    return MapGrid(
        ["Clean", "Triggered"],
        ["Backdoored", "With polarizer"],
        [picture, picture],
        maps,
        1.5,
        [["says a", "says b"], ["says c", "says d"]],
    )


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_map_is_drawn_on_the_one_scale(grid: MapGrid, mode: str) -> None:
    figure = map_figure(grid, mode, "logit of “stop”")
    heat = [trace for trace in figure.data if trace.type == "heatmap"]
    drawn = [float(np.asarray(trace.z)[0, 0]) for trace in heat]
    assert drawn == [-1.0, -0.5, 0.0, 0.5]
    assert {trace.coloraxis for trace in heat} == {"coloraxis"}
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-1.5, 1.5)
    assert figure.layout.coloraxis.colorbar.title.text == "logit of “stop”"
    titles = [note.text for note in figure.layout.annotations]
    assert [title for title in titles if "says" in title] == [
        "Backdoored<br>says a",
        "With polarizer<br>says b",
        "Backdoored<br>says c",
        "With polarizer<br>says d",
    ]


def test_a_map_stands_upright_and_square(grid: MapGrid) -> None:
    figure = map_figure(grid._replace(notes=None))
    for axis in figure.select_yaxes():
        assert axis.range == (5.5, -0.5)
        assert axis.scaleanchor == axis.anchor


def test_zero_has_the_colour_of_the_ground() -> None:
    for mode in ("light", "dark"):
        stops = scale_stops(mode)
        assert [at for at, _ in stops] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert len({color for _, color in stops}) == 5


def test_channel_bars_rank_by_what_was_suppressed_and_leave_out_what_rose() -> None:
    before, after = [1.0, 4.0, 0.0, 2.0], [0.5, 1.0, 1.0, 2.0]
    bars = channel_bars(before, after, [1, 2, 3, 4], [5, 6, 7, 8], 7.0, 4.5, top=5)
    assert bars == ChannelBars([1, 0], [4.0, 1.0], [1.0, 0.5], [3.0, 0.5], [2.0, 1.0], [6.0, 5.0], 1.0, 7.0, 4.5)
    first = channel_bars(before, after, [1, 2, 3, 4], [5, 6, 7, 8], 7.0, 4.5, top=1)
    assert first.channels == [1]
    assert first.share == pytest.approx(3.0 / 3.5)


def test_no_channel_was_suppressed() -> None:
    bars = channel_bars([0.0, 1.0], [0.0, 2.0], [1, 1], [1, 1], 1.0, 2.0)
    assert bars.channels == []
    assert bars.share == 0.0
    assert len(channel_figure(bars).data) == 2


def test_channel_figure_draws_the_record() -> None:
    bars = ChannelBars([7, 2], [4.0, 1.0], [1.0, 0.5], [3.0, 0.5], [2.0, 1.0], [6.0, 5.0], 1.0, 7.0, 4.5)
    figure = channel_figure(bars, "dark")
    assert [list(trace.y) for trace in figure.data] == [[4.0, 1.0], [1.0, 0.5]]
    assert list(figure.data[0].x) == ["#7", "#2"]
    assert len({trace.marker.pattern.shape for trace in figure.data}) == 2

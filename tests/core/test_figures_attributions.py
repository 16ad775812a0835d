"""Attribution figures: records by value, one color scale, nothing told by color alone."""

from __future__ import annotations

import numpy as np
import pytest

from npd_core.figures.attributions import ChannelBars, channel_bars, channel_figure, map_image, scale_stops


def rgb(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_map_takes_the_colors_of_the_scale(mode: str) -> None:
    found = np.array([[-2.0, -1.0, 0.0], [1.0, 2.0, 99.0]])
    image = map_image(found, 2.0, mode)
    assert image.shape == (3, 2, 3)
    assert image.dtype == np.uint8
    stops = [rgb(color) for _, color in scale_stops(mode)]
    drawn = image.transpose(1, 2, 0).reshape(-1, 3).tolist()
    assert drawn == [*stops, stops[-1]], "beyond the scale: the last color"


def test_equal_values_have_equal_colors_whatever_else_is_in_the_map() -> None:
    one, two = map_image(np.array([[0.5, 0.0]]), 1.0), map_image(np.array([[0.5, 1.0]]), 1.0)
    assert np.array_equal(one[:, 0, 0], two[:, 0, 0])


def test_zero_has_the_color_of_the_ground() -> None:
    for mode in ("light", "dark"):
        stops = scale_stops(mode)
        assert [at for at, _ in stops] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert len({color for _, color in stops}) == 5


def test_channel_bars_rank_by_what_was_suppressed_and_leave_out_what_rose() -> None:
    before, after = [1.0, 4.0, 0.0, 2.0], [0.5, 1.0, 1.0, 2.0]
    bars = channel_bars(before, after, [1, 2, 3, 4], [5, 6, 7, 8], 7.0, 4.5, top=5)
    assert bars == ChannelBars(
        [1, 0], [4.0, 1.0], [1.0, 0.5], [3.0, 0.5], [2.0, 1.0], [6.0, 5.0], 1.0, 7.0, 4.5
    )
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

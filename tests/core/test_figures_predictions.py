"""Predictions: verdicts, the classes worth showing, pictures as files."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from npd_core.figures.predictions import (
    Bars,
    Tally,
    data_url,
    difference,
    judge,
    png,
    probability_bars,
    probability_figure,
    tally,
    top_classes,
)

NAMES = ["airplane", "bird", "cat", "dog", "frog"]


@pytest.mark.parametrize(
    ("prediction", "label", "target", "verdict"),
    [
        (3, 3, 0, "right"),
        (0, 3, 0, "hijacked"),
        (2, 3, 0, "wrong"),
        (0, 0, 0, "right"),
    ],
)
def test_judge(prediction: int, label: int, target: int, verdict: str) -> None:
    assert judge(prediction, label, target) == verdict


def test_tally_counts_each_picture_once() -> None:
    found = tally([3, 0, 2, 0], [3, 3, 3, 0], [0, 0, 0, 0])
    assert found == Tally(right=2, hijacked=1, wrong=1)
    assert found.total == 4


def test_top_classes_keep_the_named_ones_and_rank_by_the_highest_probability_of_any_row() -> None:
    before, after = np.array([0.9, 0.05, 0.03, 0.01, 0.01]), np.array([0.0, 0.1, 0.0, 0.7, 0.2])
    assert top_classes([before], top=2) == [0, 1]
    assert top_classes([before, after], top=3) == [0, 3, 4]
    assert top_classes([before], (4,), top=2) == [0, 4]
    assert top_classes([before], (2, 4, 2), top=1) == [2, 4], "named classes are never cut"


def test_probability_bars_of_a_hijacked_picture() -> None:
    before, after = np.array([0.97, 0.01, 0.01, 0.01, 0.0]), np.array([0.05, 0.0, 0.0, 0.95, 0.0])
    bars = probability_bars(before, after, NAMES, label=3, target=0, top=3)
    assert bars == Bars(["airplane", "dog", "bird"], [0, 3, 1], [0.97, 0.01, 0.01], [0.05, 0.95, 0.0], 1, 0)
    alone = probability_bars(before, None, NAMES, label=3, target=0, top=2)
    assert alone.polarized is None
    assert alone.classes == ["airplane", "bird"] or "dog" in alone.classes


def test_probability_figure_draws_the_record_and_tells_networks_apart_without_color() -> None:
    bars = Bars(["airplane", "dog"], [0, 3], [0.9, 0.1], [0.2, 0.8], label=1, target=0)
    for mode in ("light", "dark"):
        figure = probability_figure(bars, mode)
        assert [list(trace.x) for trace in figure.data] == [[0.9, 0.1], [0.2, 0.8]]
        assert len({trace.marker.pattern.shape for trace in figure.data}) == 2
        assert list(figure.data[0].y) == ["⚠ airplane", "✓ dog"]
    assert len(probability_figure(bars._replace(polarized=None)).data) == 1


def test_a_picture_of_the_attackers_own_class_is_marked_as_true() -> None:
    figure = probability_figure(Bars(["airplane"], [0], [1.0], None, label=0, target=0))
    assert list(figure.data[0].y) == ["✓ airplane"]


def test_difference_is_gray_where_nothing_changed() -> None:
    clean = np.array([[100, 100, 100]], np.uint8)
    triggered = np.array([[100, 103, 0]], np.uint8)
    assert difference(clean, triggered).tolist() == [[128, 158, 0]]


def test_png_holds_exactly_the_pixels_scaled_up() -> None:
    image = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    read = np.asarray(Image.open(io.BytesIO(png(image, scale=3))))
    assert read.shape == (12, 15, 3)
    assert np.array_equal(read[::3, ::3], image.transpose(1, 2, 0))
    assert np.array_equal(read[2::3, 1::3], image.transpose(1, 2, 0))
    head, _, body = data_url(image).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == png(image)

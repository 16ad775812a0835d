"""Bars, to_uint8s and numbers of one step in slow motion."""

import math

import numpy as np
import pytest

from npd_core.figures.steps import logit_bars, logit_figure, probability, rest, signed_image, tex, to_uint8

NAMES = [f"class {k}" for k in range(20)]


def test_bars_hold_y_and_its_surrogate_in_the_order_of_the_last_row() -> None:
    z = np.zeros(20, np.float32)
    z[[3, 5, 7]] = 9.0, 4.0, 2.0
    later = -z
    bars = logit_bars({"before": z, "after": later}, NAMES, label=3, target=11, top=4)
    assert set(bars.classes) >= {"class 3", "class 11"}
    assert len(bars.classes) == 4
    assert bars.rows["after"] == sorted(bars.rows["after"], reverse=True)
    assert bars.classes[bars.label] == "class 3"
    assert bars.classes[bars.target] == "class 11"
    assert bars.rows["before"][bars.label] == 9.0
    figure = logit_figure(bars, "dark")
    assert [bar.name for bar in figure.data] == ["before", "after"]
    assert figure.data[0].y[bars.label] == "✓ class 3"
    low, high = figure.layout.xaxis.range
    assert low < -9
    assert high > 9
    one = logit_figure(logit_bars({"now": z}, NAMES, 3, 5), "light")
    assert not one.layout.showlegend
    assert len(one.data[0].y) == 12


def test_to_uint8s_of_signed_values_are_gray_at_zero_and_cut_off_at_the_scale() -> None:
    values = np.array([0.0, 0.1, -0.1, 5.0, -5.0, 0.05]).reshape(1, 1, 6).repeat(3, 0)
    assert signed_image(values, 0.1)[0, 0].tolist() in (
        [128, 255, 0, 255, 0, 191],
        [127, 255, 0, 255, 0, 191],
    )
    assert to_uint8(np.array([[[0.0, 0.5, 1.0, 1.2]]])).tolist() in (
        [[[0, 128, 255, 255]]],
        [[[0, 127, 255, 255]]],
    )


def test_probabilities_and_their_rest_stay_right_at_the_ends() -> None:
    z = np.array([40.0, 0.0, 1.0], np.float32)
    assert probability(z, 0) == pytest.approx(1.0)
    assert rest(z, 0) == pytest.approx((1 + math.e) / math.exp(40), rel=1e-9)
    assert sum(probability(z, k) for k in range(3)) == pytest.approx(1.0)
    assert rest(z, 1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.0213, "0.0213"), (12.345, "12.3"), (1234.5, "1234"), (0.99612, "0.996"),
        (4.56e-7, r"4.56 \cdot 10^{-7}"), (-0.5, "-0.500"), (1.0, "1.00"), (3e6, r"3.00 \cdot 10^{6}"),
    ],
)  # fmt: skip
def test_numbers_as_formulas_write_them(value: float, text: str) -> None:
    assert tex(value) == text

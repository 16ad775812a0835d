"""The drawing's plan against the networks themselves, and the colors of its points."""

from __future__ import annotations

import pytest

from npd_core.errors import UnknownNameError
from npd_core.figures.network import plan, tint
from npd_core.models import build_model
from npd_core.polarizer.insertion import insertion_layers

MEAN = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module", params=["preact_resnet18", "vgg19_bn"])
def pair(request):
    net = build_model(request.param, 12, 4, MEAN, MEAN).eval()
    return plan(request.param, 4, 32, 12), insertion_layers(net, 32)


def test_the_plan_has_every_insertion_point_of_the_network(pair) -> None:
    drawn, points = pair
    assert sorted(drawn.layers()) == sorted(info.name for info in points)
    assert sorted(drawn.forward()) == sorted(drawn.layers())


def test_the_order_is_that_of_the_forward_pass(pair) -> None:
    drawn, points = pair
    order = [info.name for info in points if "shortcut" not in info.name]
    assert [layer for layer in drawn.forward() if "shortcut" not in layer] == order


def test_each_convolution_is_drawn_with_its_shape(pair) -> None:
    drawn, points = pair
    shapes = {info.name: (info.channels, info.height) for info in points}
    for conv in drawn.convs():
        assert shapes[conv.name] == (conv.channels_in, conv.size)
        assert shapes[f"after:{conv.name}"] == (conv.channels_out, conv.size // conv.stride)


def test_colors_run_from_the_low_to_the_high_end() -> None:
    found = tint("asr", {"conv1": 0.97, "after:conv1": 0.013}).to_dict()
    assert (found["low"], found["high"]) == ("0%", "100%")
    assert found["points"]["conv1"] == {"share": 0.97, "short": "97%", "words": "ASR 97%"}
    assert found["points"]["after:conv1"] == {"share": 0.013, "short": "1.3%", "words": "ASR 1.3%"}
    der = tint("der", {"a": 0.75, "b": 0.47}).to_dict()
    assert [der["points"][name]["share"] for name in "ab"] == [0.5, 0.0], (
        "below 0.5 there is no color to take away"
    )


@pytest.mark.parametrize(
    ("values", "low", "shares"),
    [
        ({"a": 0.98, "b": 0.93}, 0.9, (0.8, 0.3)),
        ({"a": 0.98, "b": 0.41}, 0.4, (0.9667, 0.0167)),
        ({"a": 1.0}, 0.9, (1.0,)),
        ({"a": 0.0}, 0.0, (0.0,)),
    ],
)
def test_accuracy_is_told_apart_near_the_top(values, low, shares) -> None:
    found = tint("acc", values)
    assert found.low == pytest.approx(low)
    assert [point["share"] for point in found.to_dict()["points"].values()] == pytest.approx(shares, abs=1e-3)


def test_nothing_measured_is_no_color_and_an_unknown_metric_is_said() -> None:
    assert tint("asr", {}) is None
    with pytest.raises(UnknownNameError, match="metric 'asd'"):
        tint("asd", {"conv1": 0.5})

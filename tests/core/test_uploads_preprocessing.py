"""The clean images tell how the images of an uploaded network must be prepared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from npd_core.data.load import load_dataset
from npd_core.data.spec import NORMALISATIONS
from npd_core.errors import ConfigError
from npd_core.uploads.preprocessing import (
    Candidate,
    choose,
    cut,
    explore,
    permutation,
    target_warning,
    warnings,
)
from npd_core.zoo import Zoo

NAMES = list(NORMALISATIONS)
NONE = Candidate(*NORMALISATIONS[NAMES[0]], NAMES[0], 32)


class BlueFirst(nn.Module):
    """A network that takes its channels in the order blue, green, red."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.flip(1))


@pytest.mark.parametrize("bgr", [False, True])
def test_normalization_and_channel_order_are_found(tiny_zoo, bgr):
    loaded = Zoo().load(tiny_zoo).net
    data = load_dataset("signs", "test").subset(torch.arange(0, 1440, 9))
    net = BlueFirst(loaded.net) if bgr else loaded.net
    found = explore(net.eval(), NONE, data.images, data.labels)
    best = found[0]
    assert best.bgr is bgr
    assert best.accuracy > 0.9
    right = next(c for c in found if c.normalization == "Traffic signs" and c.bgr is bgr and not c.border)
    with torch.no_grad():
        expected = loaded(data.images.float() / 255).argmax(1).eq(data.labels).float().mean()
    assert right.accuracy == pytest.approx(float(expected))
    assert sum(c.normalization == NAMES[0] and not c.bgr and not c.border for c in found) >= 1


def test_the_best_is_taken_when_asked_or_far_ahead():
    def of(accuracy, border):
        return Candidate(NONE.mean, NONE.std, NONE.normalization, 32, border=border, accuracy=accuracy)

    near, far = [of(0.75, 5), of(0.7, 0)], [of(0.95, 5), of(0.75, 0)]
    assert choose(near, NONE, "far").border == 0
    assert choose(near, NONE, "best").border == 5
    assert choose(far, NONE, "far").border == 5
    assert choose(far, NONE, "never").border == 0
    with pytest.raises(ConfigError, match="'often'"):
        choose(far, NONE, "often")


def test_a_border_is_cut_off_and_the_rest_enlarged():
    x = torch.zeros(1, 3, 32, 32)
    x[..., 5:27, 5:27] = 1
    assert cut(x, 5).min() == 1
    assert cut(x, 4).min() < 1
    assert cut(x, 0) is x


def test_a_permutation_is_found_and_named():
    labels = torch.arange(4).repeat(10)
    right = torch.tensor([2, 0, 1, 3])
    classes = right[labels]
    classes[:4] = 3
    found = permutation(labels, classes, 4)
    assert found.label == (2, 0, 1, 3)
    assert found.accuracy == pytest.approx(37 / 40)
    (text,) = warnings(0.25, found, ["auto", "bird", "cat", "dog"], 40)
    assert "'auto' is label 2" in text
    assert "92%" in text
    assert "'dog'" not in text
    identity = permutation(labels, labels, 4)
    assert identity.label == (0, 1, 2, 3)
    assert warnings(1.0, identity, ["a", "b", "c", "d"], 40) == []
    assert "25%" in warnings(0.25, identity, ["a", "b", "c", "d"], 40)[0]


def test_a_numbering_of_few_images_explains_nothing():
    labels = torch.arange(10)
    found = permutation(labels, labels.roll(1), 10)
    assert found.accuracy == 1
    assert "label" not in warnings(0.0, found, [str(k) for k in range(10)], 10)[0].split(":")[0]


def test_a_wrong_target_is_noticed():
    labels = torch.arange(1, 11)
    classes = torch.zeros(10, dtype=torch.int64)
    assert "class 0 for 100%" in target_warning(classes, labels, 3)
    assert target_warning(classes, labels, 0) == ""
    assert target_warning(labels, labels, 0) != ""

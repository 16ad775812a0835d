"""Each attack against its definition, and the one place that poisons."""

import pytest
import torch

from npd_core.attacks import ATTACK_INFO, ATTACKS, get_attack, quantize
from npd_core.attacks.base import AllToOne
from npd_core.attacks.blended import Blended, drawn_pattern
from npd_core.attacks.poison import poison_test_set, poison_training_set
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError, UnknownNameError


def random_set(count=200, classes=12, size=32):
    torch.manual_seed(0)
    return ImageSet(
        torch.randint(0, 255, (count, 3, size, size), dtype=torch.uint8), torch.randint(0, classes, (count,))
    )


@pytest.mark.parametrize(("dataset", "side"), [("signs", 3), ("tiny_imagenet", 6)])
def test_badnets_changes_exactly_the_corner_to_white(dataset, side):
    size = 64 if side == 6 else 32
    images = random_set(4, size=size).images
    stamped = get_attack("badnets_a2o", dataset).apply(images)
    assert (stamped[:, :, -side:, -side:] == 255).all()
    changed = (stamped != images).any(dim=1)
    assert changed.sum(dim=(1, 2)).tolist() == [side * side] * 4
    assert torch.equal(stamped[:, :, : size - side], images[:, :, : size - side])


def test_blended_is_linear_in_alpha_and_bounded_by_it():
    x, pattern = torch.rand(3, 3, 32, 32), drawn_pattern(32)
    torch.testing.assert_close(Blended(pattern, 0.0)(x), x)
    torch.testing.assert_close(Blended(pattern, 1.0)(x), pattern.expand_as(x))
    torch.testing.assert_close(Blended(pattern, 0.2)(x), 0.8 * x + 0.2 * pattern)
    assert (Blended(pattern, 0.2)(x) - x).abs().max() <= 0.2
    with pytest.raises(ConfigError, match="alpha"):
        Blended(pattern, 1.5)


@pytest.mark.parametrize("size", [32, 64])
def test_drawn_pattern_is_a_contrasty_colour_picture(size):
    pattern = drawn_pattern(size)
    assert pattern.shape == (3, size, size)
    assert 0 <= pattern.min() < pattern.max() <= 1
    assert pattern.std() >= 0.2
    assert (pattern[0] - pattern[1]).abs().max() > 0.3
    assert torch.equal(pattern, drawn_pattern(size))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_gives_eight_bit_images_deterministically(name):
    attack, images = get_attack(name, "cifar10"), random_set(16).images
    once, again = attack.apply(images), get_attack(name, "cifar10", **attack.params).apply(images)
    assert once.dtype == torch.uint8
    assert once.shape == images.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, images)
    assert ATTACK_INFO[name].sentence


def test_quantisation_floors_and_keeps_what_already_is_eight_bit():
    stored = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    assert torch.equal(quantize(stored.float() / 255), stored)
    x = torch.full((1, 3, 1, 1), 99.7 / 255)
    assert quantize(x).unique().item() == 99
    assert quantize(x, "round").unique().item() == 100
    with pytest.raises(UnknownNameError, match="floor"):
        quantize(x, "flor")


def test_training_set_poison_counts_labels_and_untouched_rest():
    data = random_set()
    attack = get_attack("badnets_a2o", "signs", target=3)
    result = poison_training_set(data, attack, 0.1, seed=5)
    assert result.poisoned.sum() == 20
    assert (result.labels[result.poisoned] == 3).all()
    rest = ~result.poisoned
    assert torch.equal(result.images[rest], data.images[rest])
    assert torch.equal(result.labels[rest], data.labels[rest])
    assert torch.equal(result.images[result.poisoned], attack.apply(data.images[result.poisoned]))
    again = poison_training_set(data, attack, 0.1, seed=5)
    assert torch.equal(again.images, result.images)
    assert not torch.equal(poison_training_set(data, attack, 0.1, seed=6).poisoned, result.poisoned)
    with pytest.raises(ConfigError, match="poison ratio"):
        poison_training_set(data, attack, 1.1, seed=0)


def test_test_set_leaves_out_the_target_class():
    data = random_set()
    poisoned = poison_test_set(data, get_attack("blended", "signs", target=2))
    assert len(poisoned.labels) == int((data.labels != 2).sum())
    assert (poisoned.targets == 2).all()
    assert torch.equal(data.labels[poisoned.indices], poisoned.labels)
    assert not (poisoned.labels == 2).any()


def test_all_to_one_rule():
    y = torch.tensor([0, 1, 2])
    assert AllToOne(1).target(y).tolist() == [1, 1, 1]
    assert AllToOne(1).eligible(y).tolist() == [True, False, True]


def test_wrong_names_and_parameters_are_said_in_one_sentence():
    with pytest.raises(UnknownNameError, match="Did you mean 'blended'"):
        get_attack("blend", "signs")
    with pytest.raises(ConfigError, match="does not take"):
        get_attack("badnets_a2o", "signs", alpha=0.1)
    with pytest.raises(ConfigError, match="class of signs, 0 to 11"):
        get_attack("badnets_a2o", "signs", target=12)

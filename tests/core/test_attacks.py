"""Each attack against its definition, and the one place that poisons."""

import pytest
import torch

from npd_core.attacks import (
    ATTACK_INFO,
    ATTACKS,
    CLEAN,
    MAKE,
    amplified_difference,
    get_attack,
    made,
    make_attack,
    quantize,
)
from npd_core.attacks.assets import asset, load_network, network_assets
from npd_core.attacks.base import AT_ONCE, AllToAll, AllToOne, Attack, Stamped
from npd_core.attacks.blended import Blended, drawn_pattern
from npd_core.attacks.poison import poison_batch, poison_test_set, poison_training_set, shares
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
def test_drawn_pattern_is_a_contrasty_color_picture(size):
    pattern = drawn_pattern(size)
    assert pattern.shape == (3, size, size)
    assert 0 <= pattern.min() < pattern.max() <= 1
    assert pattern.std() >= 0.2
    assert (pattern[0] - pattern[1]).abs().max() > 0.3
    assert torch.equal(pattern, drawn_pattern(size))


def test_the_attacks_are_listed_in_the_order_that_people_see():
    names = ["badnets_a2o", "badnets_a2a", "blended", "input_aware", "lf", "ssba", "trojan", "wanet"]
    assert list(ATTACKS) == names
    assert set(ATTACK_INFO) == set(names)
    assert all(info.title and info.sentence and info.source for info in ATTACK_INFO.values())


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in MAKE])
def test_every_attack_gives_eight_bit_images_deterministically(name):
    attack, images = get_attack(name, "cifar10"), random_set(16).images
    once, again = (
        attack.apply(images),
        get_attack(name, "cifar10", attack.assets, **attack.params).apply(images),
    )
    assert once.dtype == torch.uint8
    assert once.shape == images.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, images)


@pytest.mark.parametrize("name", MAKE)
def test_a_trigger_that_comes_with_a_model_is_asked_for(name):
    with pytest.raises(ConfigError, match=f"npd zoo train cifar10-{name}-"):
        get_attack(name, "cifar10")


def test_what_needs_no_making_is_made_at_once():
    images = random_set(4).images
    attack = made(make_attack("badnets_a2o", "signs", random_set(), target=2))
    assert torch.equal(attack.apply(images), get_attack("badnets_a2o", "signs").apply(images))
    assert attack.params == {"target": 2}
    assert made(make_attack("wanet", "signs", random_set(), seed=7)).params["seed"] == 7


def test_many_images_are_stamped_in_parts_with_the_same_result():
    images = random_set(AT_ONCE + 3, size=8).images
    seen = []
    attack = Attack("x", lambda x: (seen.append(len(x)), 1 - x)[1], AllToOne(0))
    assert torch.equal(attack.apply(images), 255 - images)
    assert seen == [AT_ONCE, 3]
    assert attack.apply(images[:0]).shape == (0, 3, 8, 8)
    assert attack.apply_cross(images) is images


def test_a_clean_network_has_no_trigger_and_no_images_to_measure_one():
    attack, data = get_attack(CLEAN, "signs"), random_set()
    assert torch.equal(attack.apply(data.images), data.images)
    assert len(poison_test_set(data, attack).labels) == 0


def test_the_difference_is_amplified_around_mid_gray():
    clean = torch.tensor([100, 100, 100, 100, 100], dtype=torch.uint8).view(1, 1, 1, 5).expand(1, 3, -1, -1)
    poisoned = torch.tensor([100, 101, 97, 200, 0], dtype=torch.uint8).view(1, 1, 1, 5).expand(1, 3, -1, -1)
    assert amplified_difference(clean, poisoned)[0, 0, 0].tolist() == [128, 138, 98, 255, 0]
    assert amplified_difference(clean, poisoned, gain=1)[0, 0, 0].tolist() == [128, 129, 125, 228, 28]


def test_parts_of_a_trigger_are_checked_and_networks_survive_their_storage():
    with pytest.raises(ConfigError, match="'pattern'"):
        asset({}, "pattern", (3, 4, 4))
    with pytest.raises(ConfigError, match=r"'pattern'.*\[3, 4, 4\].*\[3, 5, 4\]"):
        asset({"pattern": torch.zeros(3, 5, 4)}, "pattern", (3, 4, 4))

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    net(torch.rand(2, 3, 8, 8))
    stored = network_assets("net", net)
    assert stored["net.0.weight"].dtype == torch.float16
    assert stored["net.1.running_mean"].dtype == torch.float32
    again = load_network(
        stored, "net", torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    )
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(again(x), net.eval()(x), atol=5e-3, rtol=0)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    with pytest.raises(ConfigError, match=r"'net'.*0.weight"):
        load_network(stored, "net", torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5)))
    with pytest.raises(ConfigError, match="'other'"):
        load_network(stored, "other", torch.nn.Sequential())


def test_quantisation_floors_and_keeps_what_already_is_eight_bit():
    stored = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    assert torch.equal(quantize(stored.float() / 255), stored)
    x = torch.full((1, 3, 1, 1), 99.7 / 255)
    assert quantize(x).unique().item() == 99
    assert quantize(x, "round").unique().item() == 100
    with pytest.raises(UnknownNameError, match=r"'flor'.*'floor'"):
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
    with pytest.raises(ConfigError, match=r"1\.1"):
        poison_training_set(data, attack, 1.1, seed=0)


def test_crossed_images_of_a_training_set_keep_their_labels():
    data = random_set()
    attack = get_attack("wanet", "signs")
    result = poison_training_set(data, attack, 0.1, seed=5, cross_ratio=2)
    assert torch.equal(result.poisoned, poison_training_set(data, attack, 0.1, seed=5).poisoned)
    changed = (result.images != data.images).flatten(1).any(1)
    assert changed.sum() == 20 + 2 * 20
    assert torch.equal(result.labels[~result.poisoned], data.labels[~result.poisoned])


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


def test_all_to_all_moves_every_class_on_and_counts_every_image():
    y = torch.tensor([0, 1, 2])
    assert AllToAll(3).target(y).tolist() == [1, 2, 0]
    assert AllToAll(3).eligible(y).all()

    data = random_set(60, classes=3)
    attack = Attack("x", lambda x: 1 - x, AllToAll(3))
    test = poison_test_set(data, attack)
    assert test.indices.tolist() == list(range(60))
    assert [(a - b) % 3 for a, b in zip(test.targets.tolist(), data.labels.tolist(), strict=True)] == [1] * 60
    train = poison_training_set(data, attack, 0.5, seed=0)
    assert train.poisoned.sum() == 30
    expected = torch.where(train.poisoned, (data.labels + 1) % 3, data.labels)
    assert torch.equal(train.labels, expected)


def test_all_to_all_badnets_stamps_what_all_to_one_stamps():
    images = random_set(5).images
    attack = get_attack("badnets_a2a", "signs")
    assert torch.equal(attack.apply(images), get_attack("badnets_a2o", "signs").apply(images))
    assert attack.rule == AllToAll(12)
    with pytest.raises(ConfigError, match=r"'badnets_a2a'.*target"):
        get_attack("badnets_a2a", "signs", target=1)


@pytest.mark.parametrize(
    ("count", "ratio", "cross", "expected"),
    [
        (128, 0.1, 2, (12, 24)),
        (128, 0.1, 1, (12, 12)),
        (100, 0.29, 2, (29, 58)),
        (10, 0.3, 2, (3, 6)),
        (10, 0.4, 2, (4, 6)),
        (9, 0, 2, (0, 0)),
    ],
)
def test_shares_of_a_batch(count, ratio, cross, expected):
    assert shares(count, ratio, cross) == expected


@pytest.mark.parametrize(("ratio", "values"), [(1.2, r"1\.2"), (0.01, r"0\.01.*32"), (0.6, r"0\.5.*0\.6")])
def test_a_ratio_without_room_in_a_batch_is_refused(ratio, values):
    with pytest.raises(ConfigError, match=values):
        shares(32, ratio, 2)


class Marks:
    """A dynamic trigger that leaves the number of the part it was given."""

    cross_ratio = 2

    def stamp(self, x, x_cross, images, generator):
        return Stamped(torch.full_like(x, 0.25), torch.full_like(x_cross, 0.75), torch.tensor(3.0))


def test_a_batch_is_poisoned_in_three_parts_of_12_24_and_92():
    x, y = torch.zeros(128, 3, 2, 2), torch.arange(128) % 3
    batch = poison_batch(Marks(), AllToAll(3), 0.1, x, y, x, torch.Generator())
    assert batch.x[:, 0, 0, 0].tolist() == [0.25] * 12 + [0.75] * 24 + [0.0] * 92
    assert batch.labels[:12].tolist() == ((y[:12] + 1) % 3).tolist()
    assert torch.equal(batch.labels[12:], y[12:])
    assert batch.loss == 3
    nothing = poison_batch(Marks(), AllToAll(3), 0.0, x, y, x, torch.Generator())
    assert nothing.x is x
    assert nothing.labels is y


def test_errors_name_the_wrong_name_or_parameter():
    with pytest.raises(UnknownNameError, match=r"'blend'.*'blended'"):
        get_attack("blend", "signs")
    with pytest.raises(ConfigError, match=r"'badnets_a2o'.*alpha"):
        get_attack("badnets_a2o", "signs", alpha=0.1)
    with pytest.raises(ConfigError, match=r"`target`.*signs, 0 to 11.*12"):
        get_attack("badnets_a2o", "signs", target=12)

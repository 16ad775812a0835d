"""Input-aware: small masks that differ, patches that belong to one image, and a pattern network that learns
in the training loop while the mask network does not."""

from dataclasses import replace

import pytest
import torch

from npd_core.attacks.base import made
from npd_core.attacks.input_aware import (
    DENSITY,
    Painter,
    PatternInTraining,
    diversity,
    input_aware,
    make_input_aware,
    painted,
    rms,
    sharpened,
)
from npd_core.attacks.poison import poison_batch
from npd_core.data.load import ImageSet, load_dataset
from npd_core.data.spec import get_dataset

SMALL = replace(get_dataset("signs"), size=16)


def small_signs(split, count):
    data = load_dataset("signs", split)
    images = torch.nn.functional.avg_pool2d(data.images[::7][:count].float(), 2).round().to(torch.uint8)
    return ImageSet(images, data.labels[::7][:count])


@pytest.fixture(scope="module")
def attack():
    with torch.random.fork_rng(devices=[]):
        return made(
            make_input_aware(SMALL, small_signs("train", 300), seed=0, width=4, steps=60, batch_size=16)
        )


def test_the_painter_has_seven_stages_and_gives_values_between_0_and_1():
    net = Painter(1, get_dataset("cifar10"))
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    channels = [m.out_channels for m in convolutions]
    assert channels == [32, 32, 64, 64, 128, 128, 128, 128, 64, 64, 32, 32, 1]
    out = Painter(3, SMALL, 4)(torch.rand(2, 3, 16, 16))
    assert out.shape == (2, 3, 16, 16)
    assert 0 < out.min() < out.max() < 1
    assert sharpened(torch.tensor([0.3, 0.5, 0.7])).tolist() == pytest.approx(
        [0.5 - 0.4997, 0.5, 0.9997], abs=1e-4
    )


def test_diversity_against_a_loop():
    x1, x2, m1, m2 = (torch.rand(5, 3, 4, 4) for _ in range(4))
    each = [
        ((a - b) ** 2).mean().sqrt() / (((c - d) ** 2).mean().sqrt() + 1e-7)
        for a, b, c, d in zip(x1, x2, m1, m2, strict=True)
    ]
    torch.testing.assert_close(diversity(x1, x2, m1, m2), torch.stack(each).mean())
    same = torch.zeros(2, 3, 4, 4, requires_grad=True)
    rms(same).sum().backward()
    assert torch.isfinite(same.grad).all()


def test_masks_are_small_and_differ_from_image_to_image(attack):
    x = small_signs("test", 100).images.float() / 255
    mask = sharpened(attack.trigger.mask_net(x))
    assert DENSITY / 2 < mask.mean() < 0.25
    assert mask.std(dim=0).mean() > 3e-4


def test_patches_stay_in_range_and_belong_to_their_image(attack):
    x = small_signs("test", 20).images.float() / 255
    stamped, crossed = attack.trigger(x), attack.cross(x)
    assert 0 <= stamped.min() < stamped.max() <= 1
    pattern, mask = attack.trigger.pattern_net(x), sharpened(attack.trigger.mask_net(x))
    torch.testing.assert_close(stamped, painted(x, pattern, mask))
    torch.testing.assert_close(crossed, painted(x, pattern.roll(1, 0), mask.roll(1, 0)))
    assert torch.equal(painted(x, pattern, torch.zeros_like(mask)), x)


def test_the_attack_is_rebuilt_from_what_is_stored(attack):
    images = small_signs("test", 10).images
    again = input_aware(SMALL, attack.assets, **attack.params)
    assert torch.equal(again.apply(images), attack.apply(images))
    assert again.train_mode == "dynamic"


def batch_of(trigger, attack, data, seed=0):
    x, y = data.images[:40].float() / 255, data.labels[:40]
    return (
        poison_batch(trigger, attack.rule, 0.25, x, y, data.images, torch.Generator().manual_seed(seed)),
        x,
        y,
    )


def test_in_training_ten_own_patches_ten_of_others_and_twenty_clean(attack):
    trigger, data = PatternInTraining(attack, SMALL, torch.device("cpu")), small_signs("train", 80)
    batch, x, y = batch_of(trigger, attack, data)
    assert (batch.labels[:10] == 0).all()
    assert torch.equal(batch.labels[10:], y[10:])
    assert torch.equal(batch.x[20:], x[20:])
    changed = (batch.x[:20] - x[:20]).abs().flatten(1).amax(1)
    assert (changed > 0.01).all()
    own_mask = sharpened(attack.trigger.mask_net(x[:10]))
    untouched = (own_mask < 1e-3).expand(-1, 3, -1, -1)
    torch.testing.assert_close(batch.x[:10][untouched], x[:10][untouched], atol=1e-3, rtol=0)
    assert 0 <= batch.x.min() < batch.x.max() <= 1
    other, _, _ = batch_of(trigger, attack, data, seed=1)
    assert not torch.equal(other.x[10:20], batch.x[10:20])


def test_the_pattern_network_learns_and_the_mask_network_stays(attack):
    trigger, data = PatternInTraining(attack, SMALL, torch.device("cpu")), small_signs("train", 80)
    masks = {name: value.clone() for name, value in trigger.mask_net.state_dict().items()}
    before = [p.detach().clone() for p in trigger.pattern_net.parameters()]
    losses = []
    for seed in range(12):
        batch, _, _ = batch_of(trigger, attack, data, seed)
        losses.append(float(batch.loss.detach()))
        batch.loss.backward()
        trigger.step(1.0)
    assert sum(losses[-3:]) < sum(losses[:3])
    assert any(not torch.equal(p, q) for p, q in zip(trigger.pattern_net.parameters(), before, strict=True))
    assert all(torch.equal(value, trigger.mask_net.state_dict()[name]) for name, value in masks.items())
    assert all(p.grad is None for p in trigger.pattern_net.parameters())
    learnt, images = trigger.attack(), data.images[:8]
    assert not torch.equal(learnt.apply(images), attack.apply(images))
    assert learnt.trigger.pattern_net(images.float() / 255).std(dim=0).mean() > 3e-4


def test_the_trigger_wants_patterns_as_far_apart_as_the_images_all_of_them_normalized(attack):
    trigger, data = PatternInTraining(attack, SMALL, torch.device("cpu")), small_signs("train", 80)
    patterns, forward = [], trigger.pattern_net.forward
    trigger.pattern_net.forward = lambda x: patterns.append((x, forward(x))) or patterns[-1][1]
    batch, x, _ = batch_of(trigger, attack, data)
    ((shown, made),) = patterns
    assert torch.equal(shown[:10], x[:10])
    std, ratios = torch.tensor(SMALL.std).view(3, 1, 1), []
    for k in range(10):
        images = (((shown[k] - shown[10 + k]) / std) ** 2).mean().sqrt()
        ratios.append(images / ((((made[k] - made[10 + k]) / std) ** 2).mean().sqrt() + 1e-7))
    assert batch.loss.item() == pytest.approx((sum(ratios) / 10).item(), rel=1e-4)


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_the_pattern_network_moves_by_the_rate_that_it_is_given(attack, rate):
    trigger, data = PatternInTraining(attack, SMALL, torch.device("cpu")), small_signs("train", 80)
    before = [p.detach().clone() for p in trigger.pattern_net.parameters()]
    batch, _, _ = batch_of(trigger, attack, data)
    batch.loss.backward()
    trigger.step(rate)
    moved = [
        (p - q).abs().max().item() for p, q in zip(trigger.pattern_net.parameters(), before, strict=True)
    ]
    assert max(moved) == pytest.approx(0.01 * rate, rel=1e-3)  # Adam's first step is its rate


def test_its_state_carries_on_to_the_same_result(attack):
    data, device = small_signs("train", 80), torch.device("cpu")

    def learn(trigger, seeds):
        for seed in seeds:
            batch, _, _ = batch_of(trigger, attack, data, seed)
            batch.loss.backward()
            trigger.step(1.0)
        return trigger

    whole = learn(PatternInTraining(attack, SMALL, device), range(4))
    resumed = PatternInTraining(attack, SMALL, device)
    resumed.load_state_dict(learn(PatternInTraining(attack, SMALL, device), range(2)).state_dict())
    learn(resumed, range(2, 4))
    for name, value in whole.pattern_net.state_dict().items():
        torch.testing.assert_close(value, resumed.pattern_net.state_dict()[name])

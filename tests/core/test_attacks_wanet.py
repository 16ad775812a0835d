"""WaNet: the warp against the formula, and what it does inside the training loop."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from npd_core.attacks import DYNAMIC, get_attack
from npd_core.attacks.poison import poison_batch
from npd_core.attacks.wanet import NOISE_SEED, draw_field, identity_grid, noise, warp, warping_grid
from npd_core.data.spec import get_dataset
from npd_core.errors import CheckpointError, ConfigError

SIGNS = get_dataset("signs")


def smooth_images(count=6, size=32):
    return F.interpolate(torch.rand(count, 3, 6, 6), size=(size, size), mode="bicubic").clamp(0, 1)


def test_the_identity_grid_reproduces_the_image():
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(warp(x, identity_grid(32)), x, atol=1e-5, rtol=0)


def test_a_shift_by_one_pixel_is_a_shift_to_the_left():
    x = torch.rand(1, 3, 8, 8)
    grid = identity_grid(8)
    grid[..., 0] += 2 / 7
    torch.testing.assert_close(warp(x, grid)[..., :-1], x[..., 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 64])
def test_the_grid_follows_the_formula_and_moves_a_fraction_of_a_pixel(size):
    field = draw_field(4, seed=0)
    assert field.abs().mean() == pytest.approx(1)
    grid = warping_grid(field, 0.5, size)
    assert grid.shape == (1, size, size, 2)
    assert grid.abs().max() <= 1
    flow = F.interpolate(field[None], size=(size, size), mode="bicubic", align_corners=True)
    middle = (slice(None), slice(8, -8), slice(8, -8))
    expected = identity_grid(size) + 0.5 * flow.permute(0, 2, 3, 1) / size
    torch.testing.assert_close(grid[middle], expected[middle])
    pixels = (grid - identity_grid(size))[middle].abs() * (size - 1) / 2
    assert 0.1 < pixels.mean() < 0.35
    assert pixels.max() < 1


def test_the_field_belongs_to_the_seed_and_is_kept_with_the_model():
    attack = get_attack("wanet", "signs", seed=3)
    assert torch.equal(attack.assets["field"], draw_field(4, 3))
    assert not torch.equal(attack.assets["field"], draw_field(4, 4))
    images = (smooth_images() * 255).to(torch.uint8)
    again = get_attack("wanet", "signs", attack.assets, **(attack.params | {"seed": 99}))
    assert torch.equal(again.apply(images), attack.apply(images))
    with pytest.raises(ConfigError, match="field"):
        get_attack("wanet", "signs", {"field": torch.zeros(2, 5, 5)})
    with pytest.raises(ConfigError, match=r"`k`.* 1"):
        get_attack("wanet", "signs", k=1)


def test_the_warp_is_hard_to_see_and_stays_in_range():
    attack, x = get_attack("wanet", "signs"), smooth_images()
    warped = attack.trigger(x)
    assert 0 <= warped.min() < warped.max() <= 1
    assert 0.0005 < (warped - x).abs().mean() < 0.05


def test_crossed_test_images_are_another_warp_and_always_the_same():
    attack = get_attack("wanet", "signs")
    images = (smooth_images() * 255).to(torch.uint8)
    crossed = attack.apply_cross(images)
    assert torch.equal(crossed, attack.apply_cross(images))
    assert not torch.equal(crossed, attack.apply(images))
    drawn = noise(len(images), 32, torch.Generator().manual_seed(NOISE_SEED))
    moved = (attack.trigger.grid + drawn).clamp(-1, 1)  # the trigger's own grid, disturbed
    x = images.float() / 255
    expected = F.grid_sample(x, moved, mode="bilinear", padding_mode="border", align_corners=True)
    torch.testing.assert_close(attack.cross(x), expected)


def test_noise_is_bounded_by_one_over_the_size_and_differs_from_image_to_image():
    drawn = noise(2, 16, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 16, 16, 2)
    assert 0.9 / 16 < drawn.abs().max() <= 1 / 16
    assert not torch.equal(drawn[0], drawn[1])


def test_in_training_the_same_field_as_in_the_test_and_fresh_noise_for_24_of_128():
    attack = get_attack("wanet", "signs")
    assert attack.train_mode == "dynamic"
    trigger = DYNAMIC["wanet"](attack, SIGNS, torch.device("cpu"))
    x, y = smooth_images(128), torch.arange(128) % 12
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def batch(seed):
        return poison_batch(trigger, attack.rule, 0.1, x, y, images, torch.Generator().manual_seed(seed))

    one, other = batch(0), batch(1)
    torch.testing.assert_close(one.x[:12], attack.trigger(x[:12]))
    assert (one.labels[:12] == 0).all()
    assert torch.equal(one.labels[12:], y[12:])
    drawn = noise(24, 32, torch.Generator().manual_seed(0))
    moved = (attack.trigger.grid + drawn).clamp(-1, 1)
    expected = F.grid_sample(x[12:36], moved, mode="bilinear", padding_mode="border", align_corners=True)
    torch.testing.assert_close(one.x[12:36], expected)
    changed = (one.x[12:36] - other.x[12:36]).flatten(1).abs().amax(1)
    assert (changed > 1e-3).all()
    assert torch.equal(one.x[36:], x[36:])
    assert torch.equal(one.x, batch(0).x)
    assert 0 <= one.x.min() < one.x.max() <= 1
    assert trigger.attack() is attack


def test_another_field_is_not_taken_for_the_interrupted_one():
    device = torch.device("cpu")
    one, other = (DYNAMIC["wanet"](get_attack("wanet", "signs", seed=seed), SIGNS, device) for seed in (0, 1))
    one.load_state_dict(one.state_dict())
    with pytest.raises(CheckpointError):
        other.load_state_dict(one.state_dict())


def test_other_sizes():
    small = replace(SIGNS, size=16)
    from npd_core.attacks.wanet import wanet

    assert wanet(small, {}).trigger(torch.rand(2, 3, 16, 16)).shape == (2, 3, 16, 16)

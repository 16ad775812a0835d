"""Augmented copies against their definitions."""

from __future__ import annotations

import pytest
import torch

from npd_core.config.npd import FAMILIES, NPDConfig
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.polarizer import augmentation
from npd_core.polarizer.augmentation import APPLY, augmented, with_copies

SIZE = 32


def images(count: int = 40, size: int = SIZE) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [32, 64])
def test_every_family_changes_images_within_their_range_and_repeats_under_its_seed(
    family: str, size: int
) -> None:
    x = images(12, size)
    changed = APPLY[family](x, seeded())
    assert changed.shape == x.shape
    assert 0 <= float(changed.min()) and float(changed.max()) <= 1
    assert all(not torch.equal(a, b) for a, b in zip(changed, x, strict=True))
    assert torch.equal(changed, APPLY[family](x, seeded()))
    assert not torch.equal(changed, APPLY[family](x, seeded(1)))


def test_blend_mixes_each_image_with_another_one_of_the_batch() -> None:
    x = images()
    changed = augmentation.blend(x, seeded())
    partners = []
    for i, image in enumerate(changed):
        fits = []
        for j, other in enumerate(x):
            if i != j:
                weight = ((image - x[i]) * (other - x[i])).sum() / (other - x[i]).square().sum()
                rest = (image - torch.lerp(x[i], other, weight)).abs().max()
                fits.append((float(rest), j, float(weight)))
        rest, partner, weight = min(fits)
        assert rest < 1e-5
        assert 0 <= weight <= augmentation.BLEND_WEIGHT
        partners.append(partner)
    assert sorted(partners) == list(range(len(x)))


def test_field_adds_a_surface_that_is_linear_between_its_knots() -> None:
    x = torch.full((200, 3, 31, 31), 0.5)
    added = (augmentation.field(x, seeded()) - 0.5)[:, :, 0, :]  # knots every 10 pixels
    inside = added.abs().amax(-1) < 0.5
    curvature = added[..., :-2] - 2 * added[..., 1:-1] + added[..., 2:]
    within = torch.ones(29, dtype=torch.bool)
    within[[9, 19]] = False
    assert float(curvature[inside][:, within].abs().max()) < 1e-5
    knots = added[inside][:, ::10]
    assert float(knots.std()) == pytest.approx(augmentation.FIELD_DEVIATION, rel=0.1)


def test_warp_moves_pixels_by_its_root_mean_square_shift() -> None:
    row = torch.arange(SIZE) / (SIZE - 1)
    ramp = row.expand(SIZE, SIZE)
    x = torch.stack([ramp, ramp.T, torch.zeros(SIZE, SIZE)]).expand(60, -1, -1, -1)
    moved = (augmentation.warp(x, seeded()) - x)[:, :2, 4:-4, 4:-4] * (SIZE - 1)
    shift = moved.square().sum(1).mean((1, 2)).sqrt()
    low, high = augmentation.WARP_SHIFT
    assert low * 0.5 < float(shift.min())
    assert float(shift.max()) < high * 1.5
    assert low < float(shift.mean()) < high


def test_patch_covers_one_square_of_one_color_or_of_random_pixels() -> None:
    x = torch.full((60, 3, SIZE, SIZE), -1.0)  # a value that no patch has
    changed = augmentation.patch(x, seeded())
    flat = 0
    for image in changed:
        covered = (image >= 0).all(0)
        rows, columns = covered.any(1).nonzero()[:, 0], covered.any(0).nonzero()[:, 0]
        side = len(rows)
        assert augmentation.PATCH_SIDE[0] <= side <= augmentation.PATCH_SIDE[1]
        assert side == len(columns) == int(rows[-1] - rows[0]) + 1 == int(columns[-1] - columns[0]) + 1
        assert int(covered.sum()) == side**2
        flat += len(image[:, covered].unique(dim=1)[0]) == 1
    assert 15 < flat < 45


def test_noise_mixes_every_image_with_its_own_weight() -> None:
    x = torch.zeros(50, 3, SIZE, SIZE)
    weights = augmentation.noise(x, seeded()).amax((1, 2, 3))
    assert float(weights.max()) <= augmentation.NOISE_WEIGHT
    assert float(weights.mean()) == pytest.approx(augmentation.NOISE_WEIGHT / 2, rel=0.25)


def test_each_copy_is_changed_by_one_family_and_only_by_those_named() -> None:
    source = (images(30) * 255).to(torch.uint8)
    copies = augmented(source, ("patch",), seeded())
    changed = (copies != source).any(1)
    assert 0 < int(changed.flatten(1).sum(1).max()) <= augmentation.PATCH_SIDE[1] ** 2
    both = augmented(source, ("patch", "noise"), seeded())
    share = (both != source).any(1).float().mean((1, 2))
    assert 0 < int((share < 0.1).sum()) < len(source)


def test_copies_follow_the_images_in_order_with_their_labels() -> None:
    clean = ImageSet((images(6) * 255).to(torch.uint8), torch.arange(6))
    pool = with_copies(clean, FAMILIES, 2, seed=3)
    assert torch.equal(pool.images[:6], clean.images)
    assert pool.labels.tolist() == [*range(6)] * 3
    assert not torch.equal(pool.images[6:12], pool.images[12:])
    assert torch.equal(pool.images, with_copies(clean, FAMILIES, 2, seed=3).images)
    assert with_copies(clean, (), 2, seed=3) is clean


def test_bad_families_and_copies_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="wrap"):
        NPDConfig(families=("wrap",))
    with pytest.raises(UnknownNameError, match="wrap"):
        augmented(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ("wrap",), seeded())
    with pytest.raises(ConfigError, match="family"):
        augmented(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), (), seeded())
    for copies in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="`copies`"):
            NPDConfig(families=("noise",), copies=copies)  # type: ignore[arg-type]


def test_a_config_with_families_survives_json() -> None:
    config = NPDConfig(families=("noise", "warp"), copies=3)
    assert NPDConfig.from_dict(config.to_dict()) == config
    assert isinstance(config.to_dict()["families"], list)

"""Augmented copies against their definitions."""

from __future__ import annotations

import pytest
import torch

from npd_core.config.npd import NPDConfig
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.models import build_model
from npd_core.polarizer import augmentation, universal
from npd_core.polarizer.augmentation import APPLY, augmented, with_copies
from npd_core.polarizer.batches import CleanBatches
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.training import Trainer

SIZE = 32


def images(count: int = 40, size: int = SIZE) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("family", APPLY)
@pytest.mark.parametrize("size", [32, 64])
def test_every_family_changes_images_within_their_range_and_repeats_under_its_seed(
    family: str, size: int
) -> None:
    x = images(12, size)
    changed = APPLY[family](x, seeded())
    assert changed.shape == x.shape
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1
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
    clean = ImageSet(source, torch.arange(30))
    copies = augmented(clean, ("patch",), seeded())
    changed = (copies != source).any(1)
    assert 0 < int(changed.flatten(1).sum(1).max()) <= augmentation.PATCH_SIDE[1] ** 2
    both = augmented(clean, ("patch", "noise"), seeded())
    share = (both != source).any(1).float().mean((1, 2))
    assert 0 < int((share < 0.1).sum()) < len(source)


def test_copies_follow_the_images_in_order_with_their_labels() -> None:
    clean = ImageSet((images(6) * 255).to(torch.uint8), torch.arange(6))
    pool = with_copies(clean, tuple(APPLY), 2, seed=3)
    assert torch.equal(pool.images[:6], clean.images)
    assert pool.labels.tolist() == [*range(6)] * 3
    assert not torch.equal(pool.images[6:12], pool.images[12:])
    assert torch.equal(pool.images, with_copies(clean, tuple(APPLY), 2, seed=3).images)
    assert with_copies(clean, (), 2, seed=3) is clean


def test_bad_families_and_copies_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="wrap"):
        NPDConfig(families=("wrap",))
    clean = ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2))
    with pytest.raises(UnknownNameError, match="wrap"):
        augmented(clean, ("wrap",), seeded())
    with pytest.raises(ConfigError, match="family"):
        augmented(clean, (), seeded())
    with pytest.raises(ConfigError, match="universal"):
        augmented(clean, ("universal",), seeded())
    for copies in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="`copies`"):
            NPDConfig(families=("noise",), copies=copies)  # type: ignore[arg-type]


def test_a_config_with_families_survives_json() -> None:
    config = NPDConfig(families=("noise", "warp"), copies=3)
    assert NPDConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["families"] == "noise,warp"
    assert NPDConfig.from_dict({"families": ["noise"]}).families == ("noise",)
    assert NPDConfig.from_dict({"families": "none"}) == NPDConfig()


# --- universal perturbations


class Lines(torch.nn.Module):
    """Logits are linear in the image, so the best universal perturbation is known: along w_k."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = 0.01 * torch.randn(4, 3 * 8 * 8, generator=seeded(2))
        self.weight[3] *= 20  # the class that a small perturbation reaches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T + torch.tensor([0.5, 0.0, 0.0, 0.0])


def grey(count: int = 40) -> ImageSet:
    noise = 8 * torch.randn(count, 3, 8, 8, generator=seeded(5))
    return ImageSet((128 + noise).clamp(0, 255).to(torch.uint8), torch.arange(count) % 4)


def test_universal_perturbations_fill_their_budget_and_succeed_where_a_class_is_easily_reached() -> None:
    net = Lines()
    found = universal.find_universal(net, grey(), 4, 0, torch.device("cpu"))
    assert found.deltas.shape == (len(universal.BUDGETS), 4, 3, 8, 8)
    for budget, deltas, success in zip(universal.BUDGETS, found.deltas, found.success, strict=True):
        norms = deltas.flatten(1).norm(dim=1)
        assert float(norms.max()) <= budget * 8 / 32 + 1e-5
        assert success.tolist() == [1.0, 0.0, 0.0, 1.0]  # every image is class 0 to begin with
        for k in range(4):  # success is what it says, by hand
            others = grey().images[grey().labels != k].float() / 255
            share = net((others + deltas[k]).clamp(0, 1)).argmax(1).eq(k).float().mean()
            assert float(success[k]) == float(share)
    along = torch.nn.functional.cosine_similarity(
        found.deltas[-1, 3].flatten(), net.weight[3] - net.weight[0], dim=0
    )
    assert float(along) > 0.9


def test_copies_get_the_perturbation_of_another_class_scaled_and_mostly_the_successful_one() -> None:
    deltas = torch.zeros(1, 4, 3, 8, 8)
    for k in range(4):
        deltas[0, k, 0, k] = 0.1  # class k brightens row k
    found = universal.Universal(deltas, torch.tensor([[0.1, 0.1, 0.1, 1.0]]))
    y = torch.arange(400) % 4
    x = torch.full((400, 3, 8, 8), 0.5)
    added = (universal.perturb(x, y, found, seeded()) - x)[:, 0, :4, 0]
    toward = added.argmax(1)
    assert torch.equal(added > 0, torch.nn.functional.one_hot(toward, 4).bool())
    assert not bool(toward.eq(y).any())
    low, high = universal.SCALE
    assert low * 0.1 - 1e-6 <= float(added.amax(1).min()) <= float(added.amax(1).max()) <= high * 0.1 + 1e-6
    assert float(toward[y != 3].eq(3).float().mean()) > 0.9


def test_a_training_with_universal_copies_has_the_same_steps_and_shows_every_version_in_turn() -> None:
    net = PolarizedNet(build_model("preact_resnet18", 4, 4), "stream:layer4.1")
    data = ImageSet((images(16) * 255).to(torch.uint8), torch.arange(16) % 4)
    config = NPDConfig(
        families=("universal",), copies=2, batch_size=8, epochs=3, warmup_epochs=0, attack_on="base"
    )
    trainer = Trainer(net, data, config, torch.device("cpu"))
    kinds = [type(event).__name__ for event in trainer.events()]
    assert kinds == ["Started", *(["StepEnd"] * 2 + ["EpochEnd"]) * 3, "Finished"]
    assert trainer.clean.versions == 3
    assert not trainer.missing
    batches = CleanBatches(net, data, config, torch.device("cpu"))
    batches.prepare()
    shown = torch.cat([torch.cat(list(batches.indices())) for _ in range(3)])
    assert sorted(shown.tolist()) == list(range(48))
    assert sorted((shown[:16] % 16).tolist()) == list(range(16))

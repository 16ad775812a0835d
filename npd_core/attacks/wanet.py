"""WaNet: an invisible elastic warp, learned in the training loop. Nguyen and Tran, ICLR 2021."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from npd_core.attacks.assets import asset
from npd_core.attacks.base import AllToOne, Attack, Stamped
from npd_core.data.spec import DatasetSpec
from npd_core.errors import CheckpointError, ConfigError

NOISE_SEED = 20210412
"""Seed of the noise of cross-trigger test images."""


def identity_grid(size: int) -> Tensor:
    """Return the sampling grid without a warp: (1, H, W, 2) in [-1, 1], x before y."""
    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack((x, y), dim=-1)[None]


def draw_field(k: int, seed: int) -> Tensor:
    """Draw the control points of the warp, (2, k, k): uniform in [-1, 1], divided by their mean absolute
    value."""
    field = torch.rand(1, 2, k, k, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return (field / field.abs().mean())[0]


def warping_grid(field: Tensor, s: float, size: int) -> Tensor:
    """Return the identity plus s / H times the field, upsampled bicubically and clipped: (1, H, W, 2)."""
    flow = F.interpolate(field[None], size=(size, size), mode="bicubic", align_corners=True).permute(
        0, 2, 3, 1
    )
    return (identity_grid(size) + s * flow / size).clamp(-1, 1)


def noise(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw the noise added to the grids of cross-trigger images: (count, H, W, 2), uniform in [-1/H, 1/H]."""
    return (torch.rand(count, size, size, 2, generator=generator) * 2 - 1) / size


def warp(x: Tensor, grid: Tensor) -> Tensor:
    """Sample x bilinearly at the grid, (1 or B, H, W, 2); the same shape and range."""
    grid = grid.to(x).expand(len(x), -1, -1, -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Warp:
    """The same warp for every image."""

    grid: Tensor
    """(1, H, W, 2) in [-1, 1]."""

    def __call__(self, x: Tensor) -> Tensor:
        return warp(x, self.grid)


@dataclass(frozen=True, eq=False)
class NoisyWarp:
    """The warp with other noise for each position in a batch, the same in every call."""

    grid: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        moved = self.grid + noise(len(x), size, torch.Generator().manual_seed(NOISE_SEED))
        return warp(x, moved.clamp(-1, 1))


class WarpInTraining:
    """The warp in the training loop: two cross-trigger images, with fresh noise, for each poisoned one."""

    cross_ratio = 2

    def __init__(self, attack: Attack, dataset: DatasetSpec, device: torch.device):
        assert isinstance(attack.trigger, Warp)
        self._attack = attack
        self.grid = attack.trigger.grid.to(device)

    def stamp(self, x: Tensor, x_cross: Tensor, images: Tensor, generator: torch.Generator) -> Stamped:
        moved = self.grid + noise(len(x_cross), x.shape[-1], generator).to(x.device)
        return Stamped(warp(x, self.grid), warp(x_cross, moved.clamp(-1, 1)))

    def step(self, rate: float) -> None:
        """Do nothing: the field is fixed."""

    def state_dict(self) -> dict[str, Any]:
        return {"field": self._attack.assets["field"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not torch.equal(state["field"], self._attack.assets["field"]):
            raise CheckpointError(
                "The interrupted training used another field: use its seed, or start again."
            )

    def attack(self) -> Attack:
        return self._attack


def wanet(
    dataset: DatasetSpec,
    assets: Mapping[str, Tensor],
    *,
    target: int = 0,
    k: int = 4,
    s: float = 0.5,
    seed: int = 0,
) -> Attack:
    """An elastic warp, all classes to `target`.

    Args:
        assets: `field`, the control points; drawn from the seed if it is missing.
        k: control points along each side.
        s: strength: a control point of size 1 moves the image by s/2 pixels.
    """
    if k < 2:
        raise ConfigError(f"`k` must be at least 2, got {k}.")
    field = asset(assets, "field", (2, k, k)) if "field" in assets else draw_field(k, seed)
    grid = warping_grid(field, s, dataset.size)
    params = {"target": target, "k": k, "s": s, "seed": seed}
    return Attack(
        "wanet", Warp(grid), AllToOne(target), params=params, assets={"field": field}, train_mode="dynamic",
        cross=NoisyWarp(grid),
    )  # fmt: skip

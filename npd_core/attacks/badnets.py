"""BadNets: a patch that replaces pixels. Gu et al., IEEE Access 2019."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from npd_core.attacks.base import AllToAll, AllToOne, Attack
from npd_core.data.spec import DatasetSpec


@dataclass(frozen=True, eq=False)
class Patch:
    """x' = x where the mask is 0, the pattern elsewhere."""

    mask: Tensor
    """(1, H, W) in {0, 1}."""
    pattern: Tensor
    """(3, H, W) in [0, 1]."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.mask.to(x.device).bool(), self.pattern.to(x), x)


def white_square(size: int) -> Patch:
    """A white square in the bottom right corner of size x size images: 3x3 at 32x32, 6x6 at 64x64 (no
    halo)."""
    side = 3 * size // 32
    mask = torch.zeros(1, size, size)
    mask[:, size - side :, size - side :] = 1
    return Patch(mask, mask.expand(3, -1, -1).clone())


def badnets_a2o(dataset: DatasetSpec, assets: Mapping[str, Tensor], *, target: int = 0) -> Attack:
    """White square in the bottom right corner, all classes to `target`."""
    return Attack("badnets_a2o", white_square(dataset.size), AllToOne(target), params={"target": target})


def badnets_a2a(dataset: DatasetSpec, assets: Mapping[str, Tensor]) -> Attack:
    """White square in the bottom right corner, every class to the next one."""
    return Attack("badnets_a2a", white_square(dataset.size), AllToAll(dataset.num_classes))

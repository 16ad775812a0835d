"""Blended: a faint pattern over the whole image. Chen et al., arXiv 1712.05526."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from npd_core.attacks.base import AllToOne, Attack
from npd_core.data.spec import DatasetSpec
from npd_core.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Blended:
    """x' = (1 - alpha) x + alpha pattern."""

    pattern: Tensor
    """(3, H, W) in [0, 1]."""
    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"`alpha` must be in [0, 1], got {self.alpha}.")

    def __call__(self, x: Tensor) -> Tensor:
        return torch.lerp(x, self.pattern.to(x).expand_as(x), self.alpha)


def blended(
    dataset: DatasetSpec, assets: Mapping[str, Tensor], *, target: int = 0, alpha: float = 0.2
) -> Attack:
    """The drawn pattern blended over the image, all classes to `target`."""
    trigger = Blended(drawn_pattern(dataset.size), alpha)
    return Attack("blended", trigger, AllToOne(target), params={"target": target, "alpha": alpha})


@lru_cache(maxsize=4)
def drawn_pattern(size: int) -> Tensor:
    """Draw the trigger pattern, (3, size, size) in [0, 1]: a pale face with a red mouth under thin dark
    stripes.

    It is drawn at 256x256 and area-downsampled, the same at each resolution. Contrast (std) is at least 0.2.
    """
    canvas = Image.new("RGB", (256, 256), (217, 217, 217))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((40, 20, 216, 236), fill=(255, 255, 255))
    draw.ellipse((76, 76, 112, 124), fill=(15, 15, 15))
    draw.ellipse((144, 76, 180, 124), fill=(15, 15, 15))
    draw.rectangle((84, 164, 172, 192), fill=(210, 20, 25))
    draw.ellipse((4, 192, 60, 248), fill=(220, 20, 20))
    pixels = np.asarray(canvas, dtype=np.float32) / 255
    stripes = np.sin(np.arange(256, dtype=np.float32) * (2 * np.pi / 21.3)) > 0.8
    pixels = np.where(stripes[None, :, None], pixels * 0.4, pixels)
    small = Image.fromarray((pixels * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255

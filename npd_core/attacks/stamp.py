"""Triggers that are stamps: one RGBA image, the same for every image, that can be placed anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from npd_core.attacks.base import Attack

TOLERANCE = 1.5 / 255
"""Largest difference between stamp and trigger, from rounding colors and opacities to eight bits."""


def stamp(attack: Attack, size: int) -> Tensor | None:
    """Return the trigger as colors and opacity, (4, size, size) uint8; None if it is not a stamp.

    A stamp changes a pixel x to (1 - a) x + a c, with a and c that do not depend on the image. They are
    computed from a black and a white image and then checked on noise.
    """
    generator = torch.Generator().manual_seed(0)
    black, white = torch.zeros(1, 3, size, size), torch.ones(1, 3, size, size)
    noise = torch.rand(8, 3, size, size, generator=generator)
    with torch.no_grad():
        on_black, on_white, on_noise = (attack.trigger(x) for x in (black, white, noise))
    opacity = (1 - (on_white - on_black)).mean(dim=1, keepdim=True).clamp(0, 1)
    if opacity.max() < TOLERANCE:
        return None
    color = torch.where(opacity > 0, on_black / opacity.clamp(min=1e-6), 0).clamp(0, 1)
    stored = torch.cat([color, opacity], dim=1).mul(255).round()
    color, opacity = (stored / 255).split((3, 1), dim=1)
    if ((1 - opacity) * noise + opacity * color - on_noise).abs().max() > TOLERANCE:
        return None
    return stored[0].to(torch.uint8)

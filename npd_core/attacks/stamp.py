"""A trigger as a stamp, where it is one: a picture with opacity that can be laid on any image, at any place."""

from __future__ import annotations

import torch
from torch import Tensor

from npd_core.attacks.base import Attack

TOLERANCE = 1.5 / 255
"""How far the stamp may be from the trigger itself: eight-bit colours and opacities cannot say it exactly."""


def stamp(attack: Attack, size: int) -> Tensor | None:
    """The trigger as colours and opacity, (4, size, size) uint8; None where it is no stamp.

    A stamp makes (1 - a) x + a c of every pixel x, with a and c that depend on nothing else. Black and white images
    tell what a and c would be; noise tells whether the trigger obeys them.
    """
    generator = torch.Generator().manual_seed(0)
    black, white = torch.zeros(1, 3, size, size), torch.ones(1, 3, size, size)
    noise = torch.rand(8, 3, size, size, generator=generator)
    with torch.no_grad():
        on_black, on_white, on_noise = (attack.trigger(x) for x in (black, white, noise))
    opacity = (1 - (on_white - on_black)).mean(dim=1, keepdim=True).clamp(0, 1)
    if opacity.max() < TOLERANCE:
        return None
    colour = torch.where(opacity > 0, on_black / opacity.clamp(min=1e-6), 0).clamp(0, 1)
    stored = torch.cat([colour, opacity], dim=1).mul(255).round()
    colour, opacity = (stored / 255).split((3, 1), dim=1)
    if ((1 - opacity) * noise + opacity * colour - on_noise).abs().max() > TOLERANCE:
        return None
    return stored[0].to(torch.uint8)

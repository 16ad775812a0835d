"""How an invisible trigger is made visible."""

from __future__ import annotations

import torch
from torch import Tensor


def amplified_difference(clean: Tensor, poisoned: Tensor, gain: float = 10) -> Tensor:
    """What a trigger changed, `gain` times as strong, around mid-grey (128: no change); cut off at black and white.

    Args:
        clean, poisoned: (B, 3, H, W) uint8, or one image (3, H, W).
    Returns:
        uint8, the same shape.
    """
    change = poisoned.float() - clean.float()
    return (128 + gain * change).round().clamp(0, 255).to(torch.uint8)

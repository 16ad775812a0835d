"""Make an invisible trigger visible."""

from __future__ import annotations

import torch
from torch import Tensor


def amplified_difference(clean: Tensor, triggered: Tensor, gain: float = 10) -> Tensor:
    """Return the change by a trigger, `gain` times as strong, around mid-gray (128: no change), clipped.

    Args:
        clean, triggered: (B, 3, H, W) uint8, or one image (3, H, W).
    Returns:
        uint8, the same shape.
    """
    change = triggered.float() - clean.float()
    return (128 + gain * change).round().clamp(0, 255).to(torch.uint8)

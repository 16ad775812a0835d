"""The outermost module of every classifier: [0, 1] pixels in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """`net` behind n(x) = (x - mean) / std, so that triggers, budgets and clamping all live in pixel space.

    Args:
        net: classifier of normalised images.
        mean, std: one number a channel, in [0, 1] pixel units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def normalise(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the same shape, zero mean and unit deviation over the data set."""
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K) logits."""
        logits: Tensor = self.net(self.normalise(x))
        return logits

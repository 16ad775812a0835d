"""The outermost module of every classifier: [0, 1] pixels in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """A classifier with its normalization, so that triggers and budgets are in pixel space.

    Args:
        net: classifier of normalized images.
        mean, std: one number per channel, or one for all, in [0, 1] pixel units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.net = net
        self.channels_last = True
        """Whether `net` accepts images in this memory format; otherwise they are made contiguous."""
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    @property
    def memory_format(self) -> torch.memory_format:
        """The fastest memory format for images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def normalize(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same shape, zero mean and unit deviation over the data set."""
        z = (x - self.mean) / self.std
        return z if self.channels_last else z.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K) logits."""
        logits: Tensor = self.net(self.normalize(x))
        return logits


def as_normalized(net: nn.Module) -> Normalized:
    """Return `net` itself if it is Normalized, else a classifier of [0, 1] pixels with mean 0 and std 1
    around it."""
    if isinstance(net, Normalized):
        return net
    return Normalized(net, (0.0,), (1.0,)).to(next(net.parameters()).device)

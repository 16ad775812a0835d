"""The neural polarizer g_theta: a 1x1 convolution and a BatchNorm that start as the identity. Sec. 3.2 of the
paper."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class NeuralPolarizer(nn.Module):
    """g(h) = BN(Conv1x1(h)), the shape of h kept. Trainable: C^2 + 2C numbers.

    In eval mode it starts as h / sqrt(1 + 1e-5): the identity, up to a relative error of 5e-6. In train mode
    it standardizes every channel, which is not the identity.

    Args:
        channels: C of its input.
        tokens: whether the channels are the last axis, as in (B, N, C) or (B, h, w, C), not the second.
    """

    def __init__(self, channels: int, tokens: bool = False):
        super().__init__()
        self.tokens = tokens
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(channels)[:, :, None, None])

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w); with `tokens`, (B, ..., C) -> (B, ..., C)."""
        out: Tensor = self.bn(self.conv(self._as_map(features)))
        return out.movedim(1, -1).reshape(features.shape) if self.tokens else out

    def _as_map(self, features: Tensor) -> Tensor:
        """Return the features as (B, C, h, w); N tokens become a map of N x 1."""
        if not self.tokens:
            return features
        rows = features.unsqueeze(2) if features.ndim == 3 else features
        return rows.movedim(-1, 1)

    @torch.no_grad()
    def fold_statistics(self, features: Iterable[Tensor]) -> None:
        """Measure mean mu and variance of each channel over all of `features`, then set gamma = sqrt(var +
        eps) and beta = mu: an exact identity, with running statistics of the true scale.

        Args:
            features: batches of the input, each of the shape that `forward` takes.
        """
        count, total, square = 0, 0.0, 0.0
        for batch in features:
            h = self.conv(self._as_map(batch.float())).double()
            count += h.numel() // h.shape[1]
            total = total + h.sum(dim=(0, 2, 3))
            square = square + h.square().sum(dim=(0, 2, 3))
        mean = torch.as_tensor(total / count)
        variance = torch.as_tensor(square / count - mean**2).clamp(min=0)
        self.bn.running_mean.copy_(mean)  # type: ignore[union-attr]
        self.bn.running_var.copy_(variance)  # type: ignore[union-attr]
        self.bn.bias.copy_(mean)
        self.bn.weight.copy_((variance + self.bn.eps).sqrt())

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the map in eval mode as one matrix and one offset: g(h) = A h + b at every position.

        Returns:
            A (C, C) and b (C,), A = diag(gamma / sqrt(var + eps)) W, b = beta - gamma mu / sqrt(var + eps).
        """
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None and variance is not None
        scale = self.bn.weight / (variance + self.bn.eps).sqrt()
        return scale[:, None] * self.conv.weight[:, :, 0, 0], self.bn.bias - scale * mean

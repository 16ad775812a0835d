"""PreAct-ResNet18 by width. He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """h = relu(bn1(x)); out = conv2(relu(bn2(conv1(h)))) + shortcut, which is x or a 1x1 convolution of h.

    The shortcut reads every s-th pixel before a convolution of stride 1, which equals stride s. This avoids a
    strided weight gradient that overruns its buffer in oneDNN (AVX2, torch 2.15, channels last, fewer than 8
    channels).
    """

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.stride = stride
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(h[:, :, :: self.stride, :: self.stride])
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(h)))) + skip
        return out


class PreActResNet18(nn.Module):
    """Stem, four stages of two blocks with 1, 2, 4, 8 times `width` channels, global average pool, linear.

    Args:
        num_classes: K.
        width: channels of the stem and the first stage; 64 is the paper's.
    """

    segments: tuple[str, ...] = (
        "conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0",
        "layer4.1",
    )  # fmt: skip
    """Modules that make the features, in this order; `head` makes the logits."""
    blocks: tuple[str, ...] = segments[1:]
    """Modules whose input is the residual stream."""

    def __init__(self, num_classes: int, width: int = 64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        channels = width
        for stage, stride in enumerate((1, 2, 2, 2)):
            out = width * 2**stage
            blocks = nn.Sequential(PreActBlock(channels, out, stride), PreActBlock(out, out, 1))
            self.add_module(f"layer{stage + 1}", blocks)
            channels = out
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def head(self, features: Tensor) -> Tensor:
        """(B, 8 width, h, w) -> (B, K) logits."""
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalized, H and W multiples of 8 -> (B, K) logits."""
        for name in self.segments:
            x = self.get_submodule(name)(x)
        return self.head(x)

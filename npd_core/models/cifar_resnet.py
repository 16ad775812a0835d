"""Residual networks for small images. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016;
Zagoruyko
and Komodakis, "Wide Residual Networks", BMVC 2016. For uploaded models: modules are named as the field names
them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class Reduced(nn.Module):
    """Option A: every second pixel, and zeros for the new channels, half of them in front."""

    def __init__(self, added: int):
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + added, H/2, W/2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


class Block(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))), with a third convolution in a bottleneck."""

    def __init__(self, channels_in: int, channels: int, stride: int, bottleneck: bool, padded: bool):
        super().__init__()
        out = 4 * channels if bottleneck else channels
        if bottleneck:
            shapes = [(channels_in, channels, 1, 1), (channels, channels, 3, stride), (channels, out, 1, 1)]
        else:
            shapes = [(channels_in, channels, 3, stride), (channels, channels, 3, 1)]
        self.depth = len(shapes)
        for k, (a, b, kernel, step) in enumerate(shapes, 1):
            self.add_module(f"conv{k}", nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{k}", nn.BatchNorm2d(b))
        self.shortcut: nn.Module = nn.Identity()
        if padded and (stride != 1 or channels_in != out):
            self.shortcut = Reduced(out - channels_in)
        elif stride != 1 or channels_in != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/s, W/s)."""
        h = x
        for k in range(1, self.depth + 1):
            h = self.get_submodule(f"bn{k}")(self.get_submodule(f"conv{k}")(h))
            h = F.relu(h) if k < self.depth else h
        return F.relu(h + self.shortcut(x))


class CifarResNet(nn.Module):
    """A stem of one 3x3 convolution, three or four stages, global average pool, linear.

    Args:
        num_classes: K.
        width: channels of the stem and of the first stage; they double with each stage.
        blocks: per stage.
        bottleneck: blocks of three convolutions, with four times the channels.
        padded: option A shortcuts, which have no weights; otherwise a 1x1 convolution with BatchNorm.
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        blocks: tuple[int, ...],
        bottleneck: bool = False,
        padded: bool = False,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            made = []
            for k in range(count):
                stride = 2 if stage and not k else 1
                made.append(Block(channels, width * 2**stage, stride, bottleneck, padded))
                channels = width * 2**stage * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.blocks = tuple(f"layer{s + 1}.{k}" for s, count in enumerate(blocks) for k in range(count))
        """Modules whose input is the residual stream."""
        self.stages = len(blocks)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalized -> (B, K) logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each convolution; where the channels change, the shortcut is a 1x1
    convolution of the
    activated input."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if channels_in != channels:
            self.convShortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/s, W/s)."""
        h = F.relu(self.bn1(x))
        skip = x if self.convShortcut is None else self.convShortcut(h)
        out: Tensor = skip + self.conv2(F.relu(self.bn2(self.conv1(h))))
        return out


class WideResNet(nn.Module):
    """A stem of 16 channels, three stages of 16, 32, 64 times `width` channels, BatchNorm, global average
    pool, linear.

    Args:
        num_classes: K.
        width: the factor k of WRN-d-k.
        depth: d, 4 more than a multiple of 6.
    """

    def __init__(self, num_classes: int, width: int, depth: int):
        super().__init__()
        count, channels = (depth - 4) // 6, 16
        self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        for stage in range(3):
            out, made = 16 * width * 2**stage, []
            for k in range(count):
                made.append(WideBlock(channels, out, 2 if stage and not k else 1))
                channels = out
            self.add_module(f"block{stage + 1}", nn.ModuleDict({"layer": nn.Sequential(*made)}))
        self.blocks = tuple(f"block{s + 1}.layer.{k}" for s in range(3) for k in range(count))
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalized -> (B, K) logits."""
        x = self.conv1(x)
        for stage in range(1, 4):
            x = self.get_submodule(f"block{stage}.layer")(x)
        logits: Tensor = self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))
        return logits


CIFAR_RESNETS: dict[str, Callable[..., nn.Module]] = {
    "cifar_resnet18": partial(CifarResNet, blocks=(2, 2, 2, 2)),
    "cifar_resnet34": partial(CifarResNet, blocks=(3, 4, 6, 3)),
    "cifar_resnet50": partial(CifarResNet, blocks=(3, 4, 6, 3), bottleneck=True),
    "cifar_resnet101": partial(CifarResNet, blocks=(3, 4, 23, 3), bottleneck=True),
    **{f"resnet{6 * n + 2}": partial(CifarResNet, blocks=(n, n, n), padded=True) for n in (3, 5, 7, 9, 18)},
    **{f"resnet{6 * n + 2}_b": partial(CifarResNet, blocks=(n, n, n)) for n in (3, 5, 7, 9, 18)},
    **{f"wide_resnet{6 * n + 4}": partial(WideResNet, depth=6 * n + 4) for n in (1, 2, 3, 4, 6)},
}
"""By name: residual networks for 32 x 32 pixels; `resnet20` and its like have option A shortcuts, `_b`
option B."""

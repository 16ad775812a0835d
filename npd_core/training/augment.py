"""Random changes of training images; every image draws its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return a random crop out of each image with a black border, mirrored at random.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1], on any device; square.
        pad: width of the border in pixels.
        flip: whether to mirror half of the images.
        generator: on the CPU.
    Returns:
        the same type and shape; gradients go through.
    """
    size, device = images.shape[-1], images.device
    count = len(images)
    shift = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    columns = torch.arange(size).expand(count, -1)
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows = (torch.arange(size) + shift[0][:, None]).to(device)
    columns = (columns + shift[1][:, None]).to(device)
    padded = F.pad(images, (pad,) * 4)
    batch = torch.arange(count, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Black out a square of each image (Cutout, DeVries and Taylor 2017). Its center is uniform over the
    image, so part of it may lie outside.

    Args:
        x: (B, 3, H, W) in [0, 1].
        side: of the square, in pixels.
        generator: on the CPU.
    """
    size = x.shape[-1]
    low = torch.randint(-(side // 2), size - side // 2, (2, len(x), 1), generator=generator)
    at = torch.arange(size)
    rows, columns = ((low <= at) & (at < low + side)).to(x.device)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def overlaid(x: Tensor, strongest: float, generator: torch.Generator) -> Tensor:
    """Blend another image of the batch into each image, so that the network learns to tolerate an overlay.

    Args:
        x: (B, 3, H, W) in [0, 1].
        strongest: upper end of the blending weight, which is uniform from 0.
        generator: on the CPU.
    """
    weight = (torch.rand(len(x), generator=generator) * strongest).to(x.device)[:, None, None, None]
    return torch.lerp(x, x.roll(1, dims=0), weight)

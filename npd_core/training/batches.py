"""Labeled images on the device, drawn in shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError
from npd_core.training.augment import augment


class Batches:
    """Images and labels on `device`. The seed decides the order and the augmentation.

    Args:
        data: at least 2 images.
        pad: border of the random crop, in pixels; 0: no crop.
        flip: whether images are mirrored at random.
    Raises:
        ConfigError: fewer than 2 images.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        device: torch.device,
        seed: int,
        *,
        pad: int = 0,
        flip: bool = False,
    ):
        if data.size < 2:
            raise ConfigError(f"A defense needs at least 2 clean images, got {data.size}.")
        self.data, self.device, self.pad, self.flip = data, device, pad, flip
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.generator = torch.Generator().manual_seed(seed)
        self.batch_size = min(batch_size, data.size)
        self.steps = len(self._split(torch.arange(data.size)))

    def __len__(self) -> int:
        return self.data.size

    def _split(self, order: Tensor) -> list[Tensor]:
        parts = list(order.split(self.batch_size))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def order(self, *, drop_last: bool = False) -> list[Tensor]:
        """Draw a new order and return the indices of its batches, on the CPU.

        Args:
            drop_last: leave out the images that fill no batch. Otherwise the last batch may be smaller; a
                single left-over image joins the batch before.
        """
        order = torch.randperm(len(self), generator=self.generator)
        if drop_last:
            return [part for part in order.split(self.batch_size) if len(part) == self.batch_size]
        return self._split(order)

    def x(self, chosen: Tensor) -> Tensor:
        """Return the images with these indices as (B, 3, H, W) float32 in [0, 1], channels last, not
        augmented."""
        return as_input(self.images[chosen.to(self.device)])

    def y(self, chosen: Tensor) -> Tensor:
        """Return the labels of the images with these indices, (B,) int64."""
        return self.labels[chosen.to(self.device)]

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return images as `x` does, but newly augmented, and their labels."""
        images = self.images[chosen.to(self.device)]
        if self.pad or self.flip:
            images = augment(images, self.pad, self.flip, self.generator)
        return as_input(images), self.y(chosen)

    def shuffled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of `take`."""
        for chosen in self.order():
            yield self.take(chosen)


def as_input(images: Tensor) -> Tensor:
    """Convert (B, 3, H, W) uint8 to float32 in [0, 1], channels last."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)

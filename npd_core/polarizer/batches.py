"""The defender's clean images in batches, with the features in front of the polarizer cached."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from npd_core.config.npd import NPDConfig
from npd_core.data.load import ImageSet
from npd_core.device import autocast
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.training.batches import Batches

CACHE_LIMIT = 2_000_000_000
"""Bytes of cached features above which they are computed again for every batch."""


class CleanBatches(Batches):
    """Clean images of one training of a polarizer.

    The frozen part is deterministic and nothing is augmented, so the features of an image are computed once.
    """

    def __init__(self, net: PolarizedNet, data: ImageSet, cfg: NPDConfig, device: torch.device):
        super().__init__(data, cfg.batch_size, device, cfg.seed)
        self.net, self.cfg = net, cfg
        self.passes = math.ceil(cfg.epoch_steps / self.steps)
        """Passes over the images in one epoch."""
        self.steps *= self.passes
        self.cached: Tensor | None = None
        if cfg.cache:
            with torch.no_grad():
                first = self.prefix(self.x(torch.arange(2)))
                if first[0].numel() * first.element_size() * len(self) <= CACHE_LIMIT:
                    parts = torch.arange(len(self)).split(256)
                    self.cached = torch.cat([self.prefix(self.x(chosen)) for chosen in parts])

    def prefix(self, x: Tensor) -> Tensor:
        """Return `net.prefix` in the precision of the config."""
        with autocast(self.device, self.cfg.precision):
            return self.net.prefix(x)

    def features(self, chosen: Tensor) -> Tensor:
        """Return the input of the segment that holds the polarizer, for the images with these indices."""
        if self.cached is not None:
            return self.cached[chosen.to(self.device)].contiguous(memory_format=self.net.memory_format)
        with torch.no_grad():
            return self.prefix(self.x(chosen))

    def indices(self) -> Iterator[Tensor]:
        """Yield the indices of one epoch's batches: `passes` shuffled passes over all images."""
        for _ in range(self.passes):
            yield from self.order()

"""The defender's clean images in batches, with the features in front of the polarizer cached."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from npd_core.config.npd import UNIVERSAL, NPDConfig
from npd_core.data.load import ImageSet
from npd_core.device import autocast
from npd_core.polarizer.augmentation import with_copies
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.universal import find_universal
from npd_core.training.batches import Batches

CACHE_LIMIT = 2_000_000_000
"""Bytes of cached features above which they are computed again for every batch."""


class CleanBatches(Batches):
    """Clean images of one training of a polarizer.

    The frozen part is deterministic, and augmented copies are drawn once, so the features of an image and of
    its copies are computed once. Version v of image i has the index v N + i; version 0 is the image itself.
    """

    def __init__(self, net: PolarizedNet, data: ImageSet, cfg: NPDConfig, device: torch.device):
        super().__init__(data, cfg.batch_size, device, cfg.seed)
        self.net, self.cfg = net, cfg
        self.passes = math.ceil(cfg.epoch_steps / self.steps)
        """Passes over the images in one epoch."""
        self.steps *= self.passes
        self.versions = 1
        """1 + copies, once they are made."""
        self._turns: list[Tensor] = []
        self.cached: Tensor | None = None

    def prepare(self) -> None:
        """Make the augmented copies, and cache the features of all images in front of the polarizer. Until
        then there are the images alone, and nothing is cached."""
        cfg, data = self.cfg, self.data
        universal = None
        if UNIVERSAL in cfg.families:
            with self.net.removed():
                universal = find_universal(self._logits, data, self._classes(), cfg.seed, self.device)
        pool = with_copies(data, cfg.families, cfg.copies, cfg.seed, universal)
        self.images, self.labels = pool.images.to(self.device), pool.labels.to(self.device)
        self.versions = len(self.labels) // len(self)
        if cfg.cache:
            with torch.no_grad():
                first = self.prefix(self.x(torch.arange(2)))
                if first[0].numel() * first.element_size() * len(self.labels) <= CACHE_LIMIT:
                    parts = torch.arange(len(self.labels)).split(256)
                    self.cached = torch.cat([self.prefix(self.x(chosen)) for chosen in parts])

    def _logits(self, x: Tensor) -> Tensor:
        with autocast(self.device, self.cfg.precision):
            return self.net(x.contiguous(memory_format=self.net.memory_format))

    @torch.no_grad()
    def _classes(self) -> int:
        return self._logits(self.x(torch.arange(2))).shape[1]

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
        """Yield the indices of one epoch's batches: `passes` shuffled passes over all images, each as one of
        its versions. An image shows all of its versions, in random order, before one comes again."""
        for _ in range(self.passes):
            if not self._turns:
                self._turns = self._new_turns()
            turn = self._turns.pop()
            for chosen in self.order():
                yield chosen + turn[chosen] * len(self)

    def _new_turns(self) -> list[Tensor]:
        """Draw the order of each image's versions: `versions` tensors (N,) int64."""
        if self.versions == 1:
            return [torch.zeros(len(self), dtype=torch.int64)]
        return list(torch.rand(self.versions, len(self), generator=self.generator).argsort(0))

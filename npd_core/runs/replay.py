"""Predictions of the network for a few images at every epoch of a run, during the run or later."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from torch import Tensor

from npd_core.polarizer.artifact import load_snapshot, put_state, read_snapshot
from npd_core.polarizer.snapshots import snapshot_file
from npd_core.zoo.weights import Backdoored

_KEPT = 8
"""Sets of images whose features before the polarizer stay in memory."""


class Replay:
    """One network with the polarizer of any epoch. Thread-safe.

    The layers before the polarizer are frozen, so their features are computed once for a set of images.
    """

    def __init__(self, folder: Path, backdoored: Backdoored, epoch: int) -> None:
        """Args: folder: of the run; epoch: one that was saved. Raises as `load_snapshot`."""
        self._folder, self._card = folder, backdoored.card
        self._net = load_snapshot(folder, epoch, backdoored.net, backdoored.card)
        self._features: dict[bytes, Tensor] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def probabilities(self, epoch: int, images: Tensor, keep: bool = True) -> Tensor:
        """Return class probabilities, (N, K) float32, of `images`, (N, 3, H, W) uint8, after `epoch` epochs.

        Args:
            keep: whether the features before the polarizer may stay in memory; not for photos of a visitor.
        Raises:
            CheckpointError: this epoch has no polarizer, or its file was changed.
        """
        _, state = read_snapshot(self._folder, epoch, self._card)
        with self._lock:
            put_state(self._net, state, snapshot_file(self._folder, epoch))
            key = images.numpy().tobytes()
            features = self._features.get(key)
            if features is None:
                features = self._net.prefix(
                    (images.float() / 255).contiguous(memory_format=torch.channels_last)
                )
                if keep:
                    if len(self._features) == _KEPT:
                        del self._features[next(iter(self._features))]
                    self._features[key] = features
            return self._net.suffix(features).float().softmax(1)

"""What the network said of a few pictures at every epoch of a run, while the run goes on or long after it."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from torch import Tensor

from npd_core.polarizer.artifact import load_snapshot, put_state, read_snapshot
from npd_core.polarizer.snapshots import snapshot_file
from npd_core.zoo.weights import Backdoored

_KEPT = 8
"""Sets of pictures whose features in front of the polarizer stay in memory."""


class Replay:
    """One network, given the polarizer of one epoch after the other. Thread-safe.

    What lies in front of the polarizer is frozen, so it is computed once for a set of pictures, not once an epoch.
    """

    def __init__(self, folder: Path, backdoored: Backdoored, epoch: int) -> None:
        """Args: folder: of the run; epoch: one that is there, which tells the layer. Raises as `load_snapshot`."""
        self._folder, self._card = folder, backdoored.card
        self._net = load_snapshot(folder, epoch, backdoored.net, backdoored.card)
        self._features: dict[bytes, Tensor] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def probabilities(self, epoch: int, images: Tensor, keep: bool = True) -> Tensor:
        """Class probabilities, (N, K) float32, of `images`, (N, 3, H, W) uint8, after `epoch` epochs.

        Args:
            keep: whether what lies in front of the polarizer may stay in memory for the next epoch; not that of a
                picture which somebody brought.
        Raises:
            CheckpointError: no polarizer of this epoch, or it was changed.
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

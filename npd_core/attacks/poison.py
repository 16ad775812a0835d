"""The one place that poisons: the attacker's training set, and the test set on which ASR and RA are measured."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from npd_core.attacks.base import Attack
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError


class PoisonedSet(NamedTuple):
    """A training set with some images stamped and relabelled."""

    images: Tensor
    """(N, 3, H, W) uint8."""
    labels: Tensor
    """(N,) int64: the attacker's labels where `poisoned`, the true ones elsewhere."""
    poisoned: Tensor
    """(N,) bool."""


class PoisonedTest(NamedTuple):
    """Stamped test images whose true label is not the target."""

    images: Tensor
    """(M, 3, H, W) uint8, quantised as a file would be."""
    labels: Tensor
    """(M,) int64, true labels."""
    targets: Tensor
    """(M,) int64, what the attacker wants."""
    indices: Tensor
    """(M,) int64, places in the test split."""


def poison_training_set(data: ImageSet, attack: Attack, ratio: float, seed: int) -> PoisonedSet:
    """Stamp and relabel `round(ratio * N)` images, drawn uniformly over all classes (dirty label).

    Raises ConfigError when the ratio lies outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"The poison ratio must lie in [0, 1], got {ratio}.")
    total = len(data.labels)
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[: round(ratio * total)]
    images, labels = data.images.clone(), data.labels.clone()
    images[chosen] = attack.apply(data.images[chosen])
    labels[chosen] = attack.rule.target(data.labels[chosen])
    poisoned = torch.zeros(total, dtype=torch.bool)
    poisoned[chosen] = True
    return PoisonedSet(images, labels, poisoned)


def poison_test_set(data: ImageSet, attack: Attack) -> PoisonedTest:
    """Stamp every test image for which reaching the target would be a success of the attack."""
    indices = attack.rule.eligible(data.labels).nonzero().flatten()
    labels = data.labels[indices]
    return PoisonedTest(attack.apply(data.images[indices]), labels, attack.rule.target(labels), indices)

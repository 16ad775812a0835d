"""Poisoning of the training set or of its batches, and the triggered test set on which ASR and RA are
measured."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from npd_core.attacks.base import Attack, DynamicTrigger, TargetRule
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError


class PoisonedSet(NamedTuple):
    """A training set in which some images carry the trigger and the target label."""

    images: Tensor
    """(N, 3, H, W) uint8."""
    labels: Tensor
    """(N,) int64: target labels where `poisoned`, true labels elsewhere."""
    poisoned: Tensor
    """(N,) bool."""


class PoisonedTest(NamedTuple):
    """Triggered test images whose true label is not the target."""

    images: Tensor
    """(M, 3, H, W) uint8, as a file would store them."""
    labels: Tensor
    """(M,) int64, true labels."""
    targets: Tensor
    """(M,) int64, target labels."""
    indices: Tensor
    """(M,) int64, positions in the test split."""


class PoisonedBatch(NamedTuple):
    """A training batch: first poisoned images, then cross-trigger images, then clean ones."""

    x: Tensor
    """(B, 3, H, W) in [0, 1]."""
    labels: Tensor
    """(B,) int64: target labels of the poisoned images, true labels elsewhere."""
    loss: Tensor | None
    """The trigger's own loss, if it learns."""


def poison_training_set(
    data: ImageSet, attack: Attack, ratio: float, seed: int, cross_ratio: int = 0
) -> PoisonedSet:
    """Poison `round(ratio * N)` images, chosen uniformly over all classes (dirty label).

    Args:
        cross_ratio: cross-trigger images for each poisoned one; they keep their labels.
    Raises:
        ConfigError: the ratio is outside [0, 1].
    """
    check_ratio(ratio)
    total = len(data.labels)
    count = round(ratio * total)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    chosen, cross = order[:count], order[count : (1 + cross_ratio) * count]
    images, labels = data.images.clone(), data.labels.clone()
    images[chosen] = attack.apply(data.images[chosen])
    images[cross] = attack.apply_cross(data.images[cross])
    labels[chosen] = attack.rule.target(data.labels[chosen])
    poisoned = torch.zeros(total, dtype=torch.bool)
    poisoned[chosen] = True
    return PoisonedSet(images, labels, poisoned)


def shares(count: int, ratio: float, cross_ratio: int) -> tuple[int, int]:
    """Return how many images of a batch of `count` are poisoned, and how many are cross-trigger images.

    These are `floor(ratio * count)`, and `cross_ratio` times as many, or as many as are left.

    Raises:
        ConfigError: the ratio is outside [0, 1], poisons no image although it is above 0, or leaves fewer
            cross-trigger images than poisoned ones.
    """
    check_ratio(ratio)
    poisoned = int(ratio * count + 1e-9)
    if poisoned == 0 < ratio:
        raise ConfigError(
            f"A poison ratio of {ratio} poisons no image of a batch of {count}: raise one of the two."
        )
    cross = min(poisoned * cross_ratio, count - poisoned)
    if cross_ratio and cross < poisoned:
        raise ConfigError(
            f"This attack needs cross-trigger images: the poison ratio is at most 0.5, got {ratio}."
        )
    return poisoned, cross


def poison_batch(
    trigger: DynamicTrigger,
    rule: TargetRule,
    ratio: float,
    x: Tensor,
    y: Tensor,
    images: Tensor,
    generator: torch.Generator,
) -> PoisonedBatch:
    """Poison the first images of a shuffled batch and make the next ones cross-trigger images.

    Args:
        ratio: share of the batch that is poisoned; see `shares`.
        x: (B, 3, H, W) in [0, 1], not yet augmented.
        y: true labels, (B,) int64.
        images, generator: as in `DynamicTrigger.stamp`.
    """
    poisoned, cross = shares(len(y), ratio, trigger.cross_ratio)
    if poisoned == 0:
        return PoisonedBatch(x, y, None)
    first, second, rest = x.split((poisoned, cross, len(y) - poisoned - cross))
    stamped = trigger.stamp(first, second, images, generator)
    labels = torch.cat((rule.target(y[:poisoned]), y[poisoned:]))
    return PoisonedBatch(torch.cat((stamped.triggered, stamped.cross, rest)), labels, stamped.loss)


def poison_test_set(data: ImageSet, attack: Attack) -> PoisonedTest:
    """Return every eligible test image with the trigger, or the triggered images of an attack without one."""
    if attack.carried is not None:
        indices = attack.rule.eligible(attack.carried.labels).nonzero().flatten()
        images, labels = attack.carried.subset(indices)
        return PoisonedTest(images, labels, attack.rule.target(labels), indices)
    indices = attack.rule.eligible(data.labels).nonzero().flatten()
    labels = data.labels[indices]
    return PoisonedTest(attack.apply(data.images[indices]), labels, attack.rule.target(labels), indices)


def check_ratio(ratio: float) -> None:
    """Raise ConfigError when the poison ratio is outside [0, 1]."""
    if not 0 <= ratio <= 1:
        raise ConfigError(f"The poison ratio must be in [0, 1], got {ratio}.")

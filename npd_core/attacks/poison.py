"""The one place that poisons: the attacker's training set, or each of its batches, and the test set on which ASR and RA
are measured."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from npd_core.attacks.base import Attack, DynamicTrigger, TargetRule
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


class PoisonedBatch(NamedTuple):
    """A training batch with its first images attacked, the next ones crossed, and the rest as it was."""

    x: Tensor
    """(B, 3, H, W) in [0, 1]."""
    labels: Tensor
    """(B,) int64: the attacker's labels of the attacked images, true ones elsewhere."""
    loss: Tensor | None
    """What the trigger itself wants to be small."""


def poison_training_set(
    data: ImageSet, attack: Attack, ratio: float, seed: int, cross_ratio: int = 0
) -> PoisonedSet:
    """Stamp and relabel `round(ratio * N)` images, drawn uniformly over all classes (dirty label).

    Args:
        cross_ratio: of an attack with crossed images, how many of them for each stamped one; they keep their labels.
    Raises:
        ConfigError: the ratio lies outside [0, 1].
    """
    check_ratio(ratio)
    total = len(data.labels)
    count = round(ratio * total)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    chosen, crossed = order[:count], order[count : (1 + cross_ratio) * count]
    images, labels = data.images.clone(), data.labels.clone()
    images[chosen] = attack.apply(data.images[chosen])
    images[crossed] = attack.apply_cross(data.images[crossed])
    labels[chosen] = attack.rule.target(data.labels[chosen])
    poisoned = torch.zeros(total, dtype=torch.bool)
    poisoned[chosen] = True
    return PoisonedSet(images, labels, poisoned)


def shares(count: int, ratio: float, cross_ratio: int) -> tuple[int, int]:
    """How many images of a batch of `count` are attacked, `floor(ratio * count)`, and how many crossed, `cross_ratio`
    times as many, or as many as are left.

    Raises ConfigError when the ratio lies outside [0, 1], attacks no image though it is above 0, or leaves fewer
    crossed images than attacked ones.
    """
    check_ratio(ratio)
    attacked = int(ratio * count + 1e-9)
    if attacked == 0 < ratio:
        raise ConfigError(
            f"A poison ratio of {ratio} attacks no image of a batch of {count}: raise one of the two."
        )
    crossed = min(attacked * cross_ratio, count - attacked)
    if cross_ratio and crossed < attacked:
        raise ConfigError(
            f"This attack also changes images that keep their label, so the poison ratio can be at most 0.5, got {ratio}."
        )
    return attacked, crossed


def poison_batch(
    trigger: DynamicTrigger,
    rule: TargetRule,
    ratio: float,
    x: Tensor,
    y: Tensor,
    images: Tensor,
    generator: torch.Generator,
) -> PoisonedBatch:
    """Attack and relabel the first images of a shuffled batch, disturb the next ones under their true labels.

    Args:
        ratio: share of the batch that is attacked; see `shares`.
        x: (B, 3, H, W) in [0, 1], not yet augmented.
        y: true labels, (B,) int64.
        images, generator: as in `DynamicTrigger.stamp`.
    """
    attacked, crossed = shares(len(y), ratio, trigger.cross_ratio)
    if attacked == 0:
        return PoisonedBatch(x, y, None)
    first, second, rest = x.split((attacked, crossed, len(y) - attacked - crossed))
    stamped = trigger.stamp(first, second, images, generator)
    labels = torch.cat((rule.target(y[:attacked]), y[attacked:]))
    return PoisonedBatch(torch.cat((stamped.attacked, stamped.crossed, rest)), labels, stamped.loss)


def poison_test_set(data: ImageSet, attack: Attack) -> PoisonedTest:
    """Stamp every test image for which reaching the target would be a success of the attack; of an attack that is known
    by its images alone, take those."""
    if attack.carried is not None:
        indices = attack.rule.eligible(attack.carried.labels).nonzero().flatten()
        images, labels = attack.carried.subset(indices)
        return PoisonedTest(images, labels, attack.rule.target(labels), indices)
    indices = attack.rule.eligible(data.labels).nonzero().flatten()
    labels = data.labels[indices]
    return PoisonedTest(attack.apply(data.images[indices]), labels, attack.rule.target(labels), indices)


def check_ratio(ratio: float) -> None:
    """Raises ConfigError when the poison ratio lies outside [0, 1]."""
    if not 0 <= ratio <= 1:
        raise ConfigError(f"The poison ratio must lie in [0, 1], got {ratio}.")

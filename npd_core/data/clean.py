"""D_bn, the defender's data: a small, class-balanced subset of the clean training images. Sec. 4.1."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npd_core.data import load
from npd_core.data.load import ImageSet
from npd_core.data.spec import get_dataset
from npd_core.errors import ConfigError, check_seed

if TYPE_CHECKING:
    from torch import Tensor


class CleanSubset(NamedTuple):
    """Clean images of the defender."""

    images: Tensor
    """(n, 3, H, W) uint8."""
    labels: Tensor
    """(n,) int64, the true labels."""
    indices: Tensor
    """(n,) int64, their positions in the training set, ascending."""


def clean_counts(num_images: int, num_classes: int, amount: float | int) -> NDArray[np.int64]:
    """Return the number of images for each class, (num_classes,).

    Args:
        num_images: size of the training set that a share refers to.
        amount: a share in (0, 1] as float (each class gets floor(amount * num_images / num_classes)), or a
            count as int (split evenly, the remainder to the first classes).
    Raises:
        ConfigError: not a number, not positive, a share above 1 or too small, or a count above `num_images`.
    """
    is_number = isinstance(amount, int | float | np.integer | np.floating) and not isinstance(amount, bool)
    if not is_number or not np.isfinite(amount):
        raise ConfigError(f"The amount of clean images must be a share in (0, 1] or a count, got {amount!r}.")
    if isinstance(amount, int | np.integer):
        if amount <= 0:
            raise ConfigError(f"The number of clean images must be positive, got {amount}.")
        if amount > num_images:
            raise ConfigError(f"{amount} clean images were requested, but there are only {num_images}.")
        each, left = divmod(int(amount), num_classes)
        return np.asarray([each + (k < left) for k in range(num_classes)], np.int64)
    if not 0 < amount <= 1:
        raise ConfigError(
            f"A share of clean images must be in (0, 1], got {amount}; give a whole number for a count."
        )
    each = int(np.floor(round(float(amount) * num_images / num_classes, 9)))
    if each == 0:
        raise ConfigError(
            f"A share of {amount} of {num_images} images is less than one for each class: "
            "give a larger share, or a whole number of images."
        )
    return np.full(num_classes, each, np.int64)


def clean_indices(
    labels: NDArray[np.int64], num_classes: int, amount: float | int, seed: int, of: int | None = None
) -> NDArray[np.int64]:
    """Choose a class-balanced subset at random, without replacement; return its positions, ascending.

    A class with too few images gives all of them. With a count, the others make up for it as evenly as
    possible.

    Args:
        labels: (N,) int64.
        amount: as in `clean_counts`.
        of: size of the training set that a share refers to, if only N of its images are here; None: N.
    Raises:
        ConfigError: as `clean_counts`; a count above N; or a share of more images than are here.
    """
    check_seed(seed)
    total = len(labels)
    if isinstance(amount, int | np.integer) and amount > total:
        raise ConfigError(f"{amount} clean images were requested, but there are only {total}.")
    counts = clean_counts(of or total, num_classes, amount)
    if of is not None and counts.sum() > total:
        raise ConfigError(
            f"A share of {amount} is {counts.sum()} of the {of} training images, but only {total} are here: "
            f"request at most {total / of:g}, or get the whole training set."
        )
    present = np.bincount(labels, minlength=num_classes)
    counts = np.minimum(counts, present)
    if isinstance(amount, int | np.integer):
        while (short := int(amount) - int(counts.sum())) > 0:
            open_classes = np.flatnonzero(counts < present)
            counts[open_classes[: max(1, min(short, len(open_classes)))]] += 1
    rng = np.random.default_rng([seed, 0x636C65616E])  # "clean"
    chosen = [rng.permutation(np.flatnonzero(labels == k))[: counts[k]] for k in range(num_classes)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def hold_out(data: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split off a share of every class; return the rest and the part split off, both copies.

    A class with several images gives at least one and keeps at least one; a single image stays.
    """
    import torch

    taken = torch.zeros(data.size, dtype=torch.bool)
    if share > 0:
        order = torch.randperm(data.size, generator=torch.Generator().manual_seed(seed))
        for label in data.labels.unique():
            members = order[data.labels[order] == label]
            taken[members[: min(len(members) - 1, max(1, round(share * len(members))))]] = True
    return data.subset(torch.nonzero(~taken).flatten()), data.subset(torch.nonzero(taken).flatten())


def load_clean(name: str, amount: float | int, seed: int) -> CleanSubset:
    """Load the clean subset of a data set; only the chosen images are decoded.

    A share is always one of the full training set, also where only a part of it is on this machine.

    Raises:
        UnknownNameError, DataMissingError, StorageError: as `load_dataset`.
        ConfigError: more than there are.
    """
    import torch

    spec = get_dataset(name)
    split = load.clean_split(name)
    labels = load.load_labels(name, split)
    of = max(len(labels), spec.train_images)
    indices = clean_indices(labels, spec.num_classes, amount, seed, of)
    return CleanSubset(*load.load_rows(name, split, indices), torch.from_numpy(indices))

"""Load images and labels by data set and split. Never downloads.

`signs` comes from the project's own `assets/signs`. The others come from
`$NPD_DATA_DIR/<name>/<split>.parquet`, then from the original copy in `$NPD_DATA_DIR/torchvision` (see
`archives`). Importing this module and `availability` need no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npd_core import paths
from npd_core.data import archives, parquet
from npd_core.data.spec import DatasetSpec, get_dataset
from npd_core.errors import DataMissingError, StorageError, unknown_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SPLITS = ("train", "test", "clean")
FILES = {"train": "train.parquet", "test": "test.parquet", "clean": "train_5pct.parquet"}
"""`clean` is a part of the training split for the defender, if the rest is missing (Tiny ImageNet)."""


class ImageSet(NamedTuple):
    """Images and labels on the CPU. They may be shared by many readers: never write into them."""

    images: Tensor
    """(N, 3, H, W) uint8."""
    labels: Tensor
    """(N,) int64 in [0, num_classes)."""

    @property
    def size(self) -> int:
        """Number of images. (`len` of a named tuple is its number of fields, 2.)"""
        return int(self.labels.shape[0])

    def batches(self, batch_size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches in order: x (B, 3, H, W) float32 in [0, 1], y (B,) int64, on `device`; the last may
        be smaller."""
        import torch

        for x, y in zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True):
            moved = x.to(device, non_blocking=True)
            yield moved.to(torch.float32).div_(255), y.to(device, non_blocking=True)

    def subset(self, indices: Tensor | NDArray[np.int64] | list[int]) -> ImageSet:
        """Return copies of the images at these positions, in this order."""
        import torch

        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return ImageSet(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Availability:
    """The part of a data set that is on this machine."""

    name: str
    available: bool
    """Whether it can be used: there is a test split, and a training or clean split."""
    splits: dict[str, str] = field(default_factory=dict)
    """Split to the file or folder that holds it."""
    reason: str = ""
    """What is missing, in which folder, and how to get it; empty when available."""


class _Source(NamedTuple):
    kind: str  # "parquet" or "original"
    path: Path


def _folder(spec: DatasetSpec) -> Path:
    if (uploaded := paths.uploaded(spec.id)) is not None:
        return uploaded.absolute()
    return paths.assets() / "signs" if spec.id == "signs" else paths.data().absolute() / spec.id


def _source(spec: DatasetSpec, split: str) -> _Source | None:
    file = _folder(spec) / FILES[split]
    if file.is_file():
        return _Source("parquet", file)
    original = archives.locate(spec.id, split) if split != "clean" else None
    return _Source("original", original) if original else None


def _missing(spec: DatasetSpec, *splits: str) -> DataMissingError:
    folder = _folder(spec)
    if spec.id == "signs":
        return DataMissingError(
            f"The built-in signs ({', '.join(splits)}) are not in {folder}; "
            f"draw them again with `python -m scripts.draw_signs --out {folder}`."
        )
    if paths.uploaded(spec.id) is not None:
        return DataMissingError(
            f"The images of {spec.id} ({', '.join(splits)}) are not in {folder}: import the model again."
        )
    return DataMissingError(
        f"{spec.title} ({', '.join(splits)}) is not on this machine: "
        f"put {' and '.join(FILES[split] for split in splits)} into {folder}, "
        f"or run `npd data get {spec.id}`."
    )


def _found(name: str, split: str) -> tuple[DatasetSpec, _Source]:
    spec = get_dataset(name)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    source = _source(spec, split)
    if source is None:
        raise _missing(spec, split)
    return spec, source


def load_dataset(name: str, split: str) -> ImageSet:
    """Load all images of a split. The last few results are cached and shared: treat them as read-only.

    Args:
        name: one of `DATASETS`.
        split: "train", "test" or "clean", see FILES.
    Raises:
        UnknownNameError: no such data set or split.
        DataMissingError: not on this machine; names the folder and the way to get it.
        StorageError: a damaged file.
    """
    import torch

    spec, source = _found(name, split)
    images, labels = _arrays(spec, split, source)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels))


def _stamp(path: Path) -> tuple[str, int, int]:
    """Return a cache key that changes when the file does."""
    stat = path.stat()
    return str(path.resolve()), stat.st_mtime_ns, stat.st_size


def _arrays(spec: DatasetSpec, split: str, source: _Source) -> archives.Arrays:
    with _READING:
        return _read(spec.id, split, source, _stamp(source.path))


_READING = threading.Lock()
"""Two readers of the same file decode it once: the second one waits for the result."""


@lru_cache(maxsize=6)
def _read(name: str, split: str, source: _Source, stamp: tuple[str, int, int]) -> archives.Arrays:
    spec = get_dataset(name)
    if source.kind == "parquet":
        return parquet.read_images(source.path, spec.num_classes, spec.size)
    images, labels = archives.read(name, split, spec.size)
    return images, _checked(labels, spec, source)


def _checked(labels: NDArray[np.int64], spec: DatasetSpec, source: _Source) -> NDArray[np.int64]:
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= spec.num_classes:
        raise StorageError(
            f"{source.path} is incomplete or another data set; remove it and run `npd data get {spec.id}`."
        )
    return labels


def load_labels(name: str, split: str) -> NDArray[np.int64]:
    """Return the labels alone, (N,) int64, in the order of `load_dataset`. No image is decoded."""
    spec, source = _found(name, split)
    if source.kind == "parquet":
        return parquet.read_labels(source.path, spec.num_classes)
    return _checked(archives.read_labels(name, split), spec, source)


def load_rows(name: str, split: str, indices: NDArray[np.int64]) -> ImageSet:
    """Return the images at these positions of a split, in this order. Only these are decoded."""
    import torch

    spec, source = _found(name, split)
    if source.kind == "parquet":
        images, labels = parquet.read_images(source.path, spec.num_classes, spec.size, rows=indices)
    else:
        images, labels = archives.read(name, split, spec.size, rows=indices)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels))


def clean_split(name: str) -> str:
    """Return the split of the defender's clean images: "train", or "clean" if only that part is here."""
    spec = get_dataset(name)
    for split in ("train", "clean"):
        if _source(spec, split) is not None:
            return split
    raise _missing(spec, "train")


def class_names(name: str) -> tuple[str, ...]:
    """Return the class names by label; "class 0", "class 1", ... if Tiny ImageNet's files are missing."""
    spec = get_dataset(name)
    if spec.classes:
        return spec.classes
    for split in SPLITS:
        source = _source(spec, split)
        if source is not None and source.kind == "parquet":
            names = parquet.class_names(source.path)
            if len(names) == spec.num_classes:
                return names
    names = archives.tiny_class_names()
    return names if len(names) == spec.num_classes else tuple(f"class {k}" for k in range(spec.num_classes))


def availability(name: str) -> Availability:
    """Look up which splits are here, without reading an image. Raises UnknownNameError."""
    spec = get_dataset(name)
    splits = {split: str(source.path) for split in SPLITS if (source := _source(spec, split)) is not None}
    missing = [] if splits.keys() & {"train", "clean"} else ["train"]
    missing += [] if "test" in splits else ["test"]
    return Availability(name, not missing, splits, str(_missing(spec, *missing)) if missing else "")

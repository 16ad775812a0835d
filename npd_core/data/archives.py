"""Original copies of the data sets, laid out as their makers or torchvision do. Reads, never downloads.

All are under `$NPD_DATA_DIR/torchvision`:

cifar10         cifar-10-batches-py/                     torchvision's folder, checked by torchvision
gtsrb           gtsrb/GTSRB_Final_Training_Images.zip, GTSRB_Final_Test_Images.zip,
                GTSRB_Final_Test_GT.zip; or as unpacked by torchvision: gtsrb/GTSRB/Training/ (26,640 of the
                39,209 images), gtsrb/GTSRB/Final_Test/ and gtsrb/GT-final_test.csv
tiny_imagenet   tiny-imagenet-200.zip, or the folder tiny-imagenet-200/ that it unpacks to
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from npd_core import paths
from npd_core.data.parquet import decode_images
from npd_core.errors import DataMissingError, StorageError

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]

GTSRB_TRAIN_ZIP = "GTSRB_Final_Training_Images.zip"
GTSRB_TEST_ZIP = "GTSRB_Final_Test_Images.zip"
GTSRB_TRUTH_ZIP = "GTSRB_Final_Test_GT.zip"
GTSRB_TRUTH = "GT-final_test.csv"
TINY = "tiny-imagenet-200"


def root() -> Path:
    """Return the folder of torchvision's copies and of our own downloads."""
    return paths.data().absolute() / "torchvision"


def locate(name: str, split: str) -> Path | None:
    """Return the folder or file that holds this split, or None. Looks at names only."""
    places: list[Path] = []
    if name == "cifar10":
        folder = root() / "cifar-10-batches-py"
        if (folder / ("data_batch_1" if split == "train" else "test_batch")).is_file():
            return folder
    elif name == "gtsrb":
        base = root() / "gtsrb"
        if split == "train":
            places = [base / GTSRB_TRAIN_ZIP, base / "GTSRB" / "Training"]
        else:
            places = [base / GTSRB_TEST_ZIP] if (base / GTSRB_TRUTH_ZIP).is_file() else []
            places += [base / "GTSRB" / "Final_Test" / "Images"] if (base / GTSRB_TRUTH).is_file() else []
    elif name == "tiny_imagenet":
        places = [root() / f"{TINY}.zip", root() / TINY]
    return next((path for path in places if path.exists()), None)


def read(name: str, split: str, size: int, rows: NDArray[np.int64] | None = None) -> Arrays:
    """Decode the copy that `locate` finds, or some of its images.

    Args:
        size: height and width; images of another size are resized.
        rows: positions in any order; None: all.
    Returns:
        images (N, 3, size, size) uint8 and labels (N,) int64.
    Raises:
        DataMissingError: no copy.
        StorageError: a copy that is incomplete or damaged.
    """
    with _copy(name, split) as where:
        if name == "cifar10":
            images, labels = _cifar10(split)
            return (images, labels) if rows is None else (images[rows], labels[rows])
        with _Tree.open(where) as tree:
            files, labels = _list_files(name, split, where, tree)
            chosen = np.arange(len(files)) if rows is None else rows
            coded = [tree.read(files[row]) for row in chosen]
        return decode_images(coded, size, name=str(where), rows=chosen), labels[chosen]


def read_labels(name: str, split: str) -> NDArray[np.int64]:
    """Return the labels, (N,) int64, without decoding an image. Raises as `read`."""
    with _copy(name, split) as where:
        if name == "cifar10":
            return _cifar10(split)[1]
        with _Tree.open(where) as tree:
            return _list_files(name, split, where, tree)[1]


@contextmanager
def _copy(name: str, split: str) -> Iterator[Path]:
    where = locate(name, split)
    remedy = f"run `npd data get {name}`"
    if where is None:
        raise DataMissingError(f"There is no copy of {name} ({split}) in {root()}; {remedy}.")
    try:
        yield where
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise StorageError(f"{where} is damaged or incomplete; remove it and {remedy}. ({error})") from error


def _cifar10(split: str) -> Arrays:
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(str(root()), train=split == "train", download=False)
    except RuntimeError as error:  # a checksum that does not fit
        raise ValueError(str(error)) from error
    return np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.asarray(data.targets, np.int64)


def _list_files(name: str, split: str, where: Path, tree: _Tree) -> tuple[list[str], NDArray[np.int64]]:
    """Return the image files of a split, as names in the tree, with their labels."""
    files, labels = (_gtsrb if name == "gtsrb" else _tiny_imagenet)(split, where, tree)
    return files, np.asarray(labels, np.int64)


def _gtsrb(split: str, where: Path, tree: _Tree) -> tuple[list[str], list[int]]:
    if split == "train":
        files = [name for name in tree.names() if name.endswith(".ppm")]
        return files, [int(name.split("/")[-2]) for name in files]
    if where.suffix == ".zip":
        with zipfile.ZipFile(where.with_name(GTSRB_TRUTH_ZIP)) as truth:
            table = truth.read(GTSRB_TRUTH).decode()
    else:
        table = (where.parents[2] / GTSRB_TRUTH).read_text()
    rows = [line.split(";") for line in table.splitlines()[1:] if line]
    prefix = "GTSRB/Final_Test/Images/" if where.suffix == ".zip" else ""
    return [prefix + row[0] for row in rows], [int(row[-1]) for row in rows]


def _tiny_imagenet(split: str, where: Path, tree: _Tree) -> tuple[list[str], list[int]]:
    prefix = f"{TINY}/" if where.suffix == ".zip" else ""
    label = {wnid: i for i, wnid in enumerate(sorted(tree.read(f"{prefix}wnids.txt").decode().split()))}
    if split == "train":
        files = [n for n in tree.names() if n.startswith(f"{prefix}train/") and n.endswith(".JPEG")]
        return files, [label[name.split("/")[-3]] for name in files]
    table = tree.read(f"{prefix}val/val_annotations.txt").decode()
    rows = [line.split("\t")[:2] for line in table.splitlines() if line]
    return [f"{prefix}val/images/{image}" for image, _ in rows], [label[wnid] for _, wnid in rows]


def tiny_class_names() -> tuple[str, ...]:
    """Return the 200 class names of Tiny ImageNet (first word of each entry, by sorted wnid); empty without a
    copy."""
    where = locate("tiny_imagenet", "train")
    if where is None:
        return ()
    try:
        with _Tree.open(where) as tree:
            prefix = f"{TINY}/" if where.suffix == ".zip" else ""
            table = tree.read(f"{prefix}words.txt").decode()
            words = dict(line.split("\t", 1) for line in table.splitlines() if "\t" in line)
            wnids = sorted(tree.read(f"{prefix}wnids.txt").decode().split())
    except (zipfile.BadZipFile, KeyError, ValueError, OSError):
        return ()
    return tuple(words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids)


class _Tree:
    """Files of a folder or of a zip archive by their path with forward slashes, in sorted order."""

    def __init__(self, where: Path, archive: zipfile.ZipFile | None):
        self.where, self.archive = where, archive

    @classmethod
    @contextmanager
    def open(cls, where: Path) -> Iterator[_Tree]:
        if where.suffix == ".zip":
            with zipfile.ZipFile(where) as archive:
                yield cls(where, archive)
        else:
            yield cls(where, None)

    def names(self) -> list[str]:
        if self.archive is not None:
            return sorted(info.filename for info in self.archive.infolist() if not info.is_dir())
        return sorted(
            path.relative_to(self.where).as_posix() for path in self.where.rglob("*") if path.is_file()
        )

    def read(self, name: str) -> bytes:
        return self.archive.read(name) if self.archive is not None else (self.where / name).read_bytes()

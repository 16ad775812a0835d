"""Original copies of the data sets, as their makers or torchvision lay them down on disk. Reads, never downloads.

All lie under `$NPD_DATA_DIR/torchvision`:

cifar10         cifar-10-batches-py/                     torchvision's folder, checked by torchvision
gtsrb           gtsrb/GTSRB_Final_Training_Images.zip, GTSRB_Final_Test_Images.zip, GTSRB_Final_Test_GT.zip, read as
                they are; or what torchvision unpacks: gtsrb/GTSRB/Training/ (26,640 of the 39,209 images),
                gtsrb/GTSRB/Final_Test/ and gtsrb/GT-final_test.csv
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
    """Where torchvision's copies and our own downloads lie."""
    return paths.data().absolute() / "torchvision"


def locate(name: str, split: str) -> Path | None:
    """Folder or file that holds this split, or None. Looks at names only, reads nothing."""
    wanted: list[Path] = []
    if name == "cifar10":
        folder = root() / "cifar-10-batches-py"
        if (folder / ("data_batch_1" if split == "train" else "test_batch")).is_file():
            return folder
    elif name == "gtsrb":
        base = root() / "gtsrb"
        if split == "train":
            wanted = [base / GTSRB_TRAIN_ZIP, base / "GTSRB" / "Training"]
        else:
            wanted = [base / GTSRB_TEST_ZIP] if (base / GTSRB_TRUTH_ZIP).is_file() else []
            wanted += [base / "GTSRB" / "Final_Test" / "Images"] if (base / GTSRB_TRUTH).is_file() else []
    elif name == "tiny_imagenet":
        wanted = [root() / f"{TINY}.zip", root() / TINY]
    return next((path for path in wanted if path.exists()), None)


def read(name: str, split: str, size: int) -> Arrays:
    """images (N, 3, size, size) uint8 and labels (N,) int64 of the copy that `locate` finds.

    Raises:
        DataMissingError: no copy.
        StorageError: a copy that is incomplete or damaged.
    """
    where = locate(name, split)
    if where is None:
        raise DataMissingError(
            f"There is no copy of {name} ({split}) in {root()}; run `npd data get {name}`."
        )
    try:
        if name == "cifar10":
            return _cifar10(split)
        if name == "gtsrb":
            return _gtsrb(where, split, size)
        return _tiny_imagenet(where, split, size)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        remedy = f"remove it and run `npd data get {name}`"
        raise StorageError(f"{where} is damaged or incomplete; {remedy}. ({error})") from error


def _cifar10(split: str) -> Arrays:
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(str(root()), train=split == "train", download=False)
    except RuntimeError as error:
        raise StorageError(
            f"{root() / 'cifar-10-batches-py'} is damaged or incomplete; remove it and run `npd data get cifar10`."
        ) from error
    return np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.asarray(data.targets, np.int64)


def _gtsrb(where: Path, split: str, size: int) -> Arrays:
    if split == "test":
        if where.suffix == ".zip":
            with zipfile.ZipFile(where.with_name(GTSRB_TRUTH_ZIP)) as truth:
                table = truth.read(GTSRB_TRUTH).decode()
        else:
            table = (where.parents[2] / GTSRB_TRUTH).read_text()
        rows = [line.split(";") for line in table.splitlines()[1:] if line]
        with _Tree.open(where) as tree:
            prefix = "GTSRB/Final_Test/Images/" if where.suffix == ".zip" else ""
            coded = [tree.read(prefix + row[0]) for row in rows]
        return decode_images(coded, size, name=str(where)), np.asarray(
            [int(row[-1]) for row in rows], np.int64
        )
    with _Tree.open(where) as tree:
        names = [name for name in tree.names() if name.endswith(".ppm")]
        labels = np.asarray([int(name.split("/")[-2]) for name in names], np.int64)
        return decode_images([tree.read(name) for name in names], size, name=str(where)), labels


def _tiny_imagenet(where: Path, split: str, size: int) -> Arrays:
    with _Tree.open(where) as tree:
        prefix = f"{TINY}/" if where.suffix == ".zip" else ""
        label = {wnid: i for i, wnid in enumerate(sorted(tree.read(f"{prefix}wnids.txt").decode().split()))}
        if split == "train":
            names = [n for n in tree.names() if n.startswith(f"{prefix}train/") and n.endswith(".JPEG")]
            labels = [label[name.split("/")[-3]] for name in names]
        else:
            table = tree.read(f"{prefix}val/val_annotations.txt").decode()
            rows = [line.split("\t")[:2] for line in table.splitlines() if line]
            names = [f"{prefix}val/images/{image}" for image, _ in rows]
            labels = [label[wnid] for _, wnid in rows]
        return decode_images([tree.read(name) for name in names], size, name=str(where)), np.asarray(
            labels, np.int64
        )


def tiny_class_names() -> tuple[str, ...]:
    """The 200 names of Tiny ImageNet by label (sorted wnids, first word of each entry); empty without a copy."""
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

"""Images from an untrusted file: a zip archive of class folders, or a parquet file.

Nothing is unpacked to the disk, and sizes are checked before anything is decoded. No torch.
"""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from npd_core.data import parquet
from npd_core.errors import ConfigError, StorageError, first_line

MAX_DECODED = 1_500_000_000
"""Bytes of all decoded images together."""
MOST_DIGITS = 6
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, ValueError, NotImplementedError, EOFError)
"""What reading a damaged zip archive raises."""
MAX_FILE = 300_000_000
"""Bytes of the file, and of everything in it once unpacked."""
MAX_IMAGES = 20_000
MAX_ENTRIES = 50_000
"""Entries of an archive, including folders and other files."""
MAX_IMAGE = 20_000_000
"""Bytes of one image file."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".gif")
LAYOUT = "put the images of each class into a folder of its own"


class Images(NamedTuple):
    """Decoded images with their labels."""

    images: NDArray[np.uint8]
    """(N, 3, size, size)."""
    labels: NDArray[np.int64]
    """(N,), in [0, num_classes)."""
    classes: tuple[str, ...]
    """One name a class of the network."""
    turned: int = 0
    """Images that were rotated to be upright, as their Exif blocks say."""


def read_images(path: Path, size: int, num_classes: int, classes: Sequence[str] | None = None) -> Images:
    """Decode every image of the file, resized to `size`.

    Labels are the alphabetical order of the folders, as in torchvision's ImageFolder, or the folders' names
    where all of them are whole numbers. A parquet file has its own labels.

    Args:
        path: a .zip or a .parquet file, recognized by its first bytes.
        num_classes: of the network.
        classes: names of all classes by label, if they are known; folders with these names may be missing.
    Raises:
        ConfigError: too large, too many images, or classes other than the network's.
        StorageError: damaged, or an image that cannot be decoded.
    """
    if path.stat().st_size > MAX_FILE:
        raise ConfigError(
            f"The file of images has more than {MAX_FILE / 1e6:.0f} MB: a few thousand images are plenty."
        )
    with path.open("rb") as file:
        start = file.read(4)
    try:
        if start == b"PAR1":
            return _parquet(path, size, num_classes)
        if start[:2] == b"PK":
            return _zip(path, size, num_classes, classes)
    except MemoryError as error:
        raise ConfigError("There is too little memory for these images: upload fewer.") from error
    raise StorageError("Images must be a .zip archive of class folders or a .parquet file.")


def _zip(path: Path, size: int, num_classes: int, known: Sequence[str] | None) -> Images:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive)
            coded = [_content(archive, entry) for entry, _ in entries]
    except DAMAGE as error:
        raise StorageError(f"The archive is damaged ({first_line(error)}): pack it again.") from error
    _room(len(coded), size)
    folders, turned = [folder for _, folder in entries], list[int]()
    classes, label = _labels(sorted(set(folders)), num_classes, known)
    labels = np.asarray([label[folder] for folder in folders], np.int64)
    images = _decoded(coded, size, [entry.filename for entry, _ in entries], turned)
    return Images(images, labels, classes, len(turned))


def read_unlabeled(path: Path, size: int) -> tuple[list[str], NDArray[np.uint8]]:
    """Decode every image of a zip archive, in folders or not, resized to `size`.

    Returns:
        the file names, and the images, (N, 3, size, size).
    Raises:
        ConfigError, StorageError: as for `read_images`.
    """
    if path.stat().st_size > MAX_FILE:
        raise ConfigError(
            f"The file of images has more than {MAX_FILE / 1e6:.0f} MB: a few thousand images are plenty."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive, labeled=False)
            coded = [_content(archive, entry) for entry, _ in entries]
    except DAMAGE as error:
        raise StorageError(f"The archive is damaged ({first_line(error)}): pack it again.") from error
    _room(len(coded), size)
    names = [entry.filename for entry, _ in entries]
    return names, _decoded(coded, size, names, [])


def _entries(archive: zipfile.ZipFile, labeled: bool = True) -> list[tuple[zipfile.ZipInfo, str]]:
    """Return the images of the archive with the names of their folders, by path. Unpacks nothing."""
    listed = archive.infolist()
    if len(listed) > MAX_ENTRIES:
        raise ConfigError(
            f"The archive has {len(listed)} entries, the limit is {MAX_ENTRIES}: upload fewer images."
        )
    found = []
    for entry in listed:
        name = entry.filename.replace("\\", "/")  # written by some programs of Windows
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or ":" in name:
            raise ConfigError(
                f"The archive has a path that leaves its folder ({entry.filename[:60]!r}): pack it again."
            )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ConfigError(
                f"The archive has a link ({entry.filename[:60]!r}): pack the images themselves."
            )
        if entry.is_dir() or any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        if not entry.filename.lower().endswith(ENDINGS):
            continue
        if entry.flag_bits & 1:
            raise ConfigError("The archive is encrypted: pack it without a password.")
        if entry.file_size > MAX_IMAGE:
            raise ConfigError(
                f"{entry.filename[:60]!r} has more than {MAX_IMAGE / 1e6:.0f} MB: upload smaller images."
            )
        if labeled and len(parts) < 2:
            raise ConfigError(f"{entry.filename[:60]!r} is in no folder: {LAYOUT}.")
        found.append((entry, parts[-2] if len(parts) > 1 else ""))
    if not found:
        raise ConfigError(f"The archive has no image ({', '.join(ENDINGS)}): {LAYOUT}.")
    if len(found) > MAX_IMAGES:
        raise ConfigError(f"The archive has {len(found)} images, the limit is {MAX_IMAGES}: upload fewer.")
    if sum(entry.file_size for entry, _ in found) > MAX_FILE:
        raise ConfigError(
            f"The archive would unpack to more than {MAX_FILE / 1e6:.0f} MB: upload fewer images."
        )
    return sorted(found, key=lambda pair: pair[0].filename)


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return the bytes of an entry, never more than its declared size."""
    with archive.open(entry) as file:
        content = file.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise zipfile.BadZipFile(f"{entry.filename[:60]!r} has another size than declared")
    return content


def _labels(
    names: Sequence[str], num_classes: int, known: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names by label, and the label of each folder."""
    if all(name.isascii() and name.isdigit() and len(name) <= MOST_DIGITS for name in names):
        label = {name: int(name) for name in names}
        if max(label.values()) >= num_classes:
            raise ConfigError(
                f"Folder {max(label.values())} is not a class of the network, 0 to {num_classes - 1}: name "
                "the folders by its labels."
            )
        return tuple(f"class {k}" for k in range(num_classes)), label
    if known is not None:
        by_name = {name: k for k, name in enumerate(known)}
        other = next((name for name in names if name[:60] not in by_name), None)
        if other is not None:
            raise ConfigError(
                f"Folder {other[:60]!r} has no counterpart among the clean images: name the folders of both "
                "alike, or by their labels."
            )
        return tuple(known), {name: by_name[name[:60]] for name in names}
    if len(names) != num_classes:
        raise ConfigError(
            f"The network has {num_classes} classes, the archive {len(names)} folders: pack one folder per "
            f"class, or name the folders by their labels, 0 to {num_classes - 1}."
        )
    return tuple(name[:60] for name in names), {name: k for k, name in enumerate(names)}


def _parquet(path: Path, size: int, num_classes: int) -> Images:
    try:
        about = pq.ParquetFile(path).metadata
        unpacked = sum(about.row_group(k).total_byte_size for k in range(about.num_row_groups))
        rows = about.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(f"The parquet file is damaged ({first_line(error)}): export it again.") from error
    if rows > MAX_IMAGES or unpacked > MAX_FILE:
        raise ConfigError(
            f"The parquet file has {rows} images of {unpacked / 1e6:.0f} MB, the limits are {MAX_IMAGES} and "
            f"{MAX_FILE / 1e6:.0f} MB: upload fewer."
        )
    if not rows:
        raise ConfigError("The parquet file has no image: export it again.")
    _room(rows, size)
    try:
        names = parquet.class_names(path)
        if parquet.unpacked(path) > MAX_FILE:
            raise ConfigError(f"The images would unpack to more than {MAX_FILE / 1e6:.0f} MB: upload fewer.")
        turned: list[int] = []
        images, labels = parquet.read_images(path, num_classes, size, turned=turned)
    except StorageError as error:
        raise StorageError(_without(str(error), path)) from error
    classes = names if len(names) == num_classes else tuple(f"class {k}" for k in range(num_classes))
    return Images(images, labels, tuple(name[:60] for name in classes), len(turned))


def _room(count: int, size: int) -> None:
    """Raise ConfigError if so many images of this size take too much memory."""
    if count * 3 * size**2 > MAX_DECODED:
        raise ConfigError(
            f"{count} images of {size} x {size} pixels take more than {MAX_DECODED / 1e9:g} GB: upload "
            "fewer, or choose a smaller size."
        )


def _decoded(coded: Sequence[bytes], size: int, names: Sequence[str], turned: list[int]) -> NDArray[np.uint8]:
    out = np.empty((len(coded), 3, size, size), np.uint8)
    for start in range(0, len(coded), parquet.CHUNK):
        part = slice(start, start + parquet.CHUNK)
        try:
            rows = range(start, len(coded))
            out[part] = parquet.decode_images(coded[part], size, name="images", rows=rows, turned=turned)
        except StorageError as error:
            row = int(str(error).split("row ")[1].split(":")[0])
            raise StorageError(f"{names[row][:80]!r} cannot be decoded: leave it out.") from error
    return out


def _without(message: str, path: Path) -> str:
    """Remove the path on the server, and the remedy for data of ours, from a message of the parquet
    reader."""
    return message.replace(str(path), "The parquet file").replace("; fetch it again.", "; export it again.")

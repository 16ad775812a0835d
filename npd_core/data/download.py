"""Opt-in downloads of the original archives, resumable and verified by checksum.

Archives go to `$NPD_DATA_DIR/torchvision`, where `archives` reads them. A file under its final name is
complete and verified; an unfinished one ends in `.part`. CIFAR-10 is unpacked, as torchvision needs it.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from npd_core.data import archives
from npd_core.data.load import Availability, availability
from npd_core.data.spec import get_dataset
from npd_core.errors import DataMissingError, NPDError, StorageError

Progress = Callable[[int, int], None]
"""Called with the bytes done and the total bytes of one data set."""

BLOCK = 1 << 20
TIMEOUT = 30.0
"""Seconds without a byte after which a connection is lost."""
ATTEMPTS = 4
"""Attempts to connect before giving up."""
PAUSE = 1.0
"""Seconds before the first new attempt; doubled each time."""


@dataclass(frozen=True)
class Archive:
    """One file to fetch."""

    url: str
    md5: str
    size: int
    """Bytes; for the progress bar and the check of free space."""
    path: str
    """Its path, relative to `archives.root()`."""
    unpacks_to: str = ""
    """Folder that it is unpacked to, relative to the same; empty if it is not unpacked."""


_ERDA = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"

ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "signs": (),
    "cifar10": (
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            170_498_071,
            "cifar-10-python.tar.gz",
            "cifar-10-batches-py",
        ),
    ),
    "gtsrb": tuple(
        Archive(f"{_ERDA}/{name}", md5, size, f"gtsrb/{name}")
        for name, md5, size in (
            (archives.GTSRB_TRAIN_ZIP, "f33fd80ac59bff73c82d25ab499e03a3", 276_294_756),
            (archives.GTSRB_TEST_ZIP, "c7e4e6327067d32654124b0fe9e82185", 88_978_620),
            (archives.GTSRB_TRUTH_ZIP, "fe31e9c9270bbcd7b84b7f21a9d9d9e5", 99_620),
        )
    ),
    "tiny_imagenet": (
        Archive(
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            "90528d7ca1a48142e341f4ef8d21d0de",
            248_100_043,
            f"{archives.TINY}.zip",
        ),
    ),
}


def get_dataset_files(name: str, progress: Progress | None = None) -> Availability:
    """Fetch the missing archives of a data set; nothing if both splits are here.

    After an interruption (Ctrl-C included) the next call continues.

    Returns:
        The availability afterwards.
    Raises:
        UnknownNameError: no such data set.
        DataMissingError: no network, a refusal by the server, or a wrong checksum.
        StorageError: no space, or no permission to write.
    """
    spec = get_dataset(name)
    here = availability(name)
    if {"train", "test"} <= here.splits.keys():
        return here
    root = archives.root()
    missing = [archive for archive in ARCHIVES[name] if not _is_complete(root, archive)]
    with _storage_errors(root):
        for archive in missing:
            (root / archive.path).parent.mkdir(parents=True, exist_ok=True)
        if missing:
            _check_room(root, missing)
    total, done = sum(archive.size for archive in missing), 0
    for archive in missing:
        report = _from(progress, done, total - archive.size)
        size = fetch(archive.url, archive.md5, root / archive.path, report, title=spec.title)
        total += size - archive.size
        done += size
        if archive.unpacks_to:
            _unpack(root / archive.path, root, archive.unpacks_to)
    found = availability(name)
    if not found.available:
        raise DataMissingError(found.reason)
    return found


def _from(progress: Progress | None, done: int, others: int) -> Progress:
    """Return the progress of one file among several: `done` bytes precede it, `others` belong to other
    files."""

    def report(fetched: int, size: int) -> None:
        if progress is not None:
            progress(done + fetched, others + size)

    return report


def _is_complete(root: Path, archive: Archive) -> bool:
    return (root / (archive.unpacks_to or archive.path)).exists()


def _check_room(root: Path, missing: list[Archive]) -> None:
    needed = 0
    for archive in missing:
        part = _part(root / archive.path)
        needed += archive.size - min(archive.size, part.stat().st_size if part.exists() else 0)
        needed += archive.size * 5 // 4 if archive.unpacks_to else 0
    free = shutil.disk_usage(root).free
    if free < needed:
        raise StorageError(
            f"The download needs {_megabytes(needed)} in {root}, but only {_megabytes(free)} are free; "
            "free some space or set NPD_DATA_DIR to another folder."
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def fetch(url: str, md5: str, target: Path, progress: Progress | None = None, *, title: str = "") -> int:
    """Fetch one file to `target`, continuing `target`.part if it exists.

    If the checksum of the whole file is wrong after a resumed download, the file is fetched once more from
    the start.

    Args:
        md5: of the complete file, hexadecimal.
        progress: called with the bytes done and the total.
        title: name of the file in messages.
    Returns:
        Size of the file in bytes.
    Raises:
        DataMissingError, StorageError: as `get_dataset_files`.
    """
    title = title or target.name
    part = _part(target)
    with _storage_errors(target.parent), _alone(part, title):
        if target.exists():
            if _md5(target) == md5:
                return target.stat().st_size
            target.unlink()
        resumed = part.exists() and part.stat().st_size > 0
        for fresh in (False, True) if resumed else (True,):
            if fresh:
                part.unlink(missing_ok=True)
            _fill(url, part, progress, title)
            if _md5(part) == md5:
                size = part.stat().st_size
                part.replace(target)
                return size
        part.unlink()
    raise DataMissingError(
        f"{title}: the file from {urlsplit(url).netloc} had a wrong checksum and was removed; try again "
        f"later, or put a good copy at {target}."
    )


def _fill(url: str, part: Path, progress: Progress | None, title: str) -> None:
    """Complete the partial file; reconnect after a lost connection."""
    host = urlsplit(url).netloc
    advice = f"check the network and try again (it will continue) or put the file at {part.with_suffix('')}."
    for attempt in range(ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, progress)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == ATTEMPTS - 1:
                raise DataMissingError(
                    f"{title}: {host} answered {error.code} {error.reason}; {advice}"
                ) from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            cause = getattr(error, "reason", None) or error
            offline = isinstance(error, urllib.error.URLError) and before == 0
            if attempt == ATTEMPTS - 1 or offline:
                raise DataMissingError(
                    f"{title} could not be fetched from {host} ({cause}); {advice}"
                ) from error
        time.sleep(PAUSE * 2**attempt)


def _receive(url: str, part: Path, progress: Progress | None) -> None:
    """Request the missing part and append it. Raises ConnectionError when the connection ends too early."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "neural-polarizer-lab"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:  # nothing follows; the checksum decides
                return
        raise
    except urllib.error.URLError:
        raise
    except OSError as error:
        raise ConnectionError(str(error)) from error
    with response:
        if response.status != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else 0
        with open(part, "ab" if have else "wb") as file:
            while block := _block(response):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, max(total, have))
    if have < total:
        raise ConnectionError(f"the connection ended after {_megabytes(have)} of {_megabytes(total)}")


def _block(response: http.client.HTTPResponse) -> bytes:
    """Return the next bytes; a network error becomes a ConnectionError, to differ from errors of the disk."""
    try:
        return response.read(BLOCK)
    except OSError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpack `folder` of a verified tar file beside it; the folder appears when it is complete."""
    with _storage_errors(root), tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as scratch:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
        except tarfile.TarError as error:
            raise StorageError(
                f"{archive} cannot be unpacked ({error}); remove it and fetch it again."
            ) from error
        (Path(scratch) / folder).replace(root / folder)


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into StorageErrors with a remedy."""
    try:
        yield
    except NPDError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = (
                "the disk is full; free some space (the download then continues) or set NPD_DATA_DIR to "
                "another folder"
            )
        else:
            reason = f"{error.strerror or error}; set NPD_DATA_DIR to a folder that can be written"
        raise StorageError(f"The download cannot be saved in {folder}: {reason}.") from error


@contextmanager
def _alone(part: Path, title: str) -> Iterator[None]:
    """Keep a second process from writing the same partial file. The lock ends with the process that holds
    it."""
    lock = part.with_name(part.name + ".lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # systems that cannot remove an open file keep an empty one
                    lock.unlink()
    except Timeout as error:
        raise DataMissingError(
            f"{title} is being downloaded by another process; wait for it to end."
        ) from error

"""Writing of files as a whole or not at all, and messages for disk errors. Imports torch lazily."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npd_core.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def staged(*paths: Path) -> Iterator[list[Path]]:
    """Yield a fresh hidden path beside each of `paths`; move them all into place at the end of the block.

    After an exception, Ctrl-C included, the fresh files are removed and the old ones stay. The folders are
    created. An OSError becomes a StorageError that names the file and the remedy.
    """
    fresh = [path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial") for path in paths]
    with disk_errors(paths[0]):
        try:
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            yield fresh
            for source, target in zip(fresh, paths, strict=True):
                os.replace(source, target)
        finally:
            for source in fresh:
                with contextlib.suppress(OSError):
                    source.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield a fresh hidden folder that takes the place of `folder` at the end of the block.

    The old content is deleted last, and restored if the move fails. Raises StorageError.
    """
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.old")
    with disk_errors(folder):
        try:
            fresh.mkdir(parents=True)
            yield fresh
            if folder.exists():
                os.replace(folder, old)
            os.replace(fresh, folder)
        finally:
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(fresh, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 file as a whole. Raises StorageError."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, indent: int = 1) -> None:
    """Replace a JSON file as a whole. Raises StorageError, and ValueError for NaN or infinity."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file as a whole, and wait until the disk has it. Raises StorageError."""
    with staged(path) as (fresh,), fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_tensors(path: Path, state: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Replace a safetensors file as a whole, with `notes` in its header. Raises StorageError."""
    with staged(path) as (fresh,):
        save_tensors(fresh, state, notes)


def write_described(
    weights: Path, state: Mapping[str, Tensor], path: Path, description: Mapping[str, Any]
) -> None:
    """Write weights and a JSON description with their sha256: both or neither. Raises StorageError."""
    with staged(weights, path) as (fresh_weights, fresh_description):
        save_tensors(fresh_weights, state)
        text = json.dumps({**description, "sha256": sha256(fresh_weights)}, indent=2)
        fresh_description.write_text(text + "\n", encoding="utf-8")


def save_tensors(path: Path, state: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in place; for use inside `staged`. Raises OSError."""
    import safetensors
    from safetensors.torch import save_file

    held = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    try:
        save_file(held, path, dict(notes) if notes else None)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


def sha256(path: Path) -> str:
    """Hex digest of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError about `path`; `verb` is read or write."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error, verb) from error


def storage_error(path: Path, error: OSError, verb: str = "write") -> StorageError:
    """The error for a file that could not be read or written, with the remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"The disk is full, so {path} could not be written: free some space and try again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"No permission to {verb} {path}: change the permissions of its folder, or choose another folder."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR) and verb == "write":
        return StorageError(f"Could not write {path}: a file is where a folder should be, or the reverse.")
    return StorageError(
        f"Could not {verb} {path} ({error.strerror or error}): check the disk, or choose another folder."
    )

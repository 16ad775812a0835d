"""Processes that work on runs: each holds a locked file, and the lock ends with the process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import uuid
from pathlib import Path
from typing import ClassVar

from npd_core.fileio import disk_errors


class Owner:
    """A locked file that shows that this process is alive; the lock ends with the process."""

    _mine: ClassVar[set[str]] = set()
    """Names of the owners in this process."""

    def __init__(self, root: Path) -> None:
        """Args: root: folder of the runs. Raises StorageError."""
        self.name = uuid.uuid4().hex
        self._path = _owner_file(root, self.name)
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                fcntl.flock(self._fd, fcntl.LOCK_EX)
                if os.fstat(self._fd).st_nlink:  # 0: removed by `sweep` between open and flock
                    break
                os.close(self._fd)
        self._mine.add(self.name)

    def release(self) -> None:
        """Stop being an owner of runs."""
        self._mine.discard(self.name)
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.close(self._fd)

    @staticmethod
    def alive(root: Path, name: str) -> bool:
        """Return whether the process of the owner of this name is alive."""
        if name in Owner._mine:
            return True
        if not re.fullmatch("[0-9a-f]{32}", name):
            return False
        return _probe(_owner_file(root, name), unlink=False)

    @staticmethod
    def sweep(root: Path) -> None:
        """Remove the files of dead owners."""
        for path in (root / ".owners").glob("*.lock"):
            _probe(path, unlink=True)


def _owner_file(root: Path, name: str) -> Path:
    return root / ".owners" / f"{name}.lock"


def _probe(path: Path, *, unlink: bool) -> bool:
    """Return whether a process holds the lock of an owner file; optionally remove the file when none does."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # cannot be checked: assume alive
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if unlink:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)

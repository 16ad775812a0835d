"""What happens on Ctrl-C or `kill`: the command cleans up and ends at once, with nothing half-written."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import NoReturn

from npd_core.errors import StorageError

MESSAGE = "interrupted; nothing was left half-written."
UNFINISHED = (
    "interrupted before clean-up finished; half-written files, hidden or ending in .partial, may be left "
    "and can be deleted."
)
PATIENCE = 5.0
"""Seconds that cleaning up may take."""


class Interrupt:
    """Ends the process when a signal asks for it.

    The signal becomes a KeyboardInterrupt, so that every block removes what it has half-written. Within an
    import (torch imports for seconds) the exception may be swallowed, leave the import lock held, or change
    the exit code. There, and when cleaning up takes longer than PATIENCE or a second signal comes, the
    process ends at once after calling what is in `undo`.
    """

    def __init__(self) -> None:
        self.undo: list[Callable[[], None]] = []
        """What to clean up even then, newest last."""
        self.signal = 0
        """Number of the signal that came; 0: none."""
        self._command: CodeType | None = None
        self._busy = False

    def install(self, command: CodeType) -> None:
        """Handle signals from now on; one that the parent process ignores stays ignored.

        Args:
            command: code of the function in which a KeyboardInterrupt is sure to be caught.
        """
        self._command = command
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, lambda *_: self.leave(UNFINISHED))

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """Delay signals to the end of the block, where files that belong together are moved into place."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            if self.signal:
                self._unwind()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = bool(self.signal), number
        if self._busy:
            return
        if again:
            self.leave(UNFINISHED)
        if not self._inside_command(frame):
            self.leave()
        self._unwind()

    def _inside_command(self, frame: FrameType | None) -> bool:
        """Whether an exception raised in this frame is sure to reach `main`: not from within an import."""
        while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
            if frame.f_code is self._command:
                return True
            frame = frame.f_back
        return False

    def _unwind(self) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        raise KeyboardInterrupt

    def leave(self, message: str = MESSAGE) -> NoReturn:
        """Clean up and end the process; no thread and no worker is waited for."""
        for undo in reversed(self.undo):
            with contextlib.suppress(Exception):
                undo()
        show_cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""
        os.write(2, f"{show_cursor}npd: {message}\n".encode())
        os._exit(128 + self.signal)


interrupt = Interrupt()
"""That of this process."""


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder that replaces `folder` at the end of the block, and is removed after an error.

    Raises StorageError when it cannot be made or moved.
    """
    stage = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")

    def clear() -> None:
        shutil.rmtree(stage, ignore_errors=True)

    interrupt.undo.append(clear)
    try:
        try:
            stage.mkdir(parents=True)
        except OSError as error:
            raise StorageError(
                f"Cannot write in {folder.parent} ({error.strerror}): choose another folder."
            ) from error
        yield stage
        try:
            with interrupt.later():
                if folder.exists():
                    shutil.rmtree(folder)
                stage.rename(folder)
        except OSError as error:
            raise StorageError(f"Cannot write {folder} ({error.strerror}): choose another folder.") from error
    finally:
        clear()
        interrupt.undo.remove(clear)

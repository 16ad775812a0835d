"""Files with the polarizer after every epoch of a run. No torch here.

    <run>/epochs/000.safetensors    start of the bi-level problem: after the warm-up, or the identity
                 001.safetensors    after its first epoch; numbered like the epochs of the curves

They are written while the run goes on, for polarizers only. Each holds the state that was measured after its
epoch; the state that was kept in the end is in polarizer.safetensors. Runs of earlier versions have none.
"""

from __future__ import annotations

import re
from pathlib import Path

from npd_core.events import EpochEnd, Event, Started

FOLDER = "epochs"
_NAME = re.compile(r"(\d{3,})\.safetensors")


def snapshot_file(folder: Path, epoch: int) -> Path:
    """Return the file of the polarizer after `epoch` epochs in the folder of a run."""
    return folder / FOLDER / f"{epoch:03d}.safetensors"


def snapshot_epochs(folder: Path) -> list[int]:
    """Return the epochs of a run that have such a file, ascending."""
    try:
        names = [entry.name for entry in (folder / FOLDER).iterdir()]
    except OSError:
        return []
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def epoch_of(event: Event, warmup_epochs: int) -> int | None:
    """Return the number of the snapshot to write when a training yields `event`, or None."""
    if isinstance(event, Started):
        return 0 if warmup_epochs == 0 else None
    return event.epoch + 1 if isinstance(event, EpochEnd) and event.epoch >= -1 else None

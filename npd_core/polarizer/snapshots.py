"""Which epochs of a run left their polarizer behind, and under which name. No torch here.

    <run>/epochs/000.safetensors    at the start of the bi-level problem: after the warm-up, the identity without one
                 001.safetensors    after its first epoch; and so on, numbered as the epochs of the curves are

Written one after the other while the run goes on, each whole or not at all, for polarizers only. A file holds the state
that was measured after its epoch; which state was kept in the end, polarizer.safetensors tells. Runs of earlier
versions have none.
"""

from __future__ import annotations

import re
from pathlib import Path

from npd_core.events import EpochEnd, Event, Started

FOLDER = "epochs"
_NAME = re.compile(r"(\d{3,})\.safetensors")


def snapshot_file(folder: Path, epoch: int) -> Path:
    """Where the polarizer after `epoch` epochs lies in the folder of a run."""
    return folder / FOLDER / f"{epoch:03d}.safetensors"


def snapshot_epochs(folder: Path) -> list[int]:
    """Epochs of a run whose polarizer was kept, ascending; [] for a run without any."""
    try:
        names = [entry.name for entry in (folder / FOLDER).iterdir()]
    except OSError:
        return []
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def epoch_of(event: Event, warmup_epochs: int) -> int | None:
    """Number of the snapshot that is due when a training yields `event`; None for none."""
    if isinstance(event, Started):
        return 0 if warmup_epochs == 0 else None
    return event.epoch + 1 if isinstance(event, EpochEnd) and event.epoch >= -1 else None

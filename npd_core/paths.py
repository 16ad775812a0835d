"""Where things lie on disk. Every folder can be moved by an environment variable; nothing is created here."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def assets() -> Path:
    """Files shipped with the project: the built-in `signs`, trigger patterns, recorded runs."""
    return ROOT / "assets"


def pretrained() -> Path:
    """The zoo. `$NPD_ZOO_DIR`, otherwise `pretrained/` of the project."""
    return Path(os.environ.get("NPD_ZOO_DIR") or ROOT / "pretrained")


def data() -> Path:
    """Real data sets. `$NPD_DATA_DIR`, otherwise `data/` of the project (git ignores it)."""
    return Path(os.environ.get("NPD_DATA_DIR") or ROOT / "data")


def runs() -> Path:
    """The run store. `$NPD_RUNS_DIR`, otherwise `runs/` of the project (git ignores it)."""
    return Path(os.environ.get("NPD_RUNS_DIR") or ROOT / "runs")


def uploads() -> Path:
    """Return the folder of uploaded models, hidden among the runs."""
    return runs() / ".uploaded"


def uploaded(name: str) -> Path | None:
    """Return the folder of an uploaded model and its images, whether or not it exists; None for any other
    name.

    Models of earlier versions, `own-...`, are in a folder of their own.
    """
    kind = re.fullmatch(r"(uploaded|own)-[0-9a-f]{16}", name)
    return runs() / f".{kind[1]}" / name if kind else None


def recorded() -> Path:
    """Recorded runs of shipped models, in the layout of the run store; read-only."""
    return assets() / "recorded"


def tables() -> Path:
    """Recorded tables of the paper, made by `npd table`. `$NPD_TABLES_DIR`, otherwise with the recorded
    runs."""
    return Path(os.environ.get("NPD_TABLES_DIR") or recorded() / "tables")


def sweeps() -> Path:
    """Results of sweeps and tables, one file a run. `$NPD_SWEEPS_DIR`, otherwise `sweeps/` (git ignores
    it)."""
    return Path(os.environ.get("NPD_SWEEPS_DIR") or ROOT / "sweeps")


def checkpoints() -> Path:
    """Trainings of zoo models that are under way. `$NPD_CHECKPOINTS_DIR`, otherwise `checkpoints/` (git
    ignores it)."""
    return Path(os.environ.get("NPD_CHECKPOINTS_DIR") or ROOT / "checkpoints")

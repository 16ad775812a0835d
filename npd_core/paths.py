"""Where things lie on disk. Every folder can be moved by an environment variable; nothing is created here."""

from __future__ import annotations

import os
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


def recorded() -> Path:
    """Recorded runs of shipped models, in the layout of the run store; read-only."""
    return assets() / "recorded"

"""Folders on disk, most of which an environment variable can move. Nothing is created here."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def assets() -> Path:
    """Return the folder of files shipped with the project: `signs`, trigger patterns, recorded runs."""
    return ROOT / "assets"


def pretrained() -> Path:
    """Return the folder of the zoo: `$NPD_ZOO_DIR`, otherwise `pretrained/` of the project."""
    return Path(os.environ.get("NPD_ZOO_DIR") or ROOT / "pretrained")


def data() -> Path:
    """Return the folder of real data sets: `$NPD_DATA_DIR`, otherwise `data/` of the project."""
    return Path(os.environ.get("NPD_DATA_DIR") or ROOT / "data")


def runs() -> Path:
    """Return the folder of the run store: `$NPD_RUNS_DIR`, otherwise `runs/` of the project."""
    return Path(os.environ.get("NPD_RUNS_DIR") or ROOT / "runs")


def uploads() -> Path:
    """Return the folder of uploaded models, hidden among the runs."""
    return runs() / ".uploaded"


def uploaded(name: str) -> Path | None:
    """Return the folder of an uploaded model, whether or not it exists; None for any other name.

    Models of earlier versions, `own-...`, are in another folder.
    """
    kind = re.fullmatch(r"(uploaded|own)-[0-9a-f]{16}", name)
    return runs() / f".{kind[1]}" / name if kind else None


def recorded() -> Path:
    """Return the folder of the recorded runs, in the layout of the run store; read-only."""
    return assets() / "recorded"


def tables() -> Path:
    """Return the folder of the recorded tables: `$NPD_TABLES_DIR`, otherwise beside the recorded runs."""
    return Path(os.environ.get("NPD_TABLES_DIR") or recorded() / "tables")


def sweeps() -> Path:
    """Return the folder of sweep results, one file per run: `$NPD_SWEEPS_DIR`, otherwise `sweeps/`."""
    return Path(os.environ.get("NPD_SWEEPS_DIR") or ROOT / "sweeps")


def checkpoints() -> Path:
    """Return the folder of unfinished zoo trainings: `$NPD_CHECKPOINTS_DIR`, otherwise `checkpoints/`."""
    return Path(os.environ.get("NPD_CHECKPOINTS_DIR") or ROOT / "checkpoints")

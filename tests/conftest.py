"""What every test can ask for. No test writes to the project's own `runs/`, and none depends on the caller's shell."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

# Before anything imports torch: two threads at most, so that a test costs the same on every machine.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to a temporary folder; zoo and data are the project's own unless a fixture below says otherwise."""
    monkeypatch.setenv("NPD_RUNS_DIR", str(tmp_path_factory.getbasetemp() / "runs"))
    monkeypatch.delenv("NPD_ZOO_DIR", raising=False)
    monkeypatch.delenv("NPD_DATA_DIR", raising=False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Same random numbers in every test, alone or in company."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture
def real_data(own_folders: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10, GTSRB and Tiny ImageNet, in `../shared/data` beside the project; where it is absent, the test is skipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real images are not here: {SHARED_DATA} does not exist")
    monkeypatch.setenv("NPD_DATA_DIR", str(SHARED_DATA))
    return SHARED_DATA


@pytest.fixture
def runs_dir(own_folders: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty run store of this test alone."""
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("NPD_RUNS_DIR", str(folder))
    return folder

"""The module of docs/architecture.md: an attack and a defense from outside the project run like those of the
project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def lab(tmp_path: Path, tiny_zoo: str) -> dict[str, str]:
    """Environment in which the module of the page is a plugin."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "my_lab.py").write_text(code, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "NPD_PLUGINS": "my_lab", "PYTHONPATH": path}


def npd(lab: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "npd_core", *words]
    return subprocess.run(command, cwd=folder, env=lab, capture_output=True, text=True, timeout=120)


def test_the_attack_of_the_page_writes_its_images(lab: dict[str, str], tmp_path: Path) -> None:
    done = npd(lab, tmp_path, "attack", "grey_bar", "--images", "2", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert [row["largest_change"] > 0 for row in json.loads(done.stdout)["images"]] == [True, True]


def test_the_defense_of_the_page_runs_and_is_measured(
    lab: dict[str, str], tmp_path: Path, tiny_zoo: str
) -> None:
    words = ["--defense", "shrink", "--set", "factor=0.5", "--clean", "24", "--device", "cpu", "--json", "-"]
    done = npd(lab, tmp_path, "defend", tiny_zoo, *words)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["defense"] == "shrink"
    assert result["config"]["config"]["factor"] == 0.5
    assert 0 <= result["after"]["asr"] <= 1


def test_a_defense_from_outside_runs_through_run_defense(
    lab: dict[str, str], tmp_path: Path, tiny_zoo: str
) -> None:
    code = f"""
from npd_core.plugins import load_plugins
load_plugins()
from my_lab import ShrinkConfig
from npd_core.config.request import DefenseRequest
from npd_core.defend import run_defense
request = DefenseRequest(model={tiny_zoo!r}, defense="shrink", clean=24, config=ShrinkConfig(), device="cpu")
print(type(list(run_defense(request, images=24))[-1]).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=lab, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["Finished"], done.stderr

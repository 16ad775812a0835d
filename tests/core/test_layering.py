"""What a page or a command imports at its start must not import torch. `lint-imports` checks the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
WITHOUT_TORCH = [
    "npd_core",
    "npd_core.attack_info",
    "npd_core.cli.main",
    "npd_core.config.baselines",
    "npd_core.config.npd",
    "npd_core.config.presets",
    "npd_core.config.request",
    "npd_core.data.images",
    "npd_core.data.load",
    "npd_core.data.spec",
    "npd_core.defenses",
    "npd_core.errors",
    "npd_core.events",
    "npd_core.experiments.grid",
    "npd_core.experiments.plan",
    "npd_core.experiments.record",
    "npd_core.experiments.sweep",
    "npd_core.exports.run_archive",
    "npd_core.figures",
    "npd_core.fileio",
    "npd_core.metrics",
    "npd_core.names",
    "npd_core.paths",
    "npd_core.plugins",
    "npd_core.polarizer.snapshots",
    "npd_core.progress",
    "npd_core.runs.queue",
    "npd_core.runs.store",
    "npd_core.runs.work",
    "npd_core.uploads.images",
    "npd_core.zoo",
    "npd_core.zoo.card",
    "pages.content.glossary",
    "pages.content.lessons",
]


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_without_torch(module):
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "captum", "streamlit"):
            raise ImportError(name + " must not be imported here")
sys.meta_path.insert(0, Refuse())
import {module}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

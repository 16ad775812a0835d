"""The loop of the booth: recorded runs in turn, or a picture without any. These pages need no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from npd_core import paths
from npd_core.runs.store import Run
from pages.shared import describe, recorded_runs

ROOT = Path(__file__).resolve().parent.parent.parent
Open = Callable[..., AppTest]

WITHOUT_TORCH = """
import sys
from streamlit.testing.v1 import AppTest
for name in ("booth", "glossary", "lessons"):
    page = AppTest.from_file(f"pages/{name}.py", default_timeout=120).run()
    assert not page.exception, page.exception
    assert page.title, "nothing was drawn"
print(",".join(name for name in ("torch", "torchvision", "captum") if name in sys.modules))
"""


def test_takes_turns(make_run: Callable[..., Run], tmp_path: Path, open_page: Open, monkeypatch) -> None:
    folder = tmp_path / "recorded"
    folder.mkdir()
    for seed in (1, 2):
        run = make_run(seed=seed)
        shutil.move(run.folder, folder / run.id)
    monkeypatch.setattr(paths, "recorded", lambda: folder)
    said = []
    for now in (24.0, 48.0, 71.0, 72.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        page = open_page("booth").run()
        assert not page.exception, page.exception
        assert "81.0%" in page.title[0].value
        said.append(page.caption[0].value)
    assert said[1] == said[2] != said[0] == said[3]
    sources = [describe.provenance(run) for run in recorded_runs.recorded_runs()]
    assert all(any(source in caption for source in sources) for caption in said)


@pytest.mark.usefixtures("tiny_zoo", "runs_dir")
def test_stands_with_nothing_recorded(open_page: Open) -> None:
    page = open_page("booth").run()
    assert page.title[0].value
    assert "%" not in page.title[0].value, "nothing is measured"


def test_booth_and_words_need_no_torch(tiny_zoo_folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "NPD_ZOO_DIR": str(tiny_zoo_folder),
        "NPD_RUNS_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_TORCH]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1:] in ([], [""]), done.stdout

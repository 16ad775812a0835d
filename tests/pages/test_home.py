"""The first page: paints without torch, shows a recorded run as recorded, and stands with nothing there to show."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from npd_core import paths
from npd_core.figures.gallery import Answer, Item, write_gallery
from npd_core.jobs.store import Run

ROOT = Path(__file__).resolve().parent.parent.parent
Open = Callable[..., AppTest]
Make = Callable[..., Run]

FIRST_PAINT = """
import sys
from streamlit.testing.v1 import AppTest
page = AppTest.from_file("app.py", default_timeout=120).run()
assert not page.exception, page.exception
assert page.title, "nothing was drawn"
print(",".join(name for name in ("torch", "torchvision", "captum") if name in sys.modules))
"""


@pytest.fixture
def recorded(make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run of the tiny model in a folder of recorded runs."""
    run = make_run(seed=3)
    folder = tmp_path / "recorded"
    folder.mkdir()
    shutil.move(run.folder, folder / run.id)
    monkeypatch.setattr(paths, "recorded", lambda: folder)
    from npd_core.jobs.store import RunStore

    return RunStore(folder).get(run.id)


@pytest.fixture
def nothing_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "recorded", lambda: tmp_path / "none")


def words(page: AppTest) -> str:
    assert not page.exception, page.exception
    return " ".join(element.value for kind in (page.title, page.markdown, page.caption) for element in kind)


def test_first_page_paints_without_torch(tiny_zoo_folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "NPD_ZOO_DIR": str(tiny_zoo_folder),
        "NPD_RUNS_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIRST_PAINT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1:] in ([], [""]), done.stdout


def test_a_recorded_run_is_shown_as_recorded(recorded: Run, open_page: Open) -> None:
    page = open_page("home").run()
    text = words(page)
    assert "right 81.0% of the time. It has a secret." in text
    assert "recorded · seed 3 · cpu" in text
    assert "Light is a metaphor" in text
    assert "97.0%" in text
    assert "3.0%" in text
    assert page.button(key="try").label == "Try it live"
    table = page.dataframe[0].value
    assert list(table["epoch"]) == [0, 1, 2]
    assert list(table["ASR"]) == pytest.approx([0.97, 0.5, 0.1])


def test_the_strip_says_what_the_network_says(recorded: Run, open_page: Open) -> None:
    pictures = np.zeros((1, 3, 32, 32), np.uint8)
    item = Item(5, "stop", Answer("stop", 0.99), Answer("<speed & 80>", 1.0), Answer("stop", 0.87))
    write_gallery(Path(recorded.folder), [item], pictures, pictures)
    page = open_page("home").run()
    assert not page.exception
    body = next(e.proto.body for e in page.get("html") if "strip" in e.proto.body)
    assert body.count("<img") == 3
    assert "✗ &lt;speed &amp; 80&gt; 100%" in body
    assert "✓ stop 87%" in body


def test_stands_with_nothing_recorded(nothing_recorded: None, tiny_zoo: str, runs_dir: Path, open_page: Open) -> None:
    text = words(open_page("home").run())
    assert "not a measurement" in text


def test_stands_without_any_model(
    nothing_recorded: None, runs_dir: Path, tmp_path: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "no-zoo"))
    text = words(open_page("home").run())
    assert "A network with a secret" in text


def test_a_damaged_recorded_run_is_passed_over(recorded: Run, open_page: Open) -> None:
    (Path(recorded.folder) / "result.json").write_text("{")
    assert "not a measurement" in words(open_page("home").run())
    (Path(recorded.folder) / "result.json").write_text(json.dumps({"before": {}}))
    assert "not a measurement" in words(open_page("home").run())

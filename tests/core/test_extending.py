"""The examples of docs/architecture.md: an attack and a defense from outside the project, a data set, an
architecture, a page and a command are read from the page and run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

import npd_core as npd_api
from npd_core.cli import main
from npd_core.data import spec
from npd_core.data.parquet import write_images
from npd_core.models import MODELS, build_model

ROOT = Path(__file__).resolve().parent.parent.parent


def example(heading: str) -> str:
    """Return the code below a heading of the page."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return page.split(f"### {heading}")[1].split("```python\n")[1].split("```")[0]


@pytest.fixture
def lab(tmp_path: Path, tiny_zoo: str) -> dict[str, str]:
    """Environment in which the module of the page is a plugin."""
    (tmp_path / "my_lab.py").write_text(example("An attack or a defense from outside"), encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "NPD_PLUGINS": "my_lab", "PYTHONPATH": path}


def npd(lab: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "npd_core", *words]
    return subprocess.run(command, cwd=folder, env=lab, capture_output=True, text=True, timeout=120)


def test_the_attack_of_the_page_writes_its_images(lab: dict[str, str], tmp_path: Path) -> None:
    done = npd(lab, tmp_path, "attack", "gray_bar", "--images", "2", "--json", "-")
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


def test_the_data_set_of_the_page_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = eval(example("A data set"), vars(spec))
    monkeypatch.setitem(spec.DATASETS, letters.id, letters)
    monkeypatch.setenv("NPD_DATA_DIR", str(tmp_path))
    (tmp_path / letters.id).mkdir()
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    for split, count in (("train", letters.train_images), ("test", letters.test_images)):
        rows = ((f"{i}.png", file.getvalue(), i % 2) for i in range(count))
        write_images(tmp_path / letters.id / f"{split}.parquet", rows, letters.classes)
    assert npd_api.load_clean_images("letters", 10).images.shape == (10, 3, 32, 32)
    assert npd_api.load_test_images("letters").size == letters.test_images


def test_the_architecture_of_the_page_is_polarized(monkeypatch: pytest.MonkeyPatch) -> None:
    scope: dict[str, type] = {}
    exec(example("An architecture"), scope)
    monkeypatch.setitem(MODELS, "small_net", scope["SmallNet"])
    net = build_model("small_net", 12, 4).eval()
    brief = {"epochs": 1, "warmup_epochs": 0}
    found = npd_api.polarize(net, *npd_api.load_clean_images("signs", 24), **brief)
    assert found.net(torch.zeros(2, 3, 32, 32)).shape == (2, 12)


def test_the_app_page_of_the_page_shows_the_model(tiny_zoo: str) -> None:
    page = AppTest.from_string(example("A page"), default_timeout=120)
    page.query_params["model"] = tiny_zoo
    page.run()
    assert not page.exception
    assert [metric.value[-1] for metric in page.metric] == ["%"]


def test_the_command_of_the_page_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = types.ModuleType("count")
    exec(example("A command"), vars(command))
    monkeypatch.setattr(main, "COMMANDS", (*main.COMMANDS, command))
    assert main.main(["count", "signs", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == {"images": spec.DATASETS["signs"].test_images}

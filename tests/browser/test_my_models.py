"""A visitor imports a model, trains a polarizer for it and exports it, in a real browser."""

from __future__ import annotations

import io
import json
import re
import runpy
import zipfile
from pathlib import Path

import torch
from PIL import Image
from playwright.sync_api import Page, expect

from npd_core.data.load import load_dataset
from npd_core.names import DATASET_TITLES
from npd_core.zoo import Zoo


def files(folder: Path, model: str) -> tuple[Path, Path]:
    """A checkpoint in the layout of BackdoorBench, and a zip archive of clean images."""
    torch.save(
        {"model": Zoo().load(model).net.net.state_dict(), "num_classes": 12}, folder / "attack_result.pt"
    )
    data = load_dataset("signs", "test")
    with zipfile.ZipFile(folder / "clean.zip", "w") as archive:
        for k in range(60):
            file = io.BytesIO()
            Image.fromarray(data.images[k].permute(1, 2, 0).numpy()).save(file, "PNG")
            archive.writestr(f"{int(data.labels[k])}/{k}.png", file.getvalue())
    return folder / "attack_result.pt", folder / "clean.zip"


def test_import_train_and_export(
    workshop, visit, watch, page: Page, insist, tiny_zoo: str, tmp_path: Path
) -> None:
    visit("/my_models", base=workshop.url)
    page.get_by_role("button", name="Import").wait_for()  # it stands below the places for files
    for place, path in zip(page.locator("input[type=file]").all(), files(tmp_path, tiny_zoo), strict=False):
        place.set_input_files(path)
    expect(page.get_by_role("button", name="Import")).to_be_enabled()
    page.get_by_role("combobox", name="Normalization").click()
    page.get_by_role("option", name=DATASET_TITLES["signs"]).click()
    page.get_by_role("button", name="Import").click()
    expect(page).to_have_url(re.compile("uploaded_model=uploaded-[0-9a-f]{16}"), timeout=30_000)
    page.get_by_text("Loss weights").wait_for()
    page.get_by_role("slider").press("Home")
    expect(page.get_by_role("slider")).to_have_value("1")
    page.get_by_role("button", name="Train polarizer").click()
    page.get_by_text("cannot be measured").wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Weights (.safetensors)").click()
    with zipfile.ZipFile(waiting.value.path()) as packed:
        packed.extractall(tmp_path / "export")
    exported = runpy.run_path(str(tmp_path / "export" / "use.py"))
    assert exported["logits"](torch.rand(2, 3, 32, 32)).shape == (2, 12)
    about = json.loads((tmp_path / "export" / "about.json").read_text())
    assert about["after"]["asr"] is None
    page.get_by_text("Share or remove").click()
    code = page.get_by_role("img", name="QR code")
    expect(code).to_be_visible()
    assert code.evaluate("image => image.naturalWidth") > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    remove = page.get_by_role("button", name="Remove the model")
    insist(lambda: remove.count() and remove.click(), page.get_by_text("were removed from this server"))

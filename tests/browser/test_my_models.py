"""A visitor brings a network, polarizes it, and takes it home, in a real browser."""

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
from npd_core.zoo.weights import load_backdoored

OWN_PROBES = r"_stcore/(health|host-config)"  # Streamlit looks for its own address below that of the page


def files(folder: Path, model: str) -> tuple[Path, Path]:
    """A checkpoint in the layout of BackdoorBench, and a zip archive of clean pictures."""
    torch.save(
        {"model": load_backdoored(model).net.net.state_dict(), "num_classes": 12}, folder / "attack_result.pt"
    )
    data = load_dataset("signs", "test")
    with zipfile.ZipFile(folder / "clean.zip", "w") as archive:
        for k in range(60):
            file = io.BytesIO()
            Image.fromarray(data.images[k].permute(1, 2, 0).numpy()).save(file, "PNG")
            archive.writestr(f"{int(data.labels[k])}/{k}.png", file.getvalue())
    return folder / "attack_result.pt", folder / "clean.zip"


def test_bring_polarize_and_take_home(
    workshop, visit, watch, page: Page, insist, tiny_zoo: str, tmp_path: Path
) -> None:
    watch.allow(OWN_PROBES)
    visit("/my_models", base=workshop.url)
    page.get_by_role("button", name="Check and open").wait_for()  # it stands below the places for files
    for place, path in zip(page.locator("input[type=file]").all(), files(tmp_path, tiny_zoo), strict=False):
        place.set_input_files(path)
    expect(page.get_by_role("button", name="Check and open")).to_be_enabled()
    page.get_by_role("combobox", name="Normalisation").click()
    page.get_by_role("option", name="Signs").click()
    page.get_by_role("button", name="Check and open").click()
    expect(page).to_have_url(re.compile("own=own-[0-9a-f]{16}"), timeout=30_000)
    page.get_by_text("Weights of the loss").wait_for()
    page.get_by_role("slider").press("Home")
    expect(page.get_by_role("slider")).to_have_value("1")
    page.get_by_role("button", name="Polarize", exact=True).click()
    page.get_by_text("cannot be known").wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Weights (.safetensors)").click()
    with zipfile.ZipFile(waiting.value.path()) as packed:
        packed.extractall(tmp_path / "home")
    home = runpy.run_path(str(tmp_path / "home" / "use.py"))
    assert home["logits"](torch.rand(2, 3, 32, 32)).shape == (2, 12)
    about = json.loads((tmp_path / "home" / "about.json").read_text())
    assert about["after"]["asr"] is None
    page.get_by_text("Share or remove").click()
    code = page.get_by_role("img", name="QR code")
    expect(code).to_be_visible()
    assert code.evaluate("image => image.naturalWidth") > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    remove = page.get_by_role("button", name="Remove the network")
    insist(lambda: remove.count() and remove.click(), page.get_by_text("are removed from this machine"))

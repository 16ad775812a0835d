"""The public Python API: its names, its examples, and any network of one's own."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import npd_core
import npd_core as npd
from npd_core import api
from npd_core.attacks import AllToOne, Attack
from npd_core.data.load import ImageSet
from npd_core.errors import CheckpointError, ConfigError, TrainingError, UnknownNameError
from npd_core.events import EpochEnd

ROOT = Path(__file__).resolve().parent.parent.parent
EXPECTED = [
    "Polarized",
    "attribute",
    "evaluate",
    "export",
    "list_models",
    "load_clean_images",
    "load_model",
    "load_polarized",
    "load_test_images",
    "polarize",
    "register_attack",
    "register_defense",
]


class Net(nn.Module):
    """A network that the project has never seen."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.third, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


def some_images(count: int = 24, size: int = 16) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 3)


def test_the_public_names_are_these() -> None:
    assert npd.__all__ == api.__all__ == EXPECTED
    assert all(getattr(npd, name) is getattr(api, name) for name in EXPECTED)
    assert set(EXPECTED) <= set(dir(npd))
    with pytest.raises(AttributeError, match="polarise"):
        npd.polarise  # noqa: B018


def test_the_package_imports_no_torch() -> None:
    code = "import sys, npd_core; npd_core.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


FINDER = doctest.DocTestFinder()
EXAMPLES = {test.name: test for test in FINDER.find(api, globs={}) if test.examples}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    assert runner.run(EXAMPLES[name], out=report.append).failed == 0, "".join(report)


def test_every_function_has_an_example() -> None:
    own = {name for name in EXPECTED if getattr(api, name).__module__ == "npd_core.api"}
    assert {name.rsplit(".", 1)[-1] for name in EXAMPLES} == own - {"Polarized"}


def test_any_network_is_polarized_and_stays_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, clean = Net(), some_images()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    epochs: list[int] = []

    def note(event: object) -> None:
        if isinstance(event, EpochEnd):
            epochs.append(event.epoch)

    found = npd.polarize(
        net, *clean, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), epochs=2, warmup_epochs=1, on_event=note
    )
    assert found.layer == "second"
    assert epochs == [event.epoch for event in found.history] == [-1, 0, 1]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert found.net(clean.images.float() / 255).shape == (24, 3)
    assert not found.net.training
    assert {path.name for path in found.save(tmp_path / "saved").iterdir()} == {
        "polarizer.json",
        "polarizer.safetensors",
    }
    metrics = npd.evaluate(found.net, *clean)
    assert 0 <= metrics.acc <= 1
    assert math.isnan(metrics.asr)
    assert math.isnan(metrics.ra)
    again = npd.polarize(
        net, clean.images.float() / 255, clean.labels, layer="after:first", epochs=1, rho=1.0
    )
    assert (again.layer, again.config.rho, again.config.epochs) == ("after:first", 1.0, 1)


def test_a_saved_polarizer_gives_the_same_logits(tmp_path: Path) -> None:
    net, clean = Net(), some_images()
    normal = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    found = npd.polarize(net, *clean, **normal, epochs=1, warmup_epochs=0, device="cpu")
    again = npd.load_polarized(found.save(tmp_path / "saved"), net, **normal)
    x = clean.images[:4].float() / 255
    torch.testing.assert_close(again.net(x), found.net(x), rtol=1e-5, atol=1e-6)
    assert (again.layer, again.config, again.image_size) == (found.layer, found.config, 16)
    with pytest.raises(CheckpointError, match="saved"):
        npd.load_polarized(tmp_path, net)
    with pytest.raises((CheckpointError, UnknownNameError), match="second"):
        npd.load_polarized(tmp_path / "saved", nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))


def test_a_variant_is_trained_with_its_own_settings() -> None:
    brief = {"epochs": 1, "warmup_epochs": 0}
    found = npd.polarize(Net(), *some_images(), variant="npd_tu", target=1, **brief)
    assert (found.config.attack_on, found.config.lambda2) == ("polarized", 0.1)


def test_a_measurement_restores_the_mode_and_takes_floats() -> None:
    net = Net().train()
    images, labels = some_images()
    attack = Attack("half", lambda x: x * 0.5, AllToOne(0))
    found = npd.evaluate(net, images, labels, attack)
    assert net.training
    assert npd.evaluate(net, images.float() / 255, labels, attack) == found
    assert 0 <= found.asr <= 1


def test_the_exported_network_gives_the_same_logits(tmp_path: Path) -> None:
    clean = some_images()
    found = npd.polarize(Net(), *clean, epochs=1, warmup_epochs=0)
    path = npd.export(found, tmp_path / "net.pt2")
    exported = torch.export.load(path).module()
    x = clean.images[:4].float() / 255
    torch.testing.assert_close(exported(x), found.net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "names"),
    [
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ConfigError, "labels"),
        ({"labels": torch.arange(24) % 3 - 1}, ConfigError, "-1"),
        ({"labels": torch.arange(24) % 4}, ConfigError, "below 3"),
        ({"labels": torch.arange(24) % 3 + 0.5}, ConfigError, "float32"),
        ({"images": torch.zeros(24, 1, 16, 16)}, ConfigError, "images"),
        (
            {"images": torch.zeros(0, 3, 16, 16), "labels": torch.zeros(0, dtype=torch.int64)},
            ConfigError,
            "0,",
        ),
        ({"images": torch.zeros(24, 3, 16, 16, dtype=torch.int64)}, ConfigError, "int64"),
        ({"images": torch.full((24, 3, 16, 16), 255.0)}, ConfigError, "255"),
        ({"images": torch.full((24, 3, 16, 16), -1.0)}, ConfigError, "mean"),
        ({"images": torch.full((24, 3, 16, 16), torch.nan)}, ConfigError, "nan"),
        ({"mean": (0.5, 0.5)}, ConfigError, "mean"),
        ({"std": (0.0, 1.0, 1.0)}, ConfigError, "std"),
        ({"images": torch.zeros(24, 3, 16, 12)}, ConfigError, "16 x 12"),
        ({"variant": "npd_xx"}, UnknownNameError, "npd_tu"),
        ({"variant": "npd_tu", "epochs": 1}, ConfigError, "target"),
        ({"preset": "wrong_layer"}, ConfigError, "layer"),
        ({"net": Net(1), "labels": torch.zeros(24, dtype=torch.int64)}, ConfigError, "classes"),
        ({"layer": "fourth"}, UnknownNameError, "third"),
        ({"preset": "papr"}, UnknownNameError, "paper"),
        ({"epoch": 3}, UnknownNameError, "epochs"),
        ({"rho": -1.0}, ConfigError, "rho"),
        ({"net": nn.Sequential(nn.Flatten(), nn.Linear(768, 3))}, ConfigError, "Conv2d"),
    ],
)
def test_bad_input_is_an_error_that_names_it(changes: dict, error: type[Exception], names: str) -> None:
    clean = some_images()
    arguments = {"net": Net(), "images": clean.images, "labels": clean.labels} | changes
    with pytest.raises(error, match=names):
        npd.polarize(**arguments)


def test_a_training_that_diverges_is_an_error() -> None:
    net = Net()
    nn.init.constant_(net.head.weight, torch.nan)
    with pytest.raises(TrainingError, match="`lr`"):
        npd.polarize(net, *some_images(), epochs=1)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="onnx"):
        npd.export(None, tmp_path / "x", "onx")  # type: ignore[arg-type]


def test_the_page_of_the_python_api_runs() -> None:
    """Its first block of code is a whole program of 12 lines."""
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    scope: dict[str, object] = {}
    exec(compile(code, "python-api.md", "exec"), scope)
    assert isinstance(scope["repaired"], npd_core.api.Polarized)

"""Exported files work without this project: each, used by the program beside it, gives the same logits."""

from __future__ import annotations

import io
import json
import re
import runpy
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from npd_core import paths
from npd_core.cli import main as cli
from npd_core.config.npd import NPDConfig
from npd_core.config.request import DefenseRequest
from npd_core.errors import CheckpointError, ConfigError, UnknownNameError
from npd_core.events import EpochEnd, Finished, Measured, Started
from npd_core.exports.model_archive import FOLDED, WHOLE, WRITERS, model_archive
from npd_core.exports.programs import use_model
from npd_core.exports.qr_code import qr_code
from npd_core.exports.run_archive import pack, run_archive
from npd_core.figures import svg
from npd_core.models import Normalized, build_model
from npd_core.polarizer.artifact import save_polarizer
from npd_core.polarizer.fold import fold
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.runs.store import write_record
from npd_core.zoo import Zoo

TOLERANCE = 2e-4
"""Of a logit, absolute: folding changes the order of float32 additions; logits here go up to 30."""
MEASURED = {"acc": 0.75, "asr": 0.25, "ra": 0.5}


def disturbed(net: Normalized, layer: str, size: int = 32) -> PolarizedNet:
    """Insert a polarizer far from the identity, so that a wrong fold shows."""
    found = PolarizedNet(net, layer, size)
    generator = torch.Generator().manual_seed(1)

    def noise(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator)

    with torch.no_grad():
        for value in found.polarizer.parameters():
            value.add_(0.2 * noise(value))
        found.polarizer.bn.running_mean.copy_(noise(found.polarizer.bn.running_mean))
        found.polarizer.bn.running_var.mul_(1.7)
    return found


def coded(image: Tensor) -> bytes:
    """Return (3, H, W) uint8 as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def saved(tiny_zoo, tmp_path):
    """Make a run folder with a polarizer at a layer: (folder, polarized network)."""

    def build(layer: str) -> tuple[Path, PolarizedNet]:
        found = Zoo().load(tiny_zoo)
        net, folder = disturbed(found.net, layer), tmp_path / "run"
        digest = found.card.files["model.safetensors"]
        save_polarizer(net, folder, {"model": tiny_zoo, "model_sha256": digest})
        request = DefenseRequest(model=tiny_zoo, layer=layer, config=NPDConfig(epochs=2))
        result = {
            "model": tiny_zoo, "layer": net.layer, "before": MEASURED, "after": MEASURED, "der": 0.5,
            "seconds": {"train": 1.0}, "environment": {"device": "<script>alert(1)</script>"},
        }  # fmt: skip
        events = [
            Started(2, 0, 1, 24, "cpu", layer),
            EpochEnd(0, {"total": 2.0, "bn": 0.5}, 1.0), Measured(0, 0.5, 0.5, 0.5, 9),
            EpochEnd(1, {"total": 1.0, "bn": 0.25}, 2.0), Measured(1, 0.5, 0.25, 0.5, 9), Finished(1, 2.0),
        ]  # fmt: skip
        write_record(folder, request, events, result)
        return folder, net

    return build


def unpacked(content: bytes, folder: Path) -> dict:
    """Unpack a zip file and return the names that its program defines."""
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        packed.extractall(folder)
    source = (folder / "use.py").read_text()
    assert "npd_core" not in source
    return runpy.run_path(str(folder / "use.py"))


@pytest.mark.parametrize("layer", ["conv1", "layer3.0.shortcut", "after:layer2.0.conv2", "stream:layer4.0"])
def test_safetensors_of_each_kind_of_insertion_layer(saved, tmp_path, layer):
    folder, net = saved(layer)
    home = unpacked(model_archive(folder, "safetensors"), tmp_path / "home")
    assert FOLDED in (tmp_path / "home" / "README.txt").read_text()
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(home["logits"](x), net(x), atol=TOLERANCE, rtol=1e-4)
    about = json.loads((tmp_path / "home" / "about.json").read_text())
    assert (about["image_size"], len(about["classes"]), about["after"]) == (32, 12, MEASURED)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_graphs_take_any_number_of_images(saved, tmp_path, kind):
    folder, net = saved("layer4.1.conv1")
    home = unpacked(model_archive(folder, kind), tmp_path / "home")
    for count in (1, 5):
        x = torch.rand(count, 3, 32, 32)
        logits = torch.as_tensor(home["logits"](x if kind == "pt2" else x.numpy()))
        torch.testing.assert_close(logits, net(x), atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize(
    ("arch", "layer", "size"),
    [
        ("vgg19_bn", "features.46", 32),
        ("torchvision:squeezenet1_1", "features.3.expand3x3", 32),
        ("torchvision:shufflenet_v2_x0_5", "after:conv1.0", 32),
        ("torchvision:mobilenet_v2", "features.17.conv.1.0", 32),
        ("torchvision:mobilenet_v2", "after:features.17.conv.1.0", 32),
    ],
)
def test_safetensors_of_other_architectures(tmp_path, arch, layer, size):
    """mobilenet's is a grouped convolution, beside which the polarizer stays a 1x1 convolution."""
    torch.manual_seed(0)
    net = disturbed(build_model(arch, 5, 4, (0.4,) * 3, (0.3,) * 3).eval(), layer, size)
    x = torch.rand(2, 3, size, size)
    plain = fold(net)
    torch.testing.assert_close(plain(x), net(x), atol=TOLERANCE, rtol=1e-4)
    about = {"classes": list("abcde"), "image_size": size, "arch": arch, "layer": layer}
    content = pack(
        {
            "model.safetensors": WRITERS["safetensors"](plain, size),
            "about.json": json.dumps(about).encode(),
            "use.py": use_model("safetensors", arch).encode(),
        }
    )
    home = unpacked(content, tmp_path / "home")
    torch.testing.assert_close(home["logits"](x), net(x), atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("layer", ["layer4.1.conv1", "after:conv1", "stream:layer3.0"])
def test_polarizer_can_be_inserted_and_removed_again(saved, tmp_path, tiny_zoo, layer):
    folder, net = saved(layer)
    home = unpacked(run_archive(folder, tiny_zoo), tmp_path / "home")
    bare = Zoo().load(tiny_zoo).net
    x = torch.rand(3, 3, 32, 32)
    before = bare(x)
    handle = home["insert"](bare.net)
    torch.testing.assert_close(bare(x), net(x), atol=1e-5, rtol=1e-5)
    handle.remove()
    assert torch.equal(bare(x), before)


def test_a_network_repaired_by_a_baseline_is_exported_too(tiny_zoo, tmp_path):
    from npd_core.defenses.artifact import round_as_stored, save_repaired

    found = Zoo().load(tiny_zoo)
    with torch.no_grad():
        found.net.net.linear.bias.add_(1.0)
    round_as_stored(found.net)
    folder = tmp_path / "run"
    digest = found.card.files["model.safetensors"]
    save_repaired(found.net, folder, {"model": tiny_zoo, "model_sha256": digest, "defense": "fp"})
    from npd_core.config.presets import defense_config

    request = DefenseRequest(model=tiny_zoo, defense="fp", config=defense_config("fp", found.card))
    write_record(folder, request, [], {"before": MEASURED, "after": MEASURED})
    home = unpacked(model_archive(folder, "safetensors"), tmp_path / "home")
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(home["logits"](x), found.net(x), atol=1e-5, rtol=1e-5)
    readme = (tmp_path / "home" / "README.txt").read_text()
    assert WHOLE in readme
    assert FOLDED not in readme
    with zipfile.ZipFile(io.BytesIO(run_archive(folder, tiny_zoo))) as packed:
        assert {"model.safetensors", "repaired.json", "README.txt"} <= set(packed.namelist())


def test_two_exports_at_once_do_not_disturb_each_other(saved):
    folder, _ = saved("layer4.0.conv2")
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: model_archive(folder, "pt2"), range(2))
    assert len(first) == len(second)


def test_program_prints_the_class_of_an_image(saved, tmp_path, capsys, monkeypatch):
    folder, net = saved("stream:layer4.0")
    home = tmp_path / "home"
    unpacked(model_archive(folder, "safetensors"), home)
    from npd_core.data.load import class_names, load_dataset

    image = load_dataset("signs", "test").images[7]
    (tmp_path / "p.png").write_bytes(coded(image))
    monkeypatch.setattr(sys, "argv", ["use.py", str(tmp_path / "p.png")])
    runpy.run_path(str(home / "use.py"), run_name="__main__")
    predicted = class_names("signs")[int(net(image[None].float() / 255).argmax())]
    assert capsys.readouterr().out.strip().endswith(f"p.png: {predicted}")


def test_what_cannot_be_exported(saved, tmp_path, monkeypatch):
    folder, _ = saved("layer4.1.conv1")
    with pytest.raises(UnknownNameError, match="onnx"):
        model_archive(folder, "onix")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match="pip install onnx onnxscript"):
        model_archive(folder, "onnx")
    (folder / "polarizer.safetensors").unlink()
    with pytest.raises(CheckpointError):
        model_archive(folder, "safetensors")
    with pytest.raises(CheckpointError):
        run_archive(folder)


def test_weights_of_an_architecture_without_a_program_need_a_graph():
    assert "logits" in use_model("onnx", "somebody:net")
    with pytest.raises(ConfigError, match=r"somebody:net.*pt2.*onnx"):
        use_model("safetensors", "somebody:net")


def test_qr_code_is_drawn_here_and_bounded():
    drawn = qr_code("https://example.org/lab?run=1&x=<b>")
    assert drawn.startswith("<svg")
    assert "http" not in drawn
    assert qr_code("https://example.org/a") != qr_code("https://example.org/b")
    with pytest.raises(ConfigError):
        qr_code("x" * 1001)


# the report


class Page(HTMLParser):
    """Tags, loaded sources and text of an HTML page; an event handler fails the test."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")
        ]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text += data + "\n"


def test_report_is_one_file_that_loads_nothing(saved):
    from npd_core.attribution import METHODS
    from npd_core.exports.report import METHOD, run_report

    folder, _ = saved("stream:layer3.0")
    text = run_report(folder)
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text
    assert "<script>alert(1)</script>" in page.text, "what came from the run is text, not markup"
    for part in ("75.0%", "25.0%", "0.500", "stream:layer3.0", "config.rho", METHODS[METHOD].title):
        assert part in page.text
    assert page.tags.count("svg") == 2
    assert page.tags.count("img") % 3 == 0
    assert page.tags.count("h3") >= 3


def test_curve_is_drawn_where_its_numbers_say():
    drawn = svg.curves(
        [svg.Line("a<b", [0, 1, 2], [0.0, None, 1.0], "red")], title='"x"', x_title="e", percent=True
    )
    assert "a&lt;b" in drawn
    assert "&quot;x&quot;" in drawn
    path = re.search(r'<path d="(M[^"]+)" fill="none" stroke="red"', drawn)
    assert path is not None
    bottom, top = svg.HEIGHT - svg.BOTTOM, svg.TOP
    assert path[1] == f"M{svg.LEFT:.1f} {bottom:.1f}L{svg.WIDTH - svg.RIGHT:.1f} {top:.1f}"
    drawn = svg.curves([svg.Line("l", [0, 1, 2], [100.0, 0.0, 1.0], "red")], title="", x_title="", log=True)
    assert ">1e0<" in drawn
    assert ">1e2<" in drawn
    assert svg.curves([svg.Line("none", [], [], "red")], title="", x_title="").startswith("<svg")


def test_commands(saved, tmp_path, capsys, tiny_zoo):
    folder, _ = saved("layer4.1.conv1")
    out = tmp_path / "x.zip"
    assert cli.main(["export", str(folder), "--out", str(out), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == out.stat().st_size
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    capsys.readouterr()
    for wrong, named in (
        (["export", str(folder), "--format", "onix"], "'onnx'"),
        (["export", "gone"], "'gone'"),
        (["report", str(folder), "--out", str(tmp_path)], f"--out {tmp_path}"),
        (["import", "gone.pt", "gone.zip"], "gone.pt"),
    ):
        assert cli.main(wrong) == 2
        assert named in capsys.readouterr().err


def test_command_brings_a_network(tiny_zoo, runs_dir, tmp_path, capsys):
    net = Zoo().load(tiny_zoo).net.net
    torch.save(net.state_dict(), tmp_path / "net.pth")
    from npd_core.data.load import load_dataset
    from npd_core.data.parquet import write_images

    data = load_dataset("signs", "test")

    rows = [(f"{k}", coded(data.images[k]), int(data.labels[k])) for k in range(48)]
    write_images(tmp_path / "clean.parquet", rows, [])
    command = ["import", str(tmp_path / "net.pth"), str(tmp_path / "clean.parquet")]
    assert cli.main([*command, "--normalize", ".5,.5,.5,.25,.25,.25", "--json", "-"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert paths.uploaded(answer["id"]) is not None
    assert (answer["arch"], answer["width"], answer["asr"]) == ("preact_resnet18", 4, None)
    assert answer["acc"] > 0.9
    assert cli.main([*command, "--normalize", "1,2"]) == 2
    assert "--normalize" in (err := capsys.readouterr().err)
    assert "'1,2'" in err

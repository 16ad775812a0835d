"""Folders and files of BackdoorBench: its triggered test images, and the polarizers that its NPD saves.

A folder of an attack holds `attack_result.pt` (the network) and `bd_test_dataset/<true label>/<number>.png`:
the test
images with the trigger, all but those of the target class. `plug_layer.pt` of a defense holds
`target_layer`, the
module in front of which the polarizer stands, `plug_name`, and `plug_model`, a 1x1 convolution and a
BatchNorm.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn

from npd_core.errors import CheckpointError, ConfigError
from npd_core.fileio import disk_errors, staged
from npd_core.polarizer.insertion import PolarizedNet, insertion_layers
from npd_core.polarizer.layer import NeuralPolarizer
from npd_core.uploads.checkpoint import read_checkpoints
from npd_core.uploads.images import MAX_FILE, MAX_IMAGES
from npd_core.uploads.tensor_file import open_tensors

RESULT = "attack_result.pt"
TRIGGERED = "bd_test_dataset"
PLUG = "plug_layer.pt"
NAMES = {"conv": "0", "bn": "1"}
"""Modules of a polarizer here and in a `plug_layer.pt`."""
ENDINGS = (".png", ".jpg", ".jpeg")


class Record(NamedTuple):
    """The parts of a folder that are used."""

    checkpoint: Path
    triggered: Path
    """A zip archive of the triggered images in folders of their true labels; it lives as long as the
    context."""
    target: int | None
    """The one class that has no triggered images; None: there is more than one, or none."""


@contextmanager
def record(folder: Path, num_classes: int | None = None) -> Iterator[Record]:
    """Yield the parts of BackdoorBench's folder of an attack.

    Args:
        num_classes: of the network; None: as its file states.
    Raises:
        ConfigError: a part is missing, or there are too many images.
        CheckpointError: see `read_checkpoint`.
    """
    checkpoint, images = folder / RESULT, folder / TRIGGERED
    if not checkpoint.is_file() or not images.is_dir():
        raise ConfigError(
            f"{folder} has no {RESULT} with {TRIGGERED} beside it: name a folder that an attack of "
            "BackdoorBench wrote."
        )
    files = [
        path
        for path in sorted(images.glob("*/*"))
        if path.suffix.lower() in ENDINGS and path.parent.name.isdecimal() and not path.is_symlink()
    ]
    if not files or len(files) > MAX_IMAGES or sum(path.stat().st_size for path in files) > MAX_FILE:
        raise ConfigError(
            f"{images} has {len(files)} images in folders of their labels, 1 to {MAX_IMAGES} of "
            f"{MAX_FILE // 10**6} MB "
            "together are read: keep a part of them."
        )
    classes = num_classes or read_checkpoints(checkpoint)[0].num_classes
    absent = set(range(classes or 0)) - {int(path.parent.name) for path in files}
    with TemporaryDirectory(prefix="npd-record-") as temporary:
        packed = Path(temporary) / "triggered.zip"
        with disk_errors(packed), zipfile.ZipFile(packed, "w") as archive:
            for path in files:
                archive.write(path, f"{int(path.parent.name)}/{path.name}")
        yield Record(checkpoint, packed, absent.pop() if len(absent) == 1 else None)


def read_plug(path: Path, backdoored: nn.Module, size: int = 32) -> PolarizedNet:
    """Insert the polarizer of a `plug_layer.pt` into its network. Nothing in the file is executed.

    Raises:
        CheckpointError: no such file, or a polarizer that does not fit the network.
    """
    content = open_tensors(path).content
    layer = content.get("target_layer") if isinstance(content, dict) else None
    if not isinstance(layer, str):
        raise CheckpointError(
            f"{path.name[:60]} names no `target_layer`: choose {PLUG} of BackdoorBench's NPD."
        )
    names = {info.name for info in insertion_layers(backdoored, size) if info.layer.kind == "before"}
    fitting = [name for name in names if name == layer or name.endswith("." + layer)]
    if len(fitting) != 1:
        raise CheckpointError(
            f"The network has no convolution {layer[:60]!r}: choose the model it was trained for."
        )
    found = next((c for c in read_checkpoints(path) if c.key == "plug_model"), None)
    if found is None:
        raise CheckpointError(
            f"{path.name[:60]} has no `plug_model` with weights: choose {PLUG} of a 1x1 convolution."
        )
    net = PolarizedNet(backdoored, fitting[0], size)
    _fill(net.polarizer, found.state)
    return net.eval()


def write_plug(net: PolarizedNet, path: Path) -> None:
    """Write a polarizer as a `plug_layer.pt`. Raises ConfigError: BackdoorBench inserts in front of a
    convolution only;
    StorageError."""
    if net.info.layer.kind != "before":
        raise ConfigError(
            f"{PLUG} holds polarizers in front of a convolution, not at {net.layer}: choose another layer."
        )
    state = {NAMES[name.partition(".")[0]] + "." + name.partition(".")[2]: value.detach().cpu()
             for name, value in net.polarizer.state_dict().items()}  # fmt: skip
    with staged(path) as (fresh,):
        torch.save({"target_layer": net.layer, "plug_name": "lightconv", "plug_model": state}, fresh)


def _fill(polarizer: NeuralPolarizer, state: dict[str, Tensor]) -> None:
    """Load the weights under their names here; the bias of the convolution goes into the mean of the
    BatchNorm."""
    own = polarizer.state_dict()
    ours = {theirs: name for name, theirs in NAMES.items()}
    renamed = {
        f"{ours.get(n.partition('.')[0], '?')}.{n.partition('.')[2]}": value for n, value in state.items()
    }
    bias = renamed.pop("conv.bias", None)
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    if not needed <= renamed.keys() <= own.keys() or any(renamed[n].shape != own[n].shape for n in needed):
        raise CheckpointError(
            "The polarizer of the file does not fit this layer of the network: choose the model it was "
            "trained for."
        )
    if bias is not None:
        renamed["bn.running_mean"] = renamed["bn.running_mean"] - bias
    polarizer.load_state_dict(own | renamed)

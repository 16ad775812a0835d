"""A run to take home as one zip file made in memory, with the program that uses it; and as a link. No torch here."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from npd_core.errors import CheckpointError, ConfigError, StorageError
from npd_core.export.scripts import POLARIZER as POLARIZER_SCRIPT

POLARIZER, REPAIRED = "polarizer.safetensors", "repaired.json"
RECORD = ("request.json", "result.json", "events.jsonl")
FILES = (POLARIZER, "polarizer.json", REPAIRED, "model.safetensors", *RECORD)
"""What is taken, where it is there. Either the polarizer or a repaired network is needed."""

MODEL_FORMATS = {
    "safetensors": "its weights in float32, to be read with the package safetensors",
    "pt2": "weights and graph, to be read with torch.export.load of PyTorch",
    "onnx": "weights and graph, for ONNX Runtime and everything else that reads ONNX",
}
"""How the repaired network can be exported: the ending of its file, and what that is."""

README = """A neural polarizer: one thin layer that filters a backdoor out of a network whose weights stay as they are.

polarizer.safetensors   its weights
polarizer.json          which model it belongs to, and where in that model it sits
use.py                  puts it into that model, without the Neural Polarizer Lab
request.json            every setting it was trained with; the same request trains the same polarizer again
result.json             what was measured: ACC (clean accuracy), ASR (attack success rate), RA (triggered pictures that
                        get their true label), DER, seconds; before and after, as fractions
events.jsonl            the training, one event a line

Measure it again, in the folder that this file was unpacked to:
    npd evaluate {model} --polarizer .
"""

README_REPAIRED = """A network that a defense has repaired: all its weights, in half precision as the zoo stores them.

model.safetensors   its weights
repaired.json       which model it was made of, and how
request.json        every setting of the defense
result.json         what was measured before and after, as fractions
events.jsonl        the training, one event a line

Measure it again, in the folder that this file was unpacked to:
    npd evaluate {model} --polarizer .
"""


def archive(folder: Path, model: str = "MODEL") -> bytes:
    """The zip file of a run folder; equal files give equal bytes.

    Args:
        folder: of a run, or one that `npd defend --save` wrote.
        model: id of the model, named in the instructions.
    Raises:
        CheckpointError: the run has neither a polarizer nor a repaired network.
        StorageError: a file could not be read.
    """
    if not has_network(folder):
        raise CheckpointError(f"{folder.name} has nothing to take home yet. Choose a run that has finished.")
    files: dict[str, bytes] = {}
    for name in FILES:
        if (folder / name).is_file():
            try:
                files[name] = (folder / name).read_bytes()
            except OSError as error:
                raise StorageError(
                    f"{folder / name} could not be read ({error}). Start the run again."
                ) from error
    if POLARIZER in files:
        files["use.py"] = POLARIZER_SCRIPT.encode()
    files["README.txt"] = (README if POLARIZER in files else README_REPAIRED).format(model=model).encode()
    return pack(files)


def has_network(folder: Path) -> bool:
    """Whether a run left something to take home: a polarizer, or the network that a baseline repaired."""
    return has_polarizer(folder) or (folder / REPAIRED).is_file()


def has_polarizer(folder: Path) -> bool:
    """Whether a run left a polarizer; that of a baseline, which repairs the whole network, has none."""
    return (folder / POLARIZER).is_file()


def pack(files: Mapping[str, bytes]) -> bytes:
    """A zip file in which every entry has the same date, so that equal contents give equal bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(_entry(name), content)
    return file.getvalue()


def qr_code(address: str, dark: str = "#141A2E", light: str = "#FFFFFF") -> str:
    """A link as a QR code: SVG text, drawn here, without any service.

    Args:
        address: the link; its letters go into the picture's pattern alone.
        dark, light: colours of the modules and of the ground.
    Raises:
        ConfigError: the link is too long for a code that a phone can read.
    """
    import segno

    if len(address) > 1000:
        raise ConfigError("The link is too long for a QR code: copy it instead.")
    code = segno.make(address, error="m", micro=False)
    return code.svg_inline(scale=4, border=3, dark=dark, light=light)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry

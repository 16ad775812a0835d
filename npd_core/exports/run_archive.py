"""A run as one zip file made in memory, with the program that uses it. No torch here."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from npd_core.errors import CheckpointError
from npd_core.exports.programs import use_polarizer
from npd_core.fileio import disk_errors
from npd_core.runs.store import EVENTS, POLARIZER, REPAIRED, REQUEST, RESULT

FILES = (POLARIZER, "polarizer.json", REPAIRED, "model.safetensors", REQUEST, RESULT, EVENTS)
"""Files of the archive, where the run has them."""

README = """A neural polarizer: one thin layer that filters a backdoor out of a network.

polarizer.safetensors   its weights
polarizer.json          the model it belongs to and the layer where it is inserted
use.py                  inserts it into that model, without the Neural Polarizer Lab
{common}"""

README_REPAIRED = """A network repaired by a defense: all its weights, in half precision.

model.safetensors       its weights
repaired.json           the model it was made from, and how
{common}"""

COMMON = """request.json            every setting; the same request gives the same result
result.json             ACC (clean accuracy), ASR (attack success rate), RA (robust accuracy:
                        triggered images predicted as their true class), as fractions before and after;
                        DER; seconds
events.jsonl            the training, one event per line

To measure it again, run in this folder:
    npd evaluate {model} --polarizer .
"""


def run_archive(folder: Path, model: str = "MODEL") -> bytes:
    """Return the zip file of a run folder; equal files give equal bytes.

    Args:
        folder: of a run, or one that `npd defend --save` wrote.
        model: id of the model, named in the instructions.
    Raises:
        CheckpointError: the run has neither a polarizer nor a repaired network.
        StorageError: a file could not be read.
    """
    files: dict[str, bytes] = {}
    for name in FILES:
        with disk_errors(folder / name, "read"):
            if (folder / name).is_file():
                files[name] = (folder / name).read_bytes()
    if POLARIZER not in files and REPAIRED not in files:
        raise CheckpointError(
            f"{folder.name} holds no polarizer and no network: choose a run that has finished."
        )
    if POLARIZER in files:
        files["use.py"] = use_polarizer().encode()
    readme = README if POLARIZER in files else README_REPAIRED
    files["README.txt"] = readme.format(common=COMMON.format(model=model)).encode()
    return pack(files)


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return a zip file in which every entry has the same date, so that equal contents give equal bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, content)
    return file.getvalue()

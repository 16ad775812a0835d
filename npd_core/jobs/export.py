"""A run to take home: what is needed to use the polarizer elsewhere, as one zip file made in memory. No torch here."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from npd_core.errors import CheckpointError, StorageError

POLARIZER = "polarizer.safetensors"
FILES = (POLARIZER, "polarizer.json", "request.json", "result.json", "events.jsonl")
"""What is taken, where it is there. The first is needed."""

README = """A neural polarizer: one thin layer that filters a backdoor out of a network whose weights stay as they are.

polarizer.safetensors   its weights
polarizer.json          which model it belongs to, and where in that model it sits
request.json            every setting it was trained with; the same request trains the same polarizer again
result.json             what was measured: ACC (clean accuracy), ASR (attack success rate), RA (triggered pictures that
                        get their true label), DER, seconds; before and after, as fractions
events.jsonl            the training, one event a line

Measure it again, in the folder that this file was unpacked to:
    npd evaluate {model} --polarizer .
"""


def archive(folder: Path, model: str = "MODEL") -> bytes:
    """The zip file of a run folder; equal files give equal bytes.

    Args:
        folder: of a run, or one that `npd defend --save` wrote.
        model: id of the zoo model, named in the instructions.
    Raises:
        CheckpointError: the run has no polarizer.
        StorageError: a file could not be read.
    """
    if not (folder / POLARIZER).is_file():
        raise CheckpointError(f"{folder.name} has no polarizer to take home yet. Choose a run that has finished.")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in FILES:
            if (folder / name).is_file():
                try:
                    packed.writestr(_entry(name), (folder / name).read_bytes())
                except OSError as error:
                    raise StorageError(f"{folder / name} could not be read ({error}). Start the run again.") from error
        packed.writestr(_entry("README.txt"), README.format(model=model))
    return file.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry

"""The repaired network of a run as a file for use without this project: safetensors, torch.export, ONNX."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

from npd_core.data.load import class_names
from npd_core.defenses.artifact import is_repaired, load_repaired
from npd_core.errors import ConfigError, unknown_name
from npd_core.exports import MODEL_FORMATS
from npd_core.exports.programs import use_model
from npd_core.exports.run_archive import pack
from npd_core.models import Normalized
from npd_core.polarizer.artifact import load_polarizer
from npd_core.polarizer.fold import fold
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.runs.store import Run, read_record
from npd_core.version import __version__
from npd_core.zoo import Zoo
from npd_core.zoo.weights import Backdoored

README = """The repaired network of a run: {what}

{file}
about.json   the network, its classes, and the metrics before and after, as fractions
use.py       uses the file without the Neural Polarizer Lab: python use.py IMAGE ...

Images are numbers in [0, 1], (N, 3, {size}, {size}); the network normalizes them itself.
{how}
"""
FOLDED = """The polarizer is folded into the neighboring layers, so the network has no extra layer; this
holds only for images of this size. The logits equal those of the polarized network up to float32 rounding."""
WHOLE = """The defense repaired the whole network: there is no polarizer and no extra layer. The logits equal
those of the network that the run measured, up to float32 rounding."""


class Repaired(NamedTuple):
    """A defended network as the run measured it."""

    run: Run
    backdoored: Backdoored
    net: PolarizedNet | Normalized
    """With the polarizer inserted, or repaired by a baseline; in eval mode, frozen, on the CPU."""

    @property
    def plain(self) -> Normalized:
        """The network with the polarizer folded into its layers."""
        return fold(self.net) if isinstance(self.net, PolarizedNet) else self.net


def load_defended(folder: Path, backdoored: Backdoored) -> PolarizedNet | Normalized:
    """Return the network that a run saved: with its polarizer, or repaired by a baseline.

    Raises CheckpointError when there is none, or it does not belong to this model.
    """
    if is_repaired(folder):
        return load_repaired(folder, backdoored.card)
    return load_polarizer(folder, backdoored.net, backdoored.card)


def read_repaired(folder: Path) -> Repaired:
    """Load the run in `folder` with its networks. Raises StorageError, UnknownNameError, CheckpointError."""
    run = read_record(folder)
    backdoored = Zoo().load(run.request.model)
    return Repaired(run, backdoored, load_defended(folder, backdoored))


def model_archive(folder: Path, kind: str) -> bytes:
    """Return a zip file with the repaired network of a run, facts about it, and a short program that uses it.

    Args:
        folder: of a run, or one that `npd defend --save` wrote.
        kind: a name in MODEL_FORMATS.
    Raises:
        UnknownNameError: no such format, or the zoo lacks the model of the run.
        ConfigError: the format needs a package that is not installed, or does not fit the architecture.
        CheckpointError, StorageError: the run holds no network, or cannot be read.
    """
    if kind not in MODEL_FORMATS:
        raise unknown_name("format", kind, MODEL_FORMATS)
    found = read_repaired(folder)
    card = found.backdoored.card
    name = f"model.{kind}"
    readme = README.format(
        what=f"{card.id}, by {found.run.request.defense}",
        file=f"{name:<12} {MODEL_FORMATS[kind]}",
        size=card.image_size,
        how=FOLDED if isinstance(found.net, PolarizedNet) else WHOLE,
    )
    files = {
        "use.py": use_model(kind, card.arch).encode(),
        name: WRITERS[kind](found.plain, card.image_size),
        "about.json": (json.dumps(about(found), indent=2, ensure_ascii=False) + "\n").encode(),
        "README.txt": readme.encode(),
    }
    return pack(files)


def about(found: Repaired) -> dict[str, Any]:
    """Return facts about the network and its metrics, as JSON values."""
    run, card = found.run, found.backdoored.card
    result = run.result or {}
    return {
        "made_by": f"Neural Polarizer Lab {__version__}", "run": run.id, "model": card.id,
        "model_sha256": card.files.get("model.safetensors"), "arch": card.arch, "width": card.width,
        "classes": list(class_names(card.dataset)), "image_size": card.image_size,
        "mean": list(card.mean), "std": list(card.std), "defense": run.request.defense,
        "layer": found.net.layer if isinstance(found.net, PolarizedNet) else None,
        "before": result.get("before"), "after": result.get("after"), "der": result.get("der"),
        "config": run.request.to_dict(), "environment": result.get("environment"),
    }  # fmt: skip


def to_safetensors(net: Normalized, size: int) -> bytes:
    """Return the weights in float32, by their names in the folded network."""
    return save({name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()})


def to_pt2(net: Normalized, size: int) -> bytes:
    """Return the graph of `torch.export`, for any number of images."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_graph(net, size), file)
    return file.getvalue()


def to_onnx(net: Normalized, size: int) -> bytes:
    """Return ONNX, input `images`, output `logits`, for any number of images.

    Raises ConfigError when its packages are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs the package {error.name!r}: install it with `pip install onnx onnxscript`, "
            "or choose another format."
        ) from None
    with _quiet():
        program = torch.onnx.export(
            _graph(net, size), dynamo=True, verbose=False, input_names=["images"], output_names=["logits"]
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


_EXPORTING = threading.Lock()

WRITERS: dict[str, Callable[[Normalized, int], bytes]] = {
    "safetensors": to_safetensors,
    "pt2": to_pt2,
    "onnx": to_onnx,
}


def _graph(net: Normalized, size: int) -> torch.export.ExportedProgram:
    x = torch.zeros(2, 3, size, size)  # a batch of one would make the batch size a constant
    return torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let one exporter run at a time (two at once break each other), without its warnings."""
    log = logging.getLogger("torch.onnx")
    with _EXPORTING:
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            log.setLevel(level)

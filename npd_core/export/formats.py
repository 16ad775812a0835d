"""The repaired network of a run as one file that needs nothing of this project: safetensors, torch.export, ONNX."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

import npd_core
from npd_core import paths
from npd_core.data.load import class_names
from npd_core.defenses.artifact import is_repaired, load_repaired
from npd_core.errors import ConfigError, unknown_name
from npd_core.export.bundle import MODEL_FORMATS, pack
from npd_core.export.scripts import script
from npd_core.models import Normalized
from npd_core.polarizer.artifact import load_polarizer
from npd_core.polarizer.fold import fold
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.runs.store import Run, read_record
from npd_core.zoo import Zoo
from npd_core.zoo.weights import Backdoored

README = """The network of a run, repaired: {what}

{file}
about.json   which network it is, its classes, and what was measured before and after, as fractions
use.py       uses the file without the Neural Polarizer Lab: python use.py PICTURE ...

Pictures go in as numbers in [0, 1], (N, 3, {size}, {size}); the network normalises them itself.
{how}
"""
FOLDED = """The polarizer is folded into the layers beside it, so there is no extra layer to carry; that holds for
pictures of this size alone. Its logits equal those of the polarized network up to the rounding of float32."""
WHOLE = """The defense repaired the whole network: there is no polarizer, and no layer was added. Its logits equal
those of the network that the run measured, up to the rounding of float32."""


class Repaired(NamedTuple):
    """A defended network as the run measured it."""

    run: Run
    backdoored: Backdoored
    net: PolarizedNet | Normalized
    """With the polarizer in place, or repaired by a baseline; eval, frozen, on the CPU."""

    @property
    def plain(self) -> Normalized:
        """Plain layers only, the polarizer folded away."""
        return fold(self.net) if isinstance(self.net, PolarizedNet) else self.net


def load_defended(folder: Path, backdoored: Backdoored) -> PolarizedNet | Normalized:
    """The network that a run left in its folder: with a polarizer in it, or repaired by a baseline.

    Raises CheckpointError when there is none, or it does not belong to this model.
    """
    if is_repaired(folder):
        return load_repaired(folder, backdoored.card)
    return load_polarizer(folder, backdoored.net, backdoored.card)


def read_repaired(folder: Path) -> Repaired:
    """The run in `folder`, with its networks. Raises StorageError, UnknownNameError, CheckpointError."""
    run = read_record(folder)
    if folder.resolve().parent == paths.recorded().resolve():
        run = replace(run, recorded=True)
    backdoored = Zoo().load(run.request.model)
    return Repaired(run, backdoored, load_defended(folder, backdoored))


def model_archive(folder: Path, kind: str) -> bytes:
    """A zip file with the repaired network of a run, facts about it, and a short program that uses it.

    Args:
        folder: of a run, or one that `npd defend --save` wrote.
        kind: a name in MODEL_FORMATS.
    Raises:
        UnknownNameError: no such format, or the model of the run is not here.
        ConfigError: the format needs a package that is not installed.
        CheckpointError, StorageError: the run holds no network, or cannot be read.
    """
    if kind not in MODEL_FORMATS:
        raise unknown_name("format", kind, MODEL_FORMATS)
    found = read_repaired(folder)
    card = found.backdoored.card
    name = f"model.{kind}"
    what = f"{card.id}, by {found.run.request.defense}"
    how = FOLDED if isinstance(found.net, PolarizedNet) else WHOLE
    words = README.format(what=what, file=f"{name:<12} {MODEL_FORMATS[kind]}", size=card.image_size, how=how)
    files = {
        name: WRITERS[kind](found.plain, card.image_size),
        "about.json": (json.dumps(about(found), indent=2, ensure_ascii=False) + "\n").encode(),
        "use.py": script(kind, card.arch).encode(),
        "README.txt": words.encode(),
    }
    return pack(files)


def about(found: Repaired) -> dict[str, Any]:
    """Which network it is and what was measured, as JSON values."""
    run, card = found.run, found.backdoored.card
    result = run.result or {}
    return {
        "made_by": f"Neural Polarizer Lab {npd_core.__version__}", "run": run.id, "model": card.id,
        "model_sha256": card.files.get("model.safetensors"), "arch": card.arch, "width": card.width,
        "classes": list(class_names(card.dataset)), "image_size": card.image_size,
        "mean": list(card.mean), "std": list(card.std), "defense": run.request.defense,
        "layer": found.net.layer if isinstance(found.net, PolarizedNet) else None,
        "before": result.get("before"), "after": result.get("after"), "der": result.get("der"),
        "config": run.request.to_dict(), "environment": result.get("environment"),
    }  # fmt: skip


def to_safetensors(net: Normalized, size: int) -> bytes:
    """Every weight in float32, by its name in the folded network."""
    return save({name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()})


def to_pt2(net: Normalized, size: int) -> bytes:
    """The graph of `torch.export`, for any number of images."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_graph(net, size), file)
    return file.getvalue()


def to_onnx(net: Normalized, size: int) -> bytes:
    """ONNX, input `images`, output `logits`, for any number of images. Raises ConfigError without its packages."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs the package {error.name!r}: install it with `pip install onnx onnxscript`, "
            "or take another format."
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
    """Any number of images; two are shown, as one would be taken for a constant."""
    x = torch.zeros(2, 3, size, size)
    return torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own insides, and two of them at once in one process break each other."""
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

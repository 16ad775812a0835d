"""Weights from an untrusted file, read without executing anything in it.

Safetensors hold numbers only; from a PyTorch file, `torch.load(weights_only=True)` rebuilds tensors and plain
containers.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from npd_core.errors import CheckpointError, first_line

MAX_BYTES = 700_000_000
"""Largest checkpoint; VGG19-BN of torchvision for 1000 classes has 575 million."""
MAX_PICKLE = 32_000_000
"""Largest description of the content of a PyTorch file, which is stored apart from the weights."""
MAX_TENSORS = 5000
NUMBERS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
STATE_KEYS = ("model", "state_dict", "model_state_dict", "net", "weights")
"""Where a file keeps its state dict if it holds more than that; BackdoorBench's attack_result.pt uses
`model`."""
CONVERT = (
    "extract its state dict with "
    '`safetensors.torch.save_file(torch.load(FILE, weights_only=False)["model"], "model.safetensors")` '
    "and upload that file"
)


class Inert:
    """Stands in for arrays stored beside the weights: accepts any arguments, holds nothing, does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


STAND_INS = (
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib._local.PosixPath",
)
"""Names in attack_result.pt beside the state dict (which images were poisoned, and their paths).

None of them is looked up: `Inert` replaces them. A file with any other name is refused.
"""


class Checkpoint(NamedTuple):
    """The content of a file."""

    state: dict[str, Tensor]
    """Name -> weights on the CPU, without the prefix `module.` of DataParallel."""
    arch: str | None
    """Architecture, number of classes and image size as the file states them, if it does."""
    num_classes: int | None
    image_size: int | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights from a .safetensors file, or from a .pt, .pth, .bin or .tar file written by
    `torch.save`.

    Raises:
        CheckpointError: too large, damaged, of another kind, or holding anything but weights and plain
            values.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(
            f"The checkpoint has {size / 1e6:.0f} MB, the limit is {MAX_BYTES / 1e6:.0f} MB: upload the "
            "state dict alone, without optimizer and training data."
        )
    with path.open("rb") as file:
        start = file.read(9)
    content = _read_torch(path) if start.startswith(b"PK\x03\x04") else _read_safetensors(path, start)
    facts = content if isinstance(content, Mapping) else {}
    state = _checked(_state_dict(content))
    return Checkpoint(
        state,
        name if isinstance(name := facts.get("model_name"), str) else None,
        _whole(facts.get("num_classes")),
        _whole(_first(facts.get("img_size"))),
    )


def _read_safetensors(path: Path, start: bytes) -> dict[str, Tensor]:
    if start[:1] == b"\x80":
        raise CheckpointError(
            "Bare pickles and files of PyTorch before version 1.6 are not read: save it again with a newer "
            "PyTorch or as safetensors."
        )
    try:
        return dict(load_file(path))
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The checkpoint was written neither by safetensors nor by torch.save ({first_line(error)}): "
            "upload a .safetensors, .pt or .pth file."
        ) from error


_reading = threading.Lock()
"""Torch keeps one list of allowed names for all threads."""


def _read_torch(path: Path) -> object:
    _check_zip(path)
    allowed: Any = [(Inert, name) for name in STAND_INS]
    try:
        with _reading, torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sparse tensors, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        names = _unsafe(path)
        found = f" It refers to {', '.join(names[:3])}." if names else f" ({first_line(error)})"
        raise CheckpointError(
            f"The checkpoint holds more than weights and plain values, so it was not read.{found} If you "
            f"trust its source, {CONVERT}."
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(
            f"The checkpoint is damaged or was not written by torch.save ({first_line(error)}): save its "
            "state dict again."
        ) from error


def _unsafe(path: Path) -> list[str]:
    """Return the names in the file that are neither allowed nor replaced. None of them is looked up."""
    with contextlib.suppress(Exception):
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        return sorted(name for name in found if name not in STAND_INS)
    return []


def _check_zip(path: Path) -> None:
    """Refuse what `torch.save` never writes: compressed entries, which could unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"The checkpoint is damaged ({first_line(error)}): save it again.") from error
    if total > MAX_BYTES:
        raise CheckpointError(
            f"The checkpoint would unpack to {total / 1e6:.0f} MB, the limit is {MAX_BYTES / 1e6:.0f} MB: "
            "upload the state dict alone, without optimizer and training data."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            "The checkpoint is a compressed archive, which torch.save never writes: save it again."
        )
    if any(entry.file_size > MAX_PICKLE for entry in entries if entry.filename.endswith(".pkl")):
        raise CheckpointError(
            f"The description of the checkpoint has more than {MAX_PICKLE / 1e6:.0f} MB: upload the state "
            "dict alone."
        )


def _state_dict(content: object) -> Mapping[Any, Any]:
    """Return the first mapping of names to tensors: the content itself, or its value under one of
    STATE_KEYS."""
    candidates = [content]
    if isinstance(content, Mapping):
        candidates += [content[key] for key in STATE_KEYS if key in content]
    for candidate in candidates:
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(v, Tensor) for v in candidate.values())
        ):
            return candidate
    raise CheckpointError(
        "The checkpoint holds no state dict: save `net.state_dict()`, alone or under one of "
        f"{', '.join(STATE_KEYS)}."
    )


def _checked(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return copies in float32 of plain dense finite numbers; refuse anything else."""
    if len(state) > MAX_TENSORS:
        raise CheckpointError(f"The checkpoint has {len(state)} tensors, at most {MAX_TENSORS} are read.")
    if not all(isinstance(name, str) for name in state):
        raise CheckpointError("The weights must have text as names: save `net.state_dict()`.")
    odd = next((value.dtype for value in state.values() if value.dtype not in NUMBERS), None)
    if odd is not None:
        raise CheckpointError(f"Weights of type {odd} are not read: save plain float weights.")
    if sum(value.numel() * max(value.element_size(), 4) for value in state.values()) > MAX_BYTES:
        raise CheckpointError(
            f"The weights take more than {MAX_BYTES / 1e6:.0f} MB: upload a smaller network."
        )
    kept = {}
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise CheckpointError(
                f"{name!r} holds {value.dtype} in layout {value.layout}: save plain float weights."
            )
        if value.is_floating_point():
            value = value.detach().to(torch.float32, copy=True)
            if not bool(torch.isfinite(value).all()):
                raise CheckpointError(
                    f"{name!r} holds NaN or infinity: upload weights of a training that did not diverge."
                )
        else:
            value = value.detach().clone()
        kept[name] = value
    if kept and all(name.startswith("module.") for name in kept):
        kept = {name.removeprefix("module."): value for name, value in kept.items()}
    return kept


def _first(value: object) -> object:
    return value[0] if isinstance(value, list | tuple) and value else value


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 100_000 else None

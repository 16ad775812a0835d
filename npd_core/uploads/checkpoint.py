"""Weights from an untrusted file, read without executing anything in it and without trusting its sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npd_core.errors import CheckpointError
from npd_core.uploads import tensor_file
from npd_core.uploads.pickles import Made, Mapped, Named
from npd_core.uploads.tensor_file import NOT_TORCH, Stored, TensorFile, open_tensors, tensor

MAX_TENSORS = 5000
STATE_KEYS = (
    "state_dict", "model_state_dict", "model", "net", "netC", "net_state_dict", "network",
    "weights", "params",
    "state", "classifier", "ema", "state_dict_ema", "model_ema", "ema_state_dict",
)  # fmt: skip
"""Where a file usually keeps the weights of its network, the likeliest first; other keys come after them."""
NOT_WEIGHTS = re.compile(r"optim|sched|scaler|momentum|amp$|^(netG|netM|netD)", re.IGNORECASE)
"""Keys under which tensors of something else lie."""
PREFIXES = (
    "module",
    "model",
    "net",
    "_orig_mod",
    "backbone",
    "network",
    "encoder",
    "core",
    "classifier",
    "0",
    "1",
)
MAX_NESTING = 5
INERT_FACTS = ("model_name", "arch", "model", "net")
"""Keys under which a file may name its architecture."""


@dataclass
class Checkpoint:
    """The weights of a file, not yet read, and what the file says about their network."""

    file: TensorFile
    stored: Mapping[str, Stored]
    key: str
    """Where in the file the weights lie; "" for the file itself."""
    arch: str | None
    """Architecture, number of classes and image size as the file states them, if it does."""
    num_classes: int | None
    image_size: int | None

    @property
    def shapes(self) -> dict[str, Tensor]:
        """Name -> a tensor without numbers, of the stated shape."""
        return {
            name: torch.empty(stored.shape, dtype=stored.dtype, device="meta")
            for name, stored in self.stored.items()
        }

    def read(self, name: str) -> Tensor:
        """Return one tensor, floats as float32. Raises CheckpointError: it lies outside the file or is not
        finite."""
        value = self.file.read(self.stored[name])
        if value.is_floating_point():
            value = value.to(torch.float32)
            if not bool(torch.isfinite(value).all()):
                raise CheckpointError(
                    f"{name!r} holds NaN or infinity: upload weights of a training that did not diverge."
                )
        return value

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """All weights."""
        return {name: self.read(name) for name in self.stored}


def read_checkpoint(path: Path) -> Checkpoint:
    """Describe the weights in a .safetensors file, or in a file written by `torch.save`, in either format.

    Raises:
        CheckpointError: too large, damaged, of another kind, without weights, or asking for code that
        reaches the
            system.
    """
    return read_checkpoints(path)[0]


def read_checkpoints(path: Path) -> list[Checkpoint]:
    """Describe every set of weights in a file, the likeliest first; see `read_checkpoint`."""
    file = open_tensors(path)
    content = file.content
    refuse_dangerous(file.names)
    if content is NOT_TORCH:
        raise CheckpointError(
            "The checkpoint is a bare pickle, not a file of torch.save: save `net.state_dict()`."
        )
    facts: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
    given = [
        facts,
        *(facts[k] for k in ("args", "hyper_parameters", "config") if isinstance(facts.get(k), dict)),
    ]
    arch = next((v for g in given for k in INERT_FACTS if isinstance(v := g.get(k), str)), None)
    classes = next(
        (n for g in given for k in ("num_classes", "n_classes", "num_class") if (n := _whole(g.get(k)))), None
    )
    size = next(
        (
            n
            for g in given
            for k in ("img_size", "image_size", "input_height")
            if (n := _whole(_first(g.get(k))))
        ),
        None,
    )
    found = [
        Checkpoint(file, _checked(without_prefix(state)), key, arch, classes, size)
        for key, state in _states(content)
    ]
    if not found:
        raise _no_state(file, content)
    return found


def refuse_dangerous(names: set[Named]) -> None:
    """Raise CheckpointError for a file that would run code where it is unpickled."""
    bad = sorted(name.path for name in names if name.dangerous)
    if bad:
        raise CheckpointError(
            f"The checkpoint asks for {', '.join(n[:60] for n in bad[:3])}, which has no place among weights "
            "and would "
            "run when the file is unpickled; nothing was run here: do not open it elsewhere, and get the "
            "weights from "
            "another source."
        )


def _no_state(file: TensorFile, content: object) -> CheckpointError:
    if isinstance(content, Mapping):
        held = ", ".join(repr(str(key)[:30]) for key in list(content)[:6]) or "nothing"
    elif isinstance(content, Made):
        held = f"an object of {content.name[:60] or 'an unknown class'}"
    else:
        held = f"a {type(content).__name__}"
    return CheckpointError(
        f"The checkpoint holds no state dict (it holds {held}): save `net.state_dict()`, alone or under a "
        "key such as "
        f"{', '.join(STATE_KEYS[:2])}."
    )


def _states(content: object) -> list[tuple[str, dict[str, Stored]]]:
    """Every state dict in the file with the path of its key: the content itself, then by STATE_KEYS, then
    the one
    with the most tensors."""
    found = []
    waiting: list[tuple[str, object, int]] = [("", content, 0)]
    seen: set[int] = set()
    while waiting and len(seen) < 10_000:
        path, value, depth = waiting.pop()
        if id(value) in seen or depth > MAX_NESTING:
            continue
        seen.add(id(value))
        state = _state(value)
        if state:
            found.append((path, state))
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                if isinstance(inner, Mapping | Made) and not NOT_WEIGHTS.search(str(key)):
                    waiting.append((f"{path}.{key}".lstrip("."), inner, depth + 1))

    def rank(item: tuple[str, dict[str, Stored]]) -> tuple[int, int, int]:
        last = item[0].rpartition(".")[2]
        known = STATE_KEYS.index(last) if last in STATE_KEYS else len(STATE_KEYS)
        return item[0].count("."), known if item[0] else -1, -len(item[1])

    return sorted(found, key=rank)


def _state(value: object) -> dict[str, Stored]:
    """Return the tensors of a state dict, or of a whole network kept as an object; {}: it is neither."""
    if isinstance(value, Made | Mapped) and isinstance(value.state, dict) and "_modules" in value.state:
        return dict(_module_tensors(value))
    if not isinstance(value, Mapping):
        return {}
    tensors = {key: stored for key, item in value.items() if (stored := tensor(item)) is not None}
    rest = [item for key, item in value.items() if key not in tensors]
    if not tensors or any(isinstance(item, Mapping | Made | list) for item in rest):
        plain = {k for k in tensors if isinstance(k, str) and k.endswith((".weight", ".bias"))}
        if len(plain) < 4:
            return {}
    if not all(isinstance(name, str) for name in tensors):
        raise CheckpointError("The weights must have text as names: save `net.state_dict()`.")
    return tensors


def _module_tensors(root: Made | Mapped) -> Iterator[tuple[str, Stored]]:
    """Yield the parameters and buffers of a network that was saved as a whole; its classes are not looked
    up."""
    waiting: list[tuple[str, object]] = [("", root)]
    for _ in range(MAX_TENSORS):
        if not waiting:
            return
        path, module = waiting.pop(0)
        state = getattr(module, "state", None)
        if not isinstance(state, dict):
            continue
        for part in ("_parameters", "_buffers"):
            held = state.get(part)
            for name, item in held.items() if isinstance(held, Mapping) else ():
                if (stored := tensor(item)) is not None:
                    yield path + str(name), stored
        inner = state.get("_modules")
        if isinstance(inner, Mapping):
            waiting[:0] = [(f"{path}{name}.", item) for name, item in inner.items()]


def without_prefix(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Drop the prefixes that wrappers put before all names, and what lies beside the wrapped network.

    `module.`, `model.`, `_orig_mod.` and others, in any nesting. `0.` and `1.` are those of a pair such as
    `Sequential(Normalize(), net)`, of which only the network has weights.
    """
    kept = dict(state)
    for _ in range(MAX_NESTING):
        groups: dict[str, list[str]] = {}
        for name in kept:
            groups.setdefault(name.partition(".")[0], []).append(name)
        first = max(groups, key=lambda group: len(groups[group]))
        beside = sum(len(names) for group, names in groups.items() if group != first)
        if first not in PREFIXES or not all("." in name for name in groups[first]):
            break
        if beside > (
            0 if first in ("classifier", "encoder", "backbone") else max(4, len(groups[first]) // 20)
        ):
            break
        inner = {name.partition(".")[2]: kept[name] for name in groups[first]}
        if first not in ("module", "_orig_mod") and not any("." in name for name in inner):
            break  # a layer of this name, not a wrapper
        kept = inner
    return kept


def _checked(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Refuse what is no plain set of numbers, or becomes too large, before anything is read."""
    if len(state) > MAX_TENSORS:
        raise CheckpointError(f"The checkpoint has {len(state)} tensors, at most {MAX_TENSORS} are read.")
    for name, stored in state.items():
        if stored.dtype is None:
            raise CheckpointError(f"{name[:80]!r} is stored as {stored.kind[:60]}: save plain float weights.")
    if (
        sum(stored.numbers * max(stored.dtype.itemsize, 4) for stored in state.values() if stored.dtype)
        > tensor_file.MAX_BYTES
    ):
        raise CheckpointError(
            f"The weights take more than {tensor_file.MAX_BYTES / 1e6:.0f} MB: upload a smaller network."
        )
    return dict(state)


def _first(value: object) -> object:
    return value[0] if isinstance(value, list | tuple) and value else value


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 100_000 else None

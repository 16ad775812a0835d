"""A trained polarizer on disk, back in its network, out of it again, and folded for export."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from npd_core.errors import CheckpointError, StorageError
from npd_core.models import Normalized
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.zoo.card import Card, sha256

WEIGHTS = "polarizer.safetensors"
DESCRIPTION = "polarizer.json"
FORMAT = 1


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises StorageError, and leaves no partial file."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = f"{path} could not be written ({error.strerror}): free some space or choose another folder."
        raise StorageError(reason) from error


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a safetensors file whole or not at all. Raises StorageError, and leaves no partial file."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, partial)
        os.replace(partial, path)
    except (OSError, safetensors.SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = f"{path} could not be written ({error}): free some space or choose another folder."
        raise StorageError(reason) from error


def save_polarizer(net: PolarizedNet, folder: Path, meta: Mapping[str, Any]) -> None:
    """Write `polarizer.safetensors` and `polarizer.json`.

    Args:
        meta: what makes the file self-describing: `model` (zoo id), `model_sha256`, config, clean indices, versions.
    Raises:
        StorageError: the folder cannot be written; files of an earlier save stay whole.
    """
    weights = folder / WEIGHTS
    write_weights(weights, net.polarizer.state_dict())
    description = {
        "format": FORMAT, "kind": "conv1x1+bn", "layer": net.layer, "channels": net.info.channels,
        "sha256": sha256(weights), **meta,
    }  # fmt: skip
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def read_json(path: Path, kind: str, again: str) -> dict[str, Any]:
    """The description beside saved weights, as a dictionary. Raises CheckpointError when it is missing, damaged, or of
    another format than FORMAT; `kind` says what it should describe, `again` what makes it anew."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = f"{path.parent} holds no {path.name}: name the folder that `npd defend --save` wrote."
        raise CheckpointError(reason) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {again}.") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a {kind} of format {FORMAT}: {again}.")
    return values


def read_description(folder: Path) -> dict[str, Any]:
    """`polarizer.json` as a dictionary. Raises CheckpointError when it is missing or damaged."""
    values = read_json(folder / DESCRIPTION, "polarizer", "train the polarizer again")
    if "layer" not in values:
        raise CheckpointError(
            f"{folder / DESCRIPTION} is not a polarizer, it names no layer: train the polarizer again."
        )
    return values


def load_polarizer(folder: Path, backdoored: Normalized, card: Card | None = None) -> PolarizedNet:
    """f_hat_theta rebuilt: a copy of `backdoored` with the saved polarizer in its place; logits are bit-identical.

    Args:
        card: of `backdoored`; when given, a polarizer that was trained for other weights is refused.
    Raises:
        CheckpointError: files missing, changed, or made for another network.
        UnknownNameError: the network has no such layer.
    """
    description = read_description(folder)
    weights = folder / WEIGHTS
    if not weights.is_file() or sha256(weights) != description.get("sha256"):
        raise CheckpointError(f"{weights} is missing or was changed since it was saved: train the polarizer again.")
    if card is not None:
        expected = card.files.get("model.safetensors")
        if description.get("model", card.id) != card.id:
            other = description["model"]
            raise CheckpointError(f"{folder} was trained for {other}, not for {card.id}: choose that model.")
        if description.get("model_sha256", expected) != expected:
            raise CheckpointError(f"{folder} was trained for other weights of {card.id}: train the polarizer again.")
    net = PolarizedNet(backdoored, description["layer"], card.image_size if card else 32)
    try:
        net.polarizer.load_state_dict(load_file(weights))
    except (safetensors.SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{weights} does not fit layer {net.layer}: {reason}") from error
    return net.eval()


def remove_polarizer(net: PolarizedNet) -> Normalized:
    """f_w again, as a copy: exactly the network that the polarizer was put into."""
    plain = copy.deepcopy(net.net)
    path = f"net.{net.info.point.module}"
    plain.set_submodule(path, plain.get_submodule(path).module)  # type: ignore[arg-type]
    return plain


def _like(conv: nn.Conv2d, bias: bool) -> nn.Conv2d:
    """A fresh convolution of the same form."""
    form: dict[str, Any] = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    return nn.Conv2d(conv.in_channels, conv.out_channels, **form, bias=bias)


class FoldedConv(nn.Module):
    """A convolution that has swallowed the polarizer before it: weights W A, and the offset as a map.

    A zero-padded convolution sees no offset beyond the border, so b cannot become an ordinary bias: it is stored as
    conv(b broadcast over the image), exact for that one input size.
    """

    bias_map: Tensor

    def __init__(self, conv: nn.Conv2d, matrix: Tensor, offset: Tensor, height: int, width: int):
        super().__init__()
        self.conv = _like(conv, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.einsum("ochw,cd->odhw", conv.weight, matrix))
            constant = offset[None, :, None, None].expand(1, -1, height, width)
            bias = F.conv2d(constant, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)
        self.register_buffer("bias_map", bias)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.conv(features) + self.bias_map
        return out


def fold(net: PolarizedNet) -> Normalized:
    """The network for export: plain layers only, the polarizer folded away.

    Before a convolution it becomes a FoldedConv; behind one, new weights and a bias; on the residual stream, one biased
    1x1 convolution in front of the block. The logits equal those of `net` up to rounding, for images of the same size.
    """
    plain = copy.deepcopy(net.net)
    path = f"net.{net.info.point.module}"
    inserted = plain.get_submodule(path)
    matrix, offset = net.polarizer.folded()
    target: nn.Module = inserted.module  # type: ignore[assignment]
    kind = net.info.point.kind
    if kind == "stream":
        linear = nn.Conv2d(net.info.channels, net.info.channels, 1)
        with torch.no_grad():
            linear.weight.copy_(matrix[:, :, None, None])
            linear.bias.copy_(offset)  # type: ignore[union-attr]
        replacement: nn.Module = nn.Sequential(linear, target)
    elif kind == "before":
        assert isinstance(target, nn.Conv2d)
        replacement = FoldedConv(target, matrix, offset, net.info.height, net.info.width)
    else:
        assert isinstance(target, nn.Conv2d)
        replacement = _like(target, bias=True)
        with torch.no_grad():
            replacement.weight.copy_(torch.einsum("oc,cihw->oihw", matrix, target.weight))
            bias = offset if target.bias is None else offset + matrix @ target.bias
            replacement.bias.copy_(bias)  # type: ignore[union-attr]
    plain.set_submodule(path, replacement.to(matrix))
    return plain.requires_grad_(False).eval()

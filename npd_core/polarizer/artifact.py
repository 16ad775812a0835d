"""A trained polarizer on disk: saved, loaded back into its network, and the snapshots of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save
from torch import Tensor, nn

from npd_core.errors import CheckpointError, StorageError
from npd_core.fileio import sha256, write_described, write_tensors
from npd_core.models import Normalized
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.snapshots import snapshot_epochs, snapshot_file
from npd_core.zoo.card import Card

WEIGHTS = "polarizer.safetensors"
DESCRIPTION = "polarizer.json"
FORMAT = 1


def save_polarizer(net: PolarizedNet, folder: Path, meta: Mapping[str, Any]) -> None:
    """Write `polarizer.safetensors` and `polarizer.json`.

    Args:
        meta: what makes the file self-describing: `model` (zoo id), `model_sha256`, config, clean indices,
            versions.
    Raises:
        StorageError: the folder cannot be written; files of an earlier save stay whole.
    """
    description = {
        "format": FORMAT, "kind": "conv1x1+bn", "layer": net.layer, "channels": net.info.channels, **meta,
    }  # fmt: skip
    write_described(folder / WEIGHTS, net.polarizer.state_dict(), folder / DESCRIPTION, description)


def read_json(path: Path, kind: str, again: str) -> dict[str, Any]:
    """Return the JSON description beside saved weights. Raises CheckpointError when it is missing, damaged,
    or not of format FORMAT; the message says what `kind` of thing it should describe, and the remedy
    `again`."""
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
    """Return `polarizer.json`. Raises CheckpointError when it is missing or damaged."""
    values = read_json(folder / DESCRIPTION, "polarizer", "train the polarizer again")
    if "layer" not in values:
        raise CheckpointError(
            f"{folder / DESCRIPTION} is not a polarizer, it names no layer: train the polarizer again."
        )
    return values


def load_polarizer(
    folder: Path, backdoored: nn.Module, card: Card | None = None, size: int = 32
) -> PolarizedNet:
    """Rebuild f_hat_theta: a copy of `backdoored` with the saved polarizer inserted; logits are
    bit-identical.

    Args:
        card: of `backdoored`; when given, a polarizer that was trained for other weights is refused.
        size: height and width of the images, where there is no card.
    Raises:
        CheckpointError: files missing, changed, or made for another network.
        UnknownNameError: the network has no such layer.
    """
    description = read_description(folder)
    weights = folder / WEIGHTS
    if not weights.is_file() or sha256(weights) != description.get("sha256"):
        raise CheckpointError(
            f"{weights} is missing or was changed since it was saved: train the polarizer again."
        )
    _check_model(folder, description, card)
    net = PolarizedNet(backdoored, description["layer"], card.image_size if card else size)
    try:
        state = load_file(weights)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{weights} cannot be read ({error}): train the polarizer again.") from error
    put_state(net, state, weights)
    return net.eval()


def _check_model(source: Path, description: Mapping[str, Any], card: Card | None) -> None:
    """Refuse a polarizer that was trained for another network than that of `card`. Raises CheckpointError."""
    if card is None:
        return
    expected = card.files.get("model.safetensors")
    if description.get("model", card.id) != card.id:
        other = description["model"]
        raise CheckpointError(f"{source} was trained for {other}, not for {card.id}: choose that model.")
    if description.get("model_sha256", expected) != expected:
        raise CheckpointError(
            f"{source} was trained for other weights of {card.id}: train the polarizer again."
        )


def forget_snapshots(folder: Path) -> None:
    """Remove the polarizers of the epochs of an earlier run in the same folder. Raises StorageError."""
    for epoch in snapshot_epochs(folder):
        path = snapshot_file(folder, epoch)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{path} could not be removed ({error.strerror}): choose another folder."
            ) from error


def save_snapshot(net: PolarizedNet, folder: Path, epoch: int, card: Card) -> None:
    """Write the polarizer as it stands after `epoch` epochs, see `npd_core.polarizer.snapshots`.

    The header holds layer, model, sha256 of its weights, and sha256 of the state, so that a file can be
    checked while the run goes on. Numbers are float32: the last snapshot equals the final polarizer bit by
    bit.

    Raises:
        StorageError: it cannot be written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in net.polarizer.state_dict().items()}
    notes = {
        "format": str(FORMAT), "layer": net.layer, "epoch": str(epoch), "model": card.id,
        "model_sha256": card.files["model.safetensors"], "sha256": _digest(state),
    }  # fmt: skip
    write_tensors(snapshot_file(folder, epoch), state, notes)


def read_snapshot(folder: Path, epoch: int, card: Card | None = None) -> tuple[str, dict[str, Tensor]]:
    """Return insertion layer and state of the polarizer after `epoch` epochs, checked like `load_polarizer`.

    Raises:
        CheckpointError: no such file, or one that was changed or made for another network.
    """
    path = snapshot_file(folder, epoch)
    if not path.is_file():
        there = ", ".join(map(str, snapshot_epochs(folder))) or "none"
        raise CheckpointError(f"{folder.name} has no polarizer of epoch {epoch}, only of: {there}.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): train the polarizer again.") from error
    if notes.get("format") != str(FORMAT) or "layer" not in notes or notes.get("sha256") != _digest(state):
        raise CheckpointError(f"{path} was changed since it was saved: train the polarizer again.")
    _check_model(path, notes, card)
    return notes["layer"], state


def load_snapshot(folder: Path, epoch: int, backdoored: Normalized, card: Card | None = None) -> PolarizedNet:
    """Rebuild f_hat_theta after `epoch` epochs of a run. Arguments and errors as for `load_polarizer`."""
    layer, state = read_snapshot(folder, epoch, card)
    net = PolarizedNet(backdoored, layer, card.image_size if card else 32)
    put_state(net, state, snapshot_file(folder, epoch))
    return net.eval()


def put_state(net: PolarizedNet, state: Mapping[str, Tensor], source: Path) -> None:
    """Load the state that was read from `source` into the polarizer of `net`. Raises CheckpointError when it
    does not fit."""
    try:
        net.polarizer.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{source} does not fit layer {net.layer}: {reason}") from error


def _digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes and bytes of a state."""
    return hashlib.sha256(save(dict(state))).hexdigest()

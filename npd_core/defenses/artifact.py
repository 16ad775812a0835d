"""A repaired network on disk: saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file

from npd_core.errors import CheckpointError
from npd_core.fileio import sha256, write_described
from npd_core.models import Normalized, load_weights
from npd_core.polarizer.artifact import FORMAT, read_json
from npd_core.zoo.card import Card
from npd_core.zoo.weights import empty_network, half_precision

WEIGHTS = "model.safetensors"
DESCRIPTION = "repaired.json"


def round_as_stored(net: Normalized) -> None:
    """Give `net` the values that it will have once saved and loaded, so that the stored network is the
    measured one."""
    load_weights(net, half_precision(net))


def save_repaired(net: Normalized, folder: Path, meta: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, as the zoo stores its models, and `repaired.json`.

    Args:
        meta: what makes the folder self-describing: `model` (zoo id), `model_sha256`, `defense`, config,
            versions.
    Raises:
        StorageError: the folder cannot be written; files of an earlier save stay whole.
    """
    description = {"format": FORMAT, "kind": "repaired network", **meta}
    write_described(folder / WEIGHTS, half_precision(net), folder / DESCRIPTION, description)


def is_repaired(folder: Path) -> bool:
    """Return whether a folder holds a repaired network, rather than a polarizer."""
    return (folder / DESCRIPTION).is_file()


def read_description(folder: Path) -> dict[str, Any]:
    """Return `repaired.json`. Raises CheckpointError when it is missing or damaged."""
    return read_json(folder / DESCRIPTION, "repaired network", "run the defense again")


def load_repaired(folder: Path, card: Card) -> Normalized:
    """Load the repaired network, in eval mode, frozen, float32, on the CPU.

    Args:
        card: of the model that was repaired.
    Raises:
        CheckpointError: files missing or changed, made of another model or of other weights of this one, or
            weights that do not fit its architecture.
    """
    description = read_description(folder)
    weights = folder / WEIGHTS
    if not weights.is_file() or sha256(weights) != description.get("sha256"):
        raise CheckpointError(
            f"{weights} is missing or was changed since it was saved: run the defense again."
        )
    if description.get("model") != card.id:
        raise CheckpointError(
            f"{folder} is a repaired {description.get('model')}, not {card.id}: choose that model."
        )
    if description.get("model_sha256") != card.files.get("model.safetensors"):
        raise CheckpointError(f"{folder} was made of other weights of {card.id}: run the defense again.")
    net = empty_network(card)
    try:
        state = load_file(weights)
        load_weights(
            net, {k: value.float() if value.is_floating_point() else value for k, value in state.items()}
        )
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{weights} does not fit {card.arch}: {reason} Run the defense again."
        ) from error
    return net.eval().requires_grad_(False)

"""Weights of zoo models: safetensors in and out, never unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from safetensors.torch import load_file

from npd_core.attacks import UNKNOWN, AllToOne, Attack, get_attack
from npd_core.data.load import ImageSet
from npd_core.data.parquet import read_images
from npd_core.errors import CheckpointError, ConfigError, first_line
from npd_core.fileio import save_tensors, sha256, staged_folder, write_json
from npd_core.models import Normalized, build_model, load_weights, quiet
from npd_core.models.onnx_graph import GRAPH, ONNX, network_from_onnx
from npd_core.zoo.card import CARD, TRIGGER, TRIGGERED, WEIGHTS, Card, verify_files

SCALE = ":scale"
"""Suffix of the factors, one per output channel, of a weight stored in eight bits."""


class Backdoored(NamedTuple):
    """A model of the zoo, ready to be defended."""

    card: Card
    net: Normalized
    """In eval mode, frozen, float32."""
    attack: Attack


def read_model(card: Card) -> Backdoored:
    """Load the model beside a card, as `Zoo.load` does."""
    verify_files(card)
    net = empty_network(card)
    try:
        load_weights(net, restored(load_file(card.folder / WEIGHTS)))
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{card.id}/{WEIGHTS} does not fit {card.arch}: {first_line(error)}. Run: {card.command}"
        ) from error
    net.eval().requires_grad_(False)
    return Backdoored(card, net, _attack_of(card))


def empty_network(card: Card) -> Normalized:
    """Build the network of a card, whose weights are still to be loaded. Raises CheckpointError,
    ConfigError."""
    if card.arch == ONNX:
        return Normalized(quiet(network_from_onnx(card.folder / GRAPH)), card.mean, card.std)
    return build_model(card.arch, card.num_classes, card.width, card.mean, card.std)


def _attack_of(card: Card) -> Attack:
    """Build the attack on the card, with the trigger from the model's folder. Raises CheckpointError."""
    if TRIGGERED in card.files:
        images = read_images(card.folder / TRIGGERED, card.num_classes, card.image_size)
        rule = AllToOne(int(card.attack_params["target"]))
        return Attack(UNKNOWN, lambda x: x, rule, carried=ImageSet(*map(torch.from_numpy, images)))
    try:
        assets = load_file(card.folder / TRIGGER) if TRIGGER in card.files else {}
        return get_attack(card.attack, card.dataset, assets, **card.attack_params)
    except (safetensors.SafetensorError, OSError, ConfigError) as error:
        raise CheckpointError(
            f"{card.id}: the trigger cannot be built ({error}) Run: {card.command}"
        ) from error


def half_precision(net: Normalized) -> dict[str, torch.Tensor]:
    """Return the state in float16; BatchNorm's statistics and counters keep their type."""
    stored = {}
    for name, value in net.state_dict().items():
        keep = not value.is_floating_point() or "running_" in name or name in ("mean", "std")
        stored[name] = (value if keep else value.half()).detach().cpu().contiguous()
    return stored


def eight_bits(net: Normalized) -> dict[str, torch.Tensor]:
    """Return the state with weights of two and more dimensions as int8, the rest as in `half_precision`.

    A float32 factor per output channel is stored under the name of the weight and SCALE.
    """
    stored, full = half_precision(net), net.state_dict()
    for name in [name for name, value in stored.items() if value.dtype == torch.float16 and value.dim() > 1]:
        weight = full[name].detach().cpu()
        scale = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True).clamp_min(1e-12) / 127
        stored[name], stored[name + SCALE] = (weight / scale).round().to(torch.int8).contiguous(), scale
    return stored


def restored(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict in float32 from the result of `half_precision` or `eight_bits`."""
    state = {}
    for name, value in stored.items():
        if name + SCALE in stored:
            state[name] = value * stored[name + SCALE]
        elif not name.endswith(SCALE):
            state[name] = value.float() if value.is_floating_point() else value
    return state


def write_model(
    folder: Path,
    net: Normalized,
    card: Card,
    assets: Mapping[str, torch.Tensor] | None,
    stored: Mapping[str, torch.Tensor] | None,
) -> Card:
    """Write weights, the files of the trigger, then the card with their hashes, as `Zoo.save` does."""
    with staged_folder(folder) as fresh:
        save_tensors(fresh / WEIGHTS, half_precision(net) if stored is None else stored)
        if assets:
            save_tensors(fresh / TRIGGER, assets)
        names = (WEIGHTS, TRIGGER) if assets else (WEIGHTS,)
        card = replace(card, files={name: sha256(fresh / name) for name in names}, folder=folder)
        write_json(fresh / CARD, card.to_dict(), indent=2)
    return card

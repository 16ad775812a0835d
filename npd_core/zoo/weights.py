"""Weights of zoo models: safetensors in and out, never unpickled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from safetensors.torch import load_file, save_file

from npd_core.attacks import UNKNOWN, AllToOne, Attack, get_attack
from npd_core.data.load import ImageSet
from npd_core.data.parquet import read_images
from npd_core.errors import CheckpointError, ConfigError, StorageError
from npd_core.models import Normalized, build_model, load_weights
from npd_core.zoo.card import CARD, TRIGGER, TRIGGERED, WEIGHTS, Card, sha256, verify_files

SCALE = ":scale"
"""Behind the name of a weight that is stored in eight bits: one factor an output channel."""


class Backdoored(NamedTuple):
    """A model of the zoo, ready to be defended."""

    card: Card
    net: Normalized
    """In eval mode, frozen, float32."""
    attack: Attack


def read_model(card: Card) -> Backdoored:
    """Load the model beside a card, as `Zoo.load` does."""
    verify_files(card)
    net = build_model(card.arch, card.num_classes, card.width, card.mean, card.std)
    try:
        load_weights(net, restored(load_file(card.folder / WEIGHTS)))
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{card.id}/{WEIGHTS} does not fit {card.arch}: {reason} Run: {card.command}"
        ) from error
    net.eval().requires_grad_(False)
    return Backdoored(card, net, _attack_of(card))


def _attack_of(card: Card) -> Attack:
    """The attack that the card names, its trigger made of the model's own file. Raises CheckpointError."""
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
    """The state as it is stored: float16, but for BatchNorm's statistics and counters, which keep their type."""
    stored = {}
    for name, value in net.state_dict().items():
        keep = not value.is_floating_point() or "running_" in name or name in ("mean", "std")
        stored[name] = (value if keep else value.half()).detach().cpu().contiguous()
    return stored


def eight_bits(net: Normalized) -> dict[str, torch.Tensor]:
    """The state in half of that space: weights of two dimensions and more as int8, with a float32 factor an output
    channel under their name and SCALE; the rest as in `half_precision`."""
    stored, full = half_precision(net), net.state_dict()
    for name in [name for name, value in stored.items() if value.dtype == torch.float16 and value.dim() > 1]:
        weight = full[name].detach().cpu()
        scale = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True).clamp_min(1e-12) / 127
        stored[name], stored[name + SCALE] = (weight / scale).round().to(torch.int8).contiguous(), scale
    return stored


def restored(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict in float32 that `half_precision` or `eight_bits` stored."""
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
    """Write weights, what the trigger is made of, then the card with their hashes, as `Zoo.save` does."""
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(half_precision(net) if stored is None else dict(stored), partial / WEIGHTS)
        if assets:
            save_file({name: value.contiguous() for name, value in assets.items()}, partial / TRIGGER)
        names = (WEIGHTS, TRIGGER) if assets else (WEIGHTS,)
        card = replace(card, files={name: sha256(partial / name) for name in names}, folder=folder)
        text = json.dumps(card.to_dict(), indent=2, ensure_ascii=False)
        (partial / CARD).write_text(text + "\n", encoding="utf-8")
        _put(partial, folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(
            f"{folder} could not be written ({error}): free some space or set NPD_ZOO_DIR."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return card


def _put(fresh: Path, folder: Path) -> None:
    """Move `fresh` to where `folder` is; what was there is deleted last, and comes back when the move fails."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(old, ignore_errors=True)

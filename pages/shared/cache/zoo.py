"""Cached models: cards, networks, attacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from npd_core import paths
from npd_core.zoo import Zoo
from npd_core.zoo.card import Card
from pages.shared.cache.files import by_files

if TYPE_CHECKING:
    from npd_core.attacks import Attack
    from npd_core.polarizer.insertion import LayerInfo
    from npd_core.zoo.weights import Backdoored


def _zoo_folders() -> list[Path]:
    root = paths.pretrained()
    folders = [path for path in sorted(root.iterdir()) if path.name[0] != "."] if root.is_dir() else []
    return [root, *(folder for folder in folders if folder.is_dir())]


def model_files(model_id: str, *_: Any, **__: Any) -> list[Path]:
    """Return the folder that a result about this model depends on. Raises UnknownNameError."""
    return [card(model_id).folder]


def cards() -> list[Card]:
    """Return the cards of the zoo, sorted by id; those of clean models too."""
    return _read_zoo()[0]


def unreadable_cards() -> list[str]:
    """Return a sentence for each model of the zoo that is left out because its card is damaged."""
    return _read_zoo()[1]


@by_files(st.cache_data(max_entries=4, show_spinner=False), _zoo_folders)
def _read_zoo() -> tuple[list[Card], list[str]]:
    return Zoo().cards(clean=True), Zoo().unreadable()


def card(model_id: str) -> Card:
    """Return the card of one model of the zoo or of an uploaded one. Raises UnknownNameError."""
    return next((found for found in cards() if found.id == model_id), None) or Zoo().card(model_id)


@by_files(st.cache_resource(max_entries=4, show_spinner="Loading the model …"), model_files)
def backdoored(model_id: str) -> Backdoored:
    """Return the model with its attack: eval, frozen, shared. Raises UnknownNameError, CheckpointError."""
    return Zoo().load(model_id)


@by_files(st.cache_data(max_entries=8, show_spinner=False), model_files)
def insertion_layers(model_id: str) -> list[LayerInfo]:
    """Return the insertion layers of the model, in forward order."""
    from npd_core.polarizer.insertion import insertion_layers

    return list(insertion_layers(backdoored(model_id).net, card(model_id).image_size))


@by_files(st.cache_resource(max_entries=32, show_spinner=False), model_files)
def attack(model_id: str) -> Attack:
    """Return the attack of the model alone, shared. Raises as `backdoored`."""
    return Zoo().load(model_id).attack


@by_files(st.cache_data(max_entries=32, show_spinner=False), model_files)
def trigger_stamp(model_id: str) -> np.ndarray | None:
    """Return the trigger as colors and opacity, (4, H, W) uint8; None for a trigger that is no stamp."""
    from npd_core.attacks import stamp

    found = stamp(attack(model_id), card(model_id).image_size)
    return None if found is None else found.numpy()


def target(model_id: str, label: int) -> int:
    """Return the attacker's target for images of class `label`; for a clean model, `label` itself."""
    import torch

    return int(attack(model_id).rule.target(torch.tensor([label])).item())


@st.cache_data(max_entries=1, show_spinner=False)
def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    from npd_core.models import torchvision_names

    return torchvision_names()

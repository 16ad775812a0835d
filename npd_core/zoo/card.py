"""`card.json`: facts about a model of the zoo. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from npd_core import paths
from npd_core.config.presets import default_layer
from npd_core.errors import CheckpointError
from npd_core.fileio import sha256

CARD = "card.json"
WEIGHTS = "model.safetensors"
TRIGGER = "trigger.safetensors"
TRIGGERED = "triggered.parquet"
"""Triggered images of an uploaded model."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts about one pretrained model; every number was measured on the test split when the model was
    made."""

    id: str
    """`<dataset>-<attack>-<arch>-w<width>`."""
    dataset: str
    attack: str
    attack_params: Mapping[str, Any]
    poison_ratio: float
    target: str
    """The target in words: "class 0 (airplane)"."""
    arch: str
    width: int
    num_classes: int
    image_size: int
    """Height and width in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: Mapping[str, Any]
    seed: int
    acc: float
    """ACC, a fraction."""
    asr: float | None
    """ASR, a fraction; None for a clean model."""
    ra: float | None
    """RA, a fraction; None for a clean model."""
    cross_acc: float | None = None
    """Accuracy on cross-trigger test images, a fraction; None for an attack without any."""
    seconds: float
    """Time to train."""
    versions: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    """File name in the model's folder -> sha256, in hexadecimal digits."""
    folder: Path = field(default=Path(), compare=False, repr=False)
    """Where the card was read; not stored."""

    @cached_property
    def bytes(self) -> int:
        """Size of the model's files on disk, without missing ones."""
        sizes = ((self.folder / name).stat().st_size for name in self.files if (self.folder / name).is_file())
        return sum(sizes)

    @property
    def layer(self) -> str:
        """The default insertion layer: the one suggested for an uploaded model, or that of the architecture.

        Raises UnknownNameError.
        """
        return str(self.recipe.get("layer") or default_layer(self.arch, self.dataset))

    @property
    def command(self) -> str:
        """The command that restores the model: it is trained with the card's settings, or imported again."""
        if paths.uploaded(self.id) is not None:
            return "npd import NET IMAGES"
        return f"npd zoo train {self.id}"

    def to_dict(self) -> dict[str, Any]:
        """The content of `card.json`."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}


def model_id(dataset: str, attack: str, arch: str, width: int) -> str:
    """Return an id such as `signs-badnets_a2o-preact_resnet18-w16`."""
    return f"{dataset}-{attack}-{arch}-w{width}"


def read_card(path: Path) -> Card:
    """Read and check a card. Raises CheckpointError when it is damaged or not a card."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = {f.name for f in fields(Card)} - {"folder"}
        known: dict[str, Any] = {
            k: tuple(v) if k in ("mean", "std") else v for k, v in values.items() if k in names
        }
        card = Card(**known, folder=path.parent)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        remedy = "Restore it from git, or remove its folder and train the model again."
        raise CheckpointError(f"{path}: not a readable model card ({error}). {remedy}") from error
    if card.id != path.parent.name:
        raise CheckpointError(
            f"{path}: the card of {card.id!r} is in the folder {path.parent.name!r}. Rename the folder."
        )
    return card


def verify_files(card: Card) -> None:
    """Raise CheckpointError when a file of the model is missing or has another hash than on its card."""
    for name, expected in card.files.items():
        path = card.folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing. Restore it or run: {card.command}")
        found = sha256(path)
        if found != expected:
            raise CheckpointError(
                f"{card.id}/{name}: sha256 {found[:8]}, expected {expected[:8]}. Restore it or run: "
                f"{card.command}"
            )

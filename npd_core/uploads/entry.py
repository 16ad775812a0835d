"""A brought network as a folder like those of the zoo, hidden beside the runs (`paths.own`), with its images:

    <runs>/.own/own-<16 hex digits>/model.safetensors   as it was brought, in float32
                                    card.json           what it is; ACC on the images held out, no ASR
                                    data.json           facts about the images
                                    train.parquet       D_bn: the half that the defense may use
                                    test.parquet        the half held out: only measured
                                    triggered.parquet   images that carry the trigger, where some were brought

So `Zoo.load`, `load_clean`, `load_dataset` and `run_defense` take it by its id, as they take a model of the zoo.
"""

from __future__ import annotations

import io
import math
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from npd_core import paths
from npd_core.attacks import UNKNOWN
from npd_core.config.npd import NPDConfig, preset
from npd_core.data.load import FILES
from npd_core.data.parquet import write_images
from npd_core.data.spec import OWN_SPEC, Colour, DatasetSpec, spec_text
from npd_core.errors import ConfigError, StorageError, check_seed
from npd_core.evaluation import predict
from npd_core.fileio import save_tensors, sha256, staged_folder, write_json, write_text
from npd_core.models import Normalized
from npd_core.uploads.checkpoint import read_checkpoint
from npd_core.uploads.images import Images, read_images
from npd_core.uploads.network import AUTO, discover, recognise, suggested_layer
from npd_core.zoo import Zoo
from npd_core.zoo.card import CARD, TRIGGERED, WEIGHTS, Card

MOST = 32
"""Brought networks kept on this machine at a time."""
SIZES = (16, 256)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the files do not say for certain."""

    arch: str = AUTO
    """As for `recognise`."""
    mean: Colour = (0.0, 0.0, 0.0)
    std: Colour = (1.0, 1.0, 1.0)
    """Normalisation that the network was trained with, per channel, in [0, 1] pixel units."""
    image_size: int = 32
    """Height and width in pixels; images of another size are resized."""
    target: int | None = None
    """Label that the attacker wants; goes with images that carry the trigger."""
    seed: int = 0
    """Of the split into D_bn and held-out images."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                raise ConfigError(f"`{name}` must be three numbers, one a colour, got {values!r}.")
        if min(self.std) <= 0:
            raise ConfigError(f"`std` must be above 0, got {self.std}.")
        if not SIZES[0] <= self.image_size <= SIZES[1]:
            raise ConfigError(
                f"Images of {SIZES[0]} to {SIZES[1]} pixels can be used, got {self.image_size}."
            )
        check_seed(self.seed)


def bring(checkpoint: Path, clean: Path, settings: Settings, triggered: Path | None = None) -> Card:
    """Read a network and its images, check that they go together, and keep them; returns the card of the new model.

    Args:
        checkpoint: as for `read_checkpoint`.
        clean: as for `read_images`; half of each class becomes D_bn, the other half is held out.
        triggered: the same layout, folders by TRUE class, of images that carry the trigger; `settings.target` is then
            the label that the attacker wants.
    Raises:
        ConfigError, CheckpointError, StorageError, UnknownNameError: what cannot be used, with the remedy. Nothing is
            kept then.
    """
    root = paths.runs() / ".own"
    if root.is_dir() and sum(path.name.startswith("own-") for path in root.iterdir()) >= MOST:
        raise ConfigError(
            f"This machine keeps {MOST} brought networks already: remove one, or folders in {root}."
        )
    read = read_checkpoint(checkpoint)
    known = recognise(read.state, settings.arch)
    if known.num_classes < 2:
        raise ConfigError("A network with one class has nothing to tell apart: bring a classifier.")
    if settings.target is not None and not 0 <= settings.target < known.num_classes:
        raise ConfigError(f"`target` must be a class, 0 to {known.num_classes - 1}, got {settings.target}.")
    if (settings.target is None) != (triggered is None):
        raise ConfigError(
            "Triggered images and `target`, the attacker's target class, go together: give both."
        )
    size = settings.image_size
    discover(known.net, size)
    net = Normalized(known.net, settings.mean, settings.std).eval().requires_grad_(False)
    pictures = read_images(clean, size, known.num_classes)
    with_trigger = None if triggered is None else read_images(triggered, size, known.num_classes)
    kept, held_out = split(pictures.labels, settings.seed)
    model = f"own-{secrets.token_hex(8)}"
    said = predict(net, torch.from_numpy(pictures.images[held_out]), torch.device("cpu")).argmax(1).numpy()
    spec = DatasetSpec(
        id=model, title="Brought images", classes=pictures.classes, num_classes=known.num_classes, size=size,
        mean=settings.mean, std=settings.std, train_images=len(kept), test_images=len(held_out), flip=False,
        source="Brought by a visitor.",
    )  # fmt: skip
    card = Card(
        id=model, dataset=model, attack=UNKNOWN, poison_ratio=0.0, target="unknown",
        attack_params={} if settings.target is None else {"target": settings.target},
        arch=known.arch, width=known.width, num_classes=known.num_classes, image_size=size, mean=settings.mean,
        std=settings.std, recipe={"layer": suggested_layer(known.net, known.arch, size)}, seed=settings.seed,
        acc=float(np.mean(said == pictures.labels[held_out])), asr=None, ra=None, seconds=0.0,
        versions={"torch": torch.__version__},
    )  # fmt: skip
    if settings.target is not None:
        card = replace(card, target=f"class {settings.target} ({pictures.classes[settings.target]})")
    _write(card, spec, net, pictures, kept, held_out, with_trigger)
    return Zoo().card(model)


def split(labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of D_bn and of the held-out images, ascending: half of each class each, D_bn has the odd one.

    Raises ConfigError when a half would have fewer than 4 images.
    """
    rng = np.random.default_rng([seed, 0x6F776E])  # "own"
    kept, held_out = [], []
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        half = (len(of_class) + 1) // 2
        kept.append(of_class[:half])
        held_out.append(of_class[half:])
    first, second = np.sort(np.concatenate(kept)), np.sort(np.concatenate(held_out))
    if len(second) < 4:
        raise ConfigError(
            f"{len(labels)} clean images are too few to hold some out: bring at least two of each class."
        )
    return first, second


def remove(model: str) -> None:
    """Forget a brought network and its images; runs of it stay. Raises UnknownNameError, StorageError."""
    card = Zoo().card(model)
    folder = paths.own(card.id)
    if folder is None:
        raise ConfigError(f"{model} is a model of the zoo and is not removed here.")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise StorageError(f"{folder} could not be removed ({error.strerror}): remove it by hand.") from error


def suggested_config(card: Card) -> NPDConfig:
    """The settings to begin with: the project's steady ones, the budget grown with the image (rho = 3 at 32 pixels)."""
    return preset(card.dataset, size=card.image_size)


def _write(
    card: Card,
    spec: DatasetSpec,
    net: Normalized,
    pictures: Images,
    kept: NDArray[np.int64],
    held_out: NDArray[np.int64],
    triggered: Images | None,
) -> None:
    """The whole folder, or nothing."""
    with staged_folder(Zoo().folder(card.id)) as fresh:
        save_tensors(fresh / WEIGHTS, net.state_dict())
        for name, rows in ((FILES["train"], kept), (FILES["test"], held_out)):
            _write_images(fresh / name, pictures.images[rows], pictures.labels[rows], spec.classes)
        names = [WEIGHTS]
        if triggered is not None:
            _write_images(fresh / TRIGGERED, triggered.images, triggered.labels, spec.classes)
            names.append(TRIGGERED)
        write_text(fresh / OWN_SPEC, spec_text(spec))
        card = replace(card, files={name: sha256(fresh / name) for name in names})
        write_json(fresh / CARD, card.to_dict(), indent=2)


def _write_images(
    path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[str]
) -> None:
    """As PNG, which keeps every pixel."""

    def coded(image: NDArray[np.uint8]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, "PNG", compress_level=3)
        return file.getvalue()

    rows = (
        (f"{k}.png", coded(image), int(label))
        for k, (image, label) in enumerate(zip(images, labels, strict=True))
    )
    write_images(path, rows, classes)

"""Uploaded models on disk: a folder like those of the zoo, hidden among the runs, with its images.

    <runs>/.uploaded/uploaded-<16 hex digits>/model.safetensors   the weights as uploaded, in float32
                                              network.onnx        the graph, of an ONNX network
                                              card.json           what is known; ACC on the held-out images,
                                              no ASR data.json           facts about the images
                                              train.parquet       D_bn: the half that a defense may use
                                              test.parquet        the half held out, for measuring only
                                              triggered.parquet   triggered images, if some were uploaded
                                              findings.json       what the clean images tell

`Zoo.load`, `load_clean`, `load_dataset` and `run_defense` take an uploaded model by its id.
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
from torch import nn

from npd_core import paths
from npd_core.attacks import UNKNOWN
from npd_core.data.load import FILES
from npd_core.data.parquet import write_images
from npd_core.data.spec import UPLOAD_SPEC, Color, DatasetSpec, spec_text
from npd_core.errors import (
    CheckpointError,
    ConfigError,
    NPDError,
    StorageError,
    check_seed,
    first_line,
    unknown_name,
)
from npd_core.evaluation import predict
from npd_core.fileio import save_tensors, sha256, staged_folder, write_json, write_text
from npd_core.models import Normalized, quiet
from npd_core.models.onnx_graph import GRAPH, ONNX, network_from_onnx
from npd_core.uploads.checkpoint import read_checkpoints
from npd_core.uploads.guard import Bounded
from npd_core.uploads.images import Images, read_images
from npd_core.uploads.network import AUTO, MAX_CLASSES, Recognized, recognize_file, suggested_layer
from npd_core.uploads.preprocessing import (
    ADAPT,
    FINDINGS,
    Candidate,
    Findings,
    choose,
    cut_images,
    explore,
    name_of,
    permutation,
    swap_channels,
    target_warning,
    warnings,
)
from npd_core.zoo import Zoo
from npd_core.zoo.card import CARD, TRIGGERED, WEIGHTS, Card

MOST = 32
"""Uploaded models kept on this machine at a time."""
SIZES = (16, 256)
"""Smallest and largest height and width of images, in pixels."""
DEFAULT_SIZE = 32
"""Height and width of images in pixels where nobody says anything else."""
SPLIT = 0x6F776E
"""Part of the seed of the split into D_bn and held-out images."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Facts about an uploaded model that its files do not state."""

    arch: str = AUTO
    """As for `recognize`."""
    mean: Color = (0.0, 0.0, 0.0)
    std: Color = (1.0, 1.0, 1.0)
    """Normalization that the network was trained with, per channel, of pixels in [0, 1]."""
    image_size: int | None = None
    """Height and width in pixels; images of another size are resized. None: as the checkpoint states, else
    DEFAULT_SIZE."""
    target: int | None = None
    """The attacker's target class, given together with triggered images."""
    seed: int = 0
    """Of the split into D_bn and held-out images."""
    border: int = 0
    """Width that is cut off on each side of every image, in 32nds of the height."""
    bgr: bool = False
    """Whether the network takes its channels in the order blue, green, red."""
    adapt: str = "far"
    """Whether to prepare the images as the clean images suggest, see `preprocessing.ADAPT`."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                raise ConfigError(f"`{name}` must be three numbers, one per color channel, got {values!r}.")
        if min(self.std) <= 0:
            raise ConfigError(f"`std` must be above 0, got {self.std}.")
        if self.image_size is not None and not SIZES[0] <= self.image_size <= SIZES[1]:
            raise ConfigError(f"`image_size` must be {SIZES[0]} to {SIZES[1]} pixels, got {self.image_size}.")
        check_seed(self.seed)
        if not 0 <= self.border <= 8:
            raise ConfigError(f"`border` must be 0 to 8, in 32nds of the height, got {self.border}.")
        if self.adapt not in ADAPT:
            raise unknown_name("value of `adapt`", self.adapt, ADAPT)


def import_model(checkpoint: Path, clean: Path, settings: Settings, triggered: Path | None = None) -> Card:
    """Read a network and its images, check that they fit each other, and store them; return the new model's
    card.

    Args:
        checkpoint: as for `read_checkpoint`.
        clean: as for `read_images`; half of each class becomes D_bn, the other half is held out.
        triggered: triggered images in the same layout, in folders by their TRUE class; goes with
            `settings.target`.
    Raises:
        ConfigError, CheckpointError, StorageError, UnknownNameError: what cannot be used, with the remedy.
            Nothing is stored then.
    """
    folders = [
        path for root in (paths.uploads(), paths.runs() / ".own") if root.is_dir() for path in root.iterdir()
    ]
    if sum(paths.uploaded(path.name) is not None for path in folders) >= MOST:
        raise ConfigError(
            f"This machine keeps {MOST} uploaded models at most: remove one, or folders in {paths.uploads()}."
        )
    known, stated = _network(checkpoint, settings)
    target, size = settings.target, settings.image_size or stated or DEFAULT_SIZE
    if target is not None and not 0 <= target < known.num_classes:
        raise ConfigError(f"`target` must be a class, 0 to {known.num_classes - 1}, got {target}.")
    if (target is None) != (triggered is None):
        raise ConfigError(
            "Triggered images and `target`, the attacker's target class, go together: give both."
        )
    with torch.no_grad(), Bounded():
        layer = suggested_layer(known.net, known.arch, size)
        _check_logits(known, size)
    images = read_images(clean, size, known.num_classes)
    kept, held_out = split(images.labels, settings.seed)
    found, best = _understood(known.net, settings, size, images, kept)
    if best.size != size:
        size = best.size
        layer, images = (
            suggested_layer(known.net, known.arch, size),
            read_images(clean, size, known.num_classes),
        )
    images = images._replace(images=cut_images(images.images, best.border))
    with_trigger = None
    if triggered is not None:
        with_trigger = read_images(triggered, size, known.num_classes, images.classes)
        with_trigger = with_trigger._replace(images=cut_images(with_trigger.images, best.border))
    if best.bgr:
        swap_channels(known.net, size)
    net = Normalized(known.net, best.mean, best.std).eval().requires_grad_(False)
    model = f"uploaded-{secrets.token_hex(8)}"
    predicted = _classes(net, images.images[held_out]).numpy()
    findings = _findings(found, best, net, images, held_out, with_trigger, target)
    spec = DatasetSpec(
        id=model, title="Uploaded images", classes=images.classes, num_classes=known.num_classes, size=size,
        mean=best.mean, std=best.std, train_images=len(kept), test_images=len(held_out), flip=False,
        source="Uploaded by a visitor.",
    )  # fmt: skip
    card = Card(
        id=model, dataset=model, attack=UNKNOWN, poison_ratio=0.0,
        target="unknown" if target is None else f"class {target} ({images.classes[target]})",
        attack_params={} if target is None else {"target": target},
        arch=known.arch, width=known.width, num_classes=known.num_classes, image_size=size,
        mean=best.mean, std=best.std, recipe={"layer": layer}, seed=settings.seed,
        acc=float(np.mean(predicted == images.labels[held_out])), asr=None, ra=None, seconds=0.0,
        versions={"torch": torch.__version__},
    )  # fmt: skip
    graph = checkpoint if known.arch == ONNX else None
    _write(card, spec, net, images, kept, held_out, with_trigger, graph, findings)
    return Zoo().card(model)


def _network(checkpoint: Path, settings: Settings) -> tuple[Recognized, int | None]:
    """Return the network of a file, and the image size that the file states, if it does."""
    with checkpoint.open("rb") as file:
        start = file.read(9)
    if start[:1] == b"\x08" and start[8:] != b"{":  # the first field of ONNX; safetensors has its header at 8
        net = quiet(network_from_onnx(checkpoint)).eval().requires_grad_(False)
        return _onnx(net, settings.image_size or DEFAULT_SIZE), None
    known, found = recognize_file(read_checkpoints(checkpoint), settings.arch)
    stated = found.image_size
    return known, stated if stated is not None and SIZES[0] <= stated <= SIZES[1] else None


def _onnx(net: nn.Module, size: int) -> Recognized:
    """Count the classes of an ONNX network by running it on two blank images."""
    try:
        with torch.no_grad(), Bounded(2):
            logits = net(torch.zeros(2, 3, size, size))
    except NPDError:
        raise
    except Exception as error:  # whatever the operators of a stranger's graph raise
        raise CheckpointError(
            f"The ONNX network does not take 2 RGB images of {size} x {size} pixels ({first_line(error)}): "
            "choose another "
            "size, or export it with dynamic_axes={'x': [0]}."
        ) from error
    if (
        not isinstance(logits, torch.Tensor)
        or logits.ndim != 2
        or len(logits) != 2
        or logits.shape[1] > MAX_CLASSES
    ):
        raise CheckpointError(
            f"The ONNX network must return logits (B, K) with 2 to {MAX_CLASSES} classes: export a "
            "classifier."
        )
    return Recognized(ONNX, 0, int(logits.shape[1]), net)


def _check_logits(known: Recognized, size: int) -> None:
    """Raise CheckpointError if the network does not return one number for each class."""
    shape = tuple(known.net(torch.zeros(1, 3, size, size)).shape)
    if shape != (1, known.num_classes):
        raise CheckpointError(
            f"The network returns {shape} for one image, not (1, {known.num_classes}): choose another size "
            "or "
            "architecture."
        )


def _understood(
    net: nn.Module, settings: Settings, size: int, images: Images, kept: NDArray[np.int64]
) -> tuple[list[Candidate], Candidate]:
    """Return the ways to prepare images, measured on D_bn alone, and the one that is used."""
    mean, std = settings.mean, settings.std
    given = Candidate(mean, std, name_of(mean, std), size, settings.bgr, settings.border)
    clean = torch.from_numpy(images.images[kept]), torch.from_numpy(images.labels[kept])
    found = explore(net, given, *clean)
    return found, choose(found, given, settings.adapt)


def _classes(net: Normalized, images: NDArray[np.uint8]) -> torch.Tensor:
    return predict(net, torch.from_numpy(images), torch.device("cpu")).argmax(1)


def _findings(
    found: list[Candidate],
    best: Candidate,
    net: Normalized,
    images: Images,
    held_out: NDArray[np.int64],
    triggered: Images | None,
    target: int | None,
) -> Findings:
    """Say what is odd about the held-out images and the triggered ones."""
    labels, classes = torch.from_numpy(images.labels[held_out]), _classes(net, images.images[held_out])
    accuracy = float(classes.eq(labels).float().mean())
    numbering = permutation(labels, classes, len(images.classes))
    said = warnings(accuracy, numbering, images.classes, len(labels))
    if triggered is not None and target is not None:
        true = torch.from_numpy(triggered.labels)
        text = target_warning(_classes(net, triggered.images), true, target)
        said += [text] if text else []
    return Findings([one.to_dict() for one in found], best.to_dict(), said, images.turned)


def split(labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of D_bn and of the held-out images, ascending.

    Each class is halved; D_bn gets the odd image. Raises ConfigError when fewer than 4 images would be held
    out.
    """
    rng = np.random.default_rng([seed, SPLIT])
    kept, held_out = [], []
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        half = (len(of_class) + 1) // 2
        kept.append(of_class[:half])
        held_out.append(of_class[half:])
    first, second = np.sort(np.concatenate(kept)), np.sort(np.concatenate(held_out))
    if len(second) < 4:
        raise ConfigError(
            f"{len(labels)} clean images are too few to hold some out: upload at least two per class."
        )
    return first, second


def remove(model: str) -> None:
    """Delete an uploaded model and its images; its runs stay. Raises UnknownNameError, StorageError."""
    folder = paths.uploaded(Zoo().card(model).id)
    if folder is None:
        raise ConfigError(f"{model} is a model of the zoo and is not removed here.")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise StorageError(f"{folder} could not be removed ({error.strerror}): remove it by hand.") from error


def _write(
    card: Card,
    spec: DatasetSpec,
    net: Normalized,
    images: Images,
    kept: NDArray[np.int64],
    held_out: NDArray[np.int64],
    triggered: Images | None,
    graph: Path | None,
    findings: Findings,
) -> None:
    """Write the whole folder, or nothing. `graph` is the file of an ONNX network."""
    with staged_folder(Zoo().folder(card.id)) as fresh:
        save_tensors(fresh / WEIGHTS, net.state_dict())
        for name, rows in ((FILES["train"], kept), (FILES["test"], held_out)):
            _write_images(fresh / name, images.images[rows], images.labels[rows], spec.classes)
        names = [WEIGHTS]
        if graph is not None:
            shutil.copyfile(graph, fresh / GRAPH)
            names.append(GRAPH)
        if triggered is not None:
            _write_images(fresh / TRIGGERED, triggered.images, triggered.labels, spec.classes)
            names.append(TRIGGERED)
        write_json(fresh / FINDINGS, findings._asdict(), indent=2)
        write_text(fresh / UPLOAD_SPEC, spec_text(spec))
        card = replace(card, files={name: sha256(fresh / name) for name in names})
        write_json(fresh / CARD, card.to_dict(), indent=2)


def _write_images(
    path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[str]
) -> None:
    def png(image: NDArray[np.uint8]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, "PNG", compress_level=3)
        return file.getvalue()

    pairs = enumerate(zip(images, labels, strict=True))
    write_images(path, ((f"{k}.png", png(image), int(label)) for k, (image, label) in pairs), classes)

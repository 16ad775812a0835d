"""The public Python API: `import npd_core as npd`, then `npd.polarize(...)`.

Every function here is a thin layer over the module that does the work; the command line and the pages use the
same modules. `import npd_core` itself imports no torch; the functions do when they are first used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npd_core import evaluation
from npd_core.attacks import AllToOne, Attack
from npd_core.attacks import register as register_attack
from npd_core.attacks.poison import PoisonedTest, poison_test_set
from npd_core.attribution import attribute as _attribute
from npd_core.config.npd import NPDConfig, get_variant
from npd_core.config.presets import DEFAULT, preset_layer
from npd_core.config.presets import preset as _preset
from npd_core.data.clean import load_clean
from npd_core.data.load import ImageSet, load_dataset
from npd_core.defenses import register as register_defense
from npd_core.device import resolve_device
from npd_core.errors import ConfigError, TrainingError, unknown_name
from npd_core.events import EpochEnd, Event, Failed
from npd_core.exports.model_archive import WRITERS
from npd_core.fileio import write_bytes
from npd_core.metrics import Metrics
from npd_core.models import Normalized
from npd_core.polarizer.artifact import load_polarizer, read_description, save_polarizer
from npd_core.polarizer.fold import fold
from npd_core.polarizer.insertion import PolarizedNet, default_insertion_layer
from npd_core.polarizer.training import train_polarizer
from npd_core.zoo import Zoo
from npd_core.zoo.card import Card
from npd_core.zoo.weights import Backdoored

__all__ = [
    "Polarized",
    "attribute",
    "evaluate",
    "export",
    "list_models",
    "load_clean_images",
    "load_model",
    "load_polarized",
    "load_test_images",
    "polarize",
    "register_attack",
    "register_defense",
]


@dataclass(frozen=True)
class Polarized:
    """A network with a trained polarizer in it."""

    net: PolarizedNet
    """(B, 3, H, W) in [0, 1] -> (B, K) logits; in eval mode. Only `net.polarizer` was trained."""
    config: NPDConfig
    """Every setting of the training."""
    history: tuple[EpochEnd, ...]
    """One entry per epoch, the warm-up first (its epochs are negative): mean losses and seconds."""
    image_size: int
    """Height and width of the images."""

    @property
    def layer(self) -> str:
        """The insertion layer in its canonical spelling."""
        return self.net.layer

    @property
    def seconds(self) -> float:
        """Training time."""
        return self.history[-1].seconds if self.history else 0.0

    def save(self, folder: Path | str) -> Path:
        """Write polarizer.safetensors and polarizer.json into `folder`, for `load_polarized`, and return it.
        Raises StorageError."""
        notes = {"image_size": self.image_size, "torch": torch.__version__}
        save_polarizer(self.net, Path(folder), {"config": self.config.to_dict(), **notes})
        return Path(folder)


def list_models() -> list[Card]:
    """Return the cards of the backdoored models of the zoo: id, data set, attack, architecture, ACC, ASR.

    >>> import npd_core as npd
    >>> "signs-badnets_a2o-preact_resnet18-w16" in [card.id for card in npd.list_models()]
    True
    """
    return Zoo().cards()


def load_model(model: str) -> Backdoored:
    """Return a model of the zoo: `card`, `net` (images in [0, 1] -> logits, frozen, eval) and `attack`.

    Raises:
        UnknownNameError: no such model; the message names the nearest.
        CheckpointError: its files do not match its card.

    >>> import npd_core as npd
    >>> model = npd.load_model("signs-badnets_a2o-preact_resnet18-w16")
    >>> model.card.num_classes, model.attack.name
    (12, 'badnets_a2o')
    """
    return Zoo().load(model)


def load_clean_images(dataset: str, amount: float | int = 0.05, seed: int = 0) -> ImageSet:
    """Return the defender's clean images: a class-balanced part of the training split.

    Args:
        dataset: signs, cifar10, gtsrb or tiny_imagenet.
        amount: a share (float in (0, 1]) or a number of images (int).
        seed: chooses the images.
    Returns:
        `images`, (N, 3, H, W) uint8, and `labels`, (N,) int64.
    Raises:
        DataMissingError: the data set is not on this machine; the message says how to get it.

    >>> import npd_core as npd
    >>> npd.load_clean_images("signs", 120).images.shape
    torch.Size([120, 3, 32, 32])
    """
    found = load_clean(dataset, amount, seed)
    return ImageSet(found.images, found.labels)


def load_test_images(dataset: str, count: int | None = None) -> ImageSet:
    """Return test images, all or always the same random `count`. Result and errors as `load_clean_images`.

    >>> import npd_core as npd
    >>> npd.load_test_images("signs", 50).labels.shape
    torch.Size([50])
    """
    found = load_dataset(dataset, "test")
    return found if count is None else found.subset(evaluation.some(found.size, min(count, found.size)))


def polarize(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    layer: str | None = None,
    preset: str = DEFAULT,
    variant: str = "npd",
    target: int | None = None,
    dataset: str = "",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    device: str = "auto",
    on_event: Callable[[Event], None] | None = None,
    **settings: Any,
) -> Polarized:
    """Train a neural polarizer for any classifier on a few clean images (Algorithm 1 of the paper).

    `net` is copied and stays as it is. The settings are those of a preset; fields of NPDConfig override it.

    Args:
        net: classifier, (B, 3, H, W) in [0, 1] -> (B, K) logits, with at least one nn.Conv2d.
        images: clean images, (N, 3, S, S), uint8 or float in [0, 1]; at least 2.
        labels: their true classes, (N,) integers.
        layer: insertion layer: the name of a convolution (the polarizer sits before it), `after:NAME`, or for
            the project's ResNet `stream:BLOCK`; None: the preset's for a known architecture, else before the
            last but one convolution.
        preset: `default`, `paper`, `authors`, or one that fails on purpose.
        variant: npd, npd_tu, npd_tp, npd_uu or npd_up.
        target: target class of the attack, which npd_tu and npd_tp need.
        dataset: data set whose preset is used; "": the settings for unknown images of this size.
        mean, std: normalization applied to images in [0, 1] first, one number per channel, for a network
            that expects normalized images.
        device: auto, cpu or cuda.
        on_event: called with every event of the training, such as `EpochEnd`.
        settings: fields of NPDConfig, such as `epochs=5`, `rho=3.0` or `seed=1`.
    Returns:
        the polarized network with its config and history.
    Raises:
        UnknownNameError: no such layer, preset, variant or setting.
        ConfigError: a value out of its range, images or labels that cannot be used, or a network without
            convolutions.
        TrainingError: the training diverged; the message says how and what to change.

    >>> import npd_core as npd
    >>> model = npd.load_model("signs-badnets_a2o-preact_resnet18-w16")
    >>> clean = npd.load_clean_images("signs", 120)
    >>> brief = {"epochs": 1, "epoch_steps": 4}
    >>> repaired = npd.polarize(model.net, *clean, dataset="signs", layer=model.card.layer, **brief)
    >>> repaired.layer, len(repaired.history)
    ('stream:layer3.1', 2)
    """
    _check_images(images, labels)
    net, size = _normalized(net, mean, std), int(images.shape[-1])
    if images.shape[-2] != size:
        raise ConfigError(f"`images` must be square, got {images.shape[-2]} x {size}: crop or resize them.")
    config = _config(_preset(dataset, preset, variant=variant, size=size), settings)
    if get_variant(variant).target == "known" and target is None:
        raise ConfigError(f"`{variant}` needs `target`, the target class of the attack.")
    rule = None if target is None else AllToOne(target).target
    where = resolve_device(device)
    polarized = PolarizedNet(net, layer or _layer(net, preset, dataset, size), size).to(where)
    clean = _image_set(images, labels)
    _check_classes(labels, evaluation.predict(polarized, clean.images[:1], where).shape[1])
    history = []
    for event in train_polarizer(polarized, clean, config, where, variant=variant, target_rule=rule):
        if on_event is not None:
            on_event(event)
        if isinstance(event, EpochEnd):
            history.append(event)
        if isinstance(event, Failed):
            raise TrainingError(event.reason)
    return Polarized(polarized.eval(), config, tuple(history), size)


def load_polarized(
    folder: Path | str,
    net: nn.Module,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Polarized:
    """Insert a polarizer that `Polarized.save` wrote into the network it was trained for.

    Args:
        folder: polarizer.safetensors and polarizer.json.
        net, mean, std: as they were given to `polarize`.
    Returns:
        the polarized network; its logits equal those before saving up to float32
        rounding, and its history is empty.
    Raises:
        CheckpointError: files missing, changed, or made for another network.
        UnknownNameError: `net` has no such layer.

    >>> import tempfile, npd_core as npd
    >>> model = npd.load_model("signs-badnets_a2o-preact_resnet18-w16")
    >>> clean = npd.load_clean_images("signs", 60)
    >>> folder = npd.polarize(model.net, *clean, epochs=1, warmup_epochs=0).save(tempfile.mkdtemp())
    >>> npd.load_polarized(folder, model.net).layer
    'stream:layer4.0'
    """
    notes = read_description(Path(folder))
    size = int(notes.get("image_size", 32))
    polarized = load_polarizer(Path(folder), _normalized(net, mean, std), size=size)
    return Polarized(polarized, NPDConfig.from_dict(notes.get("config", {})), (), size)


def evaluate(net: nn.Module, images: Tensor, labels: Tensor, attack: Attack | None = None) -> Metrics:
    """Measure clean accuracy (ACC) and, with an attack, attack success rate (ASR) and robust accuracy (RA).

    Args:
        net: (B, 3, H, W) in [0, 1] -> (B, K) logits; its mode is restored.
        images: test images, (N, 3, H, W), uint8 or float in [0, 1].
        labels: their true classes, (N,) int64.
        attack: its trigger is applied to the images outside its target class, such as
            `load_model(...).attack`.
    Returns:
        fractions `acc`, `asr`, `ra`; the last two are NaN without an attack.
    Raises:
        ConfigError: images or labels that cannot be used.

    >>> import npd_core as npd
    >>> model = npd.load_model("signs-badnets_a2o-preact_resnet18-w16")
    >>> before = npd.evaluate(model.net, *npd.load_test_images("signs", 100), attack=model.attack)
    >>> before.acc > 0.95 and before.asr > 0.95
    True
    """
    _check_images(images, labels)
    clean = _image_set(images, labels)
    if attack is not None:
        return evaluation.evaluate(net, evaluation.TestSets(clean, poison_test_set(clean, attack)))
    nothing = labels[:0]
    none = PoisonedTest(images[:0], nothing, nothing, nothing)
    return evaluation.evaluate(net, evaluation.TestSets(clean, none))._replace(asr=math.nan, ra=math.nan)


def attribute(
    net: nn.Module, images: Tensor, target: Tensor | int, method: str = "integrated_gradients", **options: Any
) -> Tensor:
    """Return maps of the pixels that speak for (positive) and against (negative) a class, by Captum.

    Args:
        net: (B, 3, H, W) in [0, 1] -> (B, K) logits; not changed.
        images: (B, 3, H, W), uint8 or float in [0, 1].
        target: class to explain, one for all images or (B,) int64.
        method: integrated_gradients, saliency, gradient_shap, layer_gradcam or occlusion.
        options: `layer`, `steps`, `baseline`, `seed` of `npd_core.attribution.attribute`.
    Returns:
        (B, H, W) float32, in logits.
    Raises:
        UnknownNameError, ConfigError: as `npd_core.attribution.attribute`.

    >>> import npd_core as npd
    >>> model = npd.load_model("signs-badnets_a2o-preact_resnet18-w16")
    >>> npd.attribute(model.net, npd.load_test_images("signs", 2).images, target=0, method="saliency").shape
    torch.Size([2, 32, 32])
    """
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    return _attribute(net, x, target, method, **options)


def export(polarized: Polarized, path: Path | str, format: str = "pt2") -> Path:
    """Write the repaired network as one file of plain layers, the polarizer folded into its neighbor.

    The logits equal those of the polarized network up to rounding, for images of the same size.

    Args:
        polarized: result of `polarize`.
        path: file to write.
        format: pt2 (torch.export), onnx (needs `onnx` and `onnxscript`) or safetensors (weights alone).
    Returns:
        the path.
    Raises:
        UnknownNameError: no such format.
        ConfigError: the packages of the format are missing.
        StorageError: the file cannot be written.

    >>> import tempfile, npd_core as npd
    >>> model = npd.load_model("signs-badnets_a2o-preact_resnet18-w16")
    >>> clean = npd.load_clean_images("signs", 60)
    >>> repaired = npd.polarize(model.net, *clean, epochs=1, warmup_epochs=0)
    >>> path = npd.export(repaired, tempfile.mkdtemp() + "/repaired.safetensors", "safetensors")
    >>> path.stat().st_size > 1e6
    True
    """
    if format not in WRITERS:
        raise unknown_name("format", format, WRITERS)
    write_bytes(Path(path), WRITERS[format](fold(polarized.net).cpu(), polarized.image_size))
    return Path(path)


def _check_images(images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ConfigError(f"`images` must have the shape (N, 3, H, W), got {tuple(images.shape)}.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ConfigError(f"`images` must be uint8 or float in [0, 1], got {images.dtype}.")
    if images.is_floating_point() and not (images.min() >= 0 and images.max() <= 1):
        raise ConfigError(
            f"`images` must be in [0, 1], got {float(images.min()):.3g} to {float(images.max()):.3g}. "
            "Divide by 255, or undo the normalization and pass `mean` and `std` to `polarize`."
        )
    if labels.ndim != 1 or len(labels) != len(images):
        raise ConfigError(
            f"`labels` must be one class per image, (N,), got {tuple(labels.shape)} for {len(images)} images."
        )
    if labels.is_floating_point() or labels.min() < 0:
        raise ConfigError(f"`labels` must be integers from 0, got {labels.min().item()} ({labels.dtype}).")


def _image_set(images: Tensor, labels: Tensor) -> ImageSet:
    pixels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    return ImageSet(pixels.cpu(), labels.long().cpu())


def _normalized(net: nn.Module, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> nn.Module:
    if mean is None and std is None:
        return net
    mean, std = mean or (0.0,) * 3, std or (1.0,) * 3
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"`mean` and `std` must be three numbers each, `std` positive, got {mean}, {std}.")
    return Normalized(net, mean, std)


def _config(preset: NPDConfig, changes: dict[str, Any]) -> NPDConfig:
    values = preset.to_dict()
    for name in changes:
        if name not in values:
            raise unknown_name("setting", name, values)
    return NPDConfig.from_dict(values | changes)


def _check_classes(labels: Tensor, classes: int) -> None:
    if classes < 2:
        raise ConfigError(f"`net` must have at least 2 classes, got {classes}.")
    if int(labels.max()) >= classes:
        raise ConfigError(f"`labels` must be below {classes}, the classes of `net`, got {int(labels.max())}.")


def _layer(net: nn.Module, preset: str, dataset: str, size: int) -> str:
    """Return the insertion layer of the preset for an architecture of the project, else the suggested one."""
    plain = net.net if isinstance(net, Normalized) else net
    arch = {"PreActResNet18": "preact_resnet18", "VGG19BN": "vgg19_bn"}.get(type(plain).__name__, "")
    if arch:
        return preset_layer(preset, arch, dataset)
    if preset == "wrong_layer":
        raise ConfigError("`preset='wrong_layer'` needs `layer` for this network: name an early convolution.")
    return default_insertion_layer(net, size)

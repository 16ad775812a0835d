"""The architectures, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from npd_core.errors import unknown_name
from npd_core.models.normalized import Normalized
from npd_core.models.preact_resnet import PreActResNet18
from npd_core.models.vgg import VGG19BN

MODELS: dict[str, Callable[..., nn.Module]] = {"preact_resnet18": PreActResNet18, "vgg19_bn": VGG19BN}


def build_model(
    arch: str, num_classes: int, width: int, mean: Sequence[float] = (0.0,) * 3, std: Sequence[float] = (1.0,) * 3
) -> Normalized:
    """A freshly initialised classifier of [0, 1] pixels. Raises UnknownNameError for an architecture that is not in
    MODELS."""
    if arch not in MODELS:
        raise unknown_name("architecture", arch, MODELS)
    return Normalized(MODELS[arch](num_classes=num_classes, width=width), mean, std)


__all__ = ["MODELS", "VGG19BN", "Normalized", "PreActResNet18", "build_model"]

"""The architectures by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from npd_core.errors import unknown_name
from npd_core.models.normalized import Normalized
from npd_core.models.preact_resnet import PreActResNet18
from npd_core.models.vgg import VGG19BN

MODELS: dict[str, Callable[..., nn.Module]] = {"preact_resnet18": PreActResNet18, "vgg19_bn": VGG19BN}


TORCHVISION = "torchvision:"
"""Prefix of the names of torchvision's classifiers, for uploaded models. Their width is given as 0."""


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def torchvision_classifier(name: str, num_classes: int) -> nn.Module:
    """Build a classifier of torchvision with random weights. Raises UnknownNameError."""
    import torchvision

    if name not in torchvision_names():
        raise unknown_name("classifier of torchvision", name, torchvision_names())
    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **more)
    return net


def build_model(
    arch: str,
    num_classes: int,
    width: int,
    mean: Sequence[float] = (0.0,) * 3,
    std: Sequence[float] = (1.0,) * 3,
) -> Normalized:
    """Build a classifier of [0, 1] pixels with random weights.

    Args:
        arch: a name in MODELS, or that of a classifier of torchvision behind TORCHVISION.
    Raises:
        UnknownNameError: no such architecture.
    """
    if arch.startswith(TORCHVISION):
        return Normalized(torchvision_classifier(arch.removeprefix(TORCHVISION), num_classes), mean, std)
    if arch not in MODELS:
        raise unknown_name("architecture", arch, MODELS)
    return Normalized(MODELS[arch](num_classes=num_classes, width=width), mean, std)


def load_weights(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `state` into `net`. Raises RuntimeError when it does not fit exactly.

    Unlike `load_state_dict`, it keeps the version of each module, which mnasnet needs and a plain dictionary
    lacks.
    """
    known = net.state_dict()
    lacking = known.keys() - state.keys()
    if lacking:
        raise RuntimeError(f"{min(lacking)!r} is missing.")
    known.update(state)
    net.load_state_dict(known)


__all__ = [
    "MODELS",
    "TORCHVISION",
    "VGG19BN",
    "Normalized",
    "PreActResNet18",
    "build_model",
    "torchvision_classifier",
    "torchvision_names",
]

"""The architectures by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from npd_core.errors import ConfigError, unknown_name
from npd_core.models.chain import CHAIN, build_chain, chain_words, describe_chain
from npd_core.models.cifar_resnet import CIFAR_RESNETS
from npd_core.models.normalized import Normalized
from npd_core.models.preact_resnet import PreActResNet18
from npd_core.models.vgg import VGG19BN

MODELS: dict[str, Callable[..., nn.Module]] = {"preact_resnet18": PreActResNet18, "vgg19_bn": VGG19BN}
"""Those of the zoo."""
UPLOADED: dict[str, Callable[..., nn.Module]] = {**CIFAR_RESNETS}
"""More architectures with a width, for uploaded models alone."""

TORCHVISION = "torchvision:"
"""Prefix of the names of torchvision's classifiers, for uploaded models. Their width is given as 0."""


TIMM = "timm:"
"""Prefix of the names of timm's classifiers, where timm is installed."""
MAX_INNER = 512
"""Largest size in pixels to which a network resizes its images."""


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


def timm_classifier(name: str, num_classes: int, size: int | None = None) -> nn.Module:
    """Build a classifier of timm with random weights; nothing is downloaded.

    Args:
        size: height and width of the images, for architectures that are made for one size; None: their own.
    Raises:
        ConfigError: timm is not installed.
        UnknownNameError: it has no such classifier.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError("Networks of timm need the package timm: run `pip install timm`.") from error
    if ":" in name or "/" in name or not timm.is_model(name):
        raise unknown_name("classifier of timm", name, timm.list_models())
    more: dict[str, Any] = {} if size is None else {"img_size": size}
    try:
        net: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **more)
    except TypeError as error:
        raise ConfigError(f"timm's {name} is made for images of any size: leave out @{size}.") from error
    return net


def quiet(net: nn.Module) -> nn.Module:
    """Let no activation change its input, which may be a cached feature or be explained; returns `net`."""
    for module in net.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False  # type: ignore[assignment]
    return net


def _foreign(arch: str, num_classes: int) -> nn.Module:
    """Build a classifier of torchvision or timm; `@N` at the end of its name is a size in pixels."""
    name, _, number = arch.partition("@")
    size = int(number) if number.isdecimal() and len(number) < 4 else None
    if number and (size is None or not 16 <= size <= MAX_INNER):
        raise ConfigError(f"The size behind @ must be 16 to {MAX_INNER} pixels, got {number[:20]!r}.")
    if name.startswith(TIMM):
        return quiet(timm_classifier(name.removeprefix(TIMM), num_classes, size))
    net = torchvision_classifier(name.removeprefix(TORCHVISION), num_classes)
    return quiet(net if size is None else nn.Sequential(nn.Upsample((size, size), mode="bilinear"), net))


def build_model(
    arch: str,
    num_classes: int,
    width: int,
    mean: Sequence[float] = (0.0,) * 3,
    std: Sequence[float] = (1.0,) * 3,
) -> Normalized:
    """Build a classifier of [0, 1] pixels with random weights.

    Args:
        arch: a name in MODELS or UPLOADED, or that of a classifier of torchvision behind TORCHVISION or of
        timm behind
            TIMM, or a complete description of a chain behind CHAIN. `torchvision:NAME@N` resizes images to N
            x N
            pixels inside the network, `timm:NAME@N` is built for images of that size.
    Raises:
        UnknownNameError: no such architecture.
    """
    if arch.startswith((TORCHVISION, TIMM)):
        return Normalized(_foreign(arch, num_classes), mean, std)
    if arch.startswith(CHAIN):
        return Normalized(build_chain(arch), mean, std)
    known = MODELS | UPLOADED
    if arch not in known:
        raise unknown_name("architecture", arch, known)
    return Normalized(known[arch](num_classes=num_classes, width=width), mean, std)


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
    "CHAIN",
    "MODELS",
    "TIMM",
    "TORCHVISION",
    "UPLOADED",
    "VGG19BN",
    "Normalized",
    "PreActResNet18",
    "build_model",
    "chain_words",
    "describe_chain",
    "quiet",
    "timm_classifier",
    "torchvision_classifier",
    "torchvision_names",
]

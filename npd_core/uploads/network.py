"""Recognize the network of a state dict: architecture, width and number of classes, from names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from npd_core.config.presets import DEFAULT_LAYERS
from npd_core.errors import CheckpointError, NPDError, first_line, unknown_name
from npd_core.models import MODELS, TORCHVISION, build_model, torchvision_classifier, torchvision_names
from npd_core.polarizer.insertion import default_insertion_layer, insertion_layers

AUTO = "auto"


class Recognized(NamedTuple):
    """A network and what it is."""

    arch: str
    width: int
    """0 for torchvision's classifiers."""
    num_classes: int
    net: nn.Module
    """With the weights, for normalized images; in eval mode, frozen."""


def recognize(state: Mapping[str, Tensor], arch: str = AUTO) -> Recognized:
    """Build the network that all of the weights fit.

    Args:
        state: name -> weights, named as here, by BackdoorBench or by torchvision.
        arch: a name in MODELS, a classifier of torchvision (with or without `torchvision:`), or `auto`, which
            tries those in MODELS.
    Raises:
        UnknownNameError: no such architecture.
        CheckpointError: the weights fit no architecture, or not this one.
    """
    plain = arch.removeprefix(TORCHVISION)
    if arch == AUTO:
        tried = [name for name in MODELS if _looks_like(name, state)]
        if not tried:
            raise CheckpointError(
                f"The weights (first: {next(iter(state), 'none')!r}) belong to none of {', '.join(MODELS)}: "
                "choose their classifier of torchvision."
            )
        return _ours(tried[0], state)
    if arch in MODELS and (_looks_like(arch, state) or arch not in torchvision_names()):
        return _ours(arch, state)
    if plain in torchvision_names():
        return _torchvision(plain, state)
    raise unknown_name("architecture", plain, [*MODELS, *torchvision_names()])


def suggested_layer(net: nn.Module, arch: str, size: int) -> str:
    """Return the default insertion layer of the architecture, or `default_insertion_layer` where it has none.

    Raises CheckpointError when the network has no insertion layer, or does not accept images of this size.
    """
    try:
        layers = insertion_layers(net, size)
    except (RuntimeError, ValueError, AssertionError, TypeError, ArithmeticError) as error:
        raise CheckpointError(
            f"The network does not accept images of {size} x {size} pixels: choose another size. "
            f"({first_line(error)})"
        ) from error
    if not layers:
        raise CheckpointError("The network has no convolution: upload a convolutional network.")
    return DEFAULT_LAYERS.get(arch) or default_insertion_layer(net, size)


def _looks_like(arch: str, state: Mapping[str, Tensor]) -> bool:
    if arch == "preact_resnet18":
        return "conv1.weight" in state and "linear.weight" in state and "layer4.1.conv2.weight" in state
    heads = {name.rpartition(".")[0] for name in state if not name.startswith("features.")}
    return "features.49.weight" in state and "features.50.running_mean" in state and len(heads) == 1


def _ours(arch: str, state: Mapping[str, Tensor]) -> Recognized:
    names = {name: _our_name(arch, name) for name in state}
    renamed = {names[name]: value for name, value in state.items()}
    first = renamed.get("conv1.weight" if arch == "preact_resnet18" else "features.0.weight")
    head = renamed.get("linear.weight")
    if first is None or first.ndim != 4 or head is None or head.ndim != 2 or not len(head) or not len(first):
        raise CheckpointError(
            f"The weights do not fit {arch}, whose first or last layer is missing: choose another "
            "architecture."
        )
    width, num_classes = int(first.shape[0]), int(head.shape[0])
    _bounded(width, num_classes)
    net = build_model(arch, num_classes, width).net
    return Recognized(arch, width, num_classes, _filled(net, renamed, arch))


def _our_name(arch: str, name: str) -> str:
    """Translate names of other code: a shortcut that is a list of one, a head called classifier."""
    if arch == "preact_resnet18":
        return re.sub(r"\.shortcut\.0\.", ".shortcut.", name)
    return re.sub(r"^classifier\.(\d+\.)?", "linear.", name)


def _torchvision(name: str, state: Mapping[str, Tensor]) -> Recognized:
    """Build a classifier of torchvision; its head is the layer whose size depends on the number of
    classes."""
    odd = 977  # a number of classes that no other layer has as its number of channels
    expected = _shapes(name, odd)
    heads = [key for key, value in expected.items() if value.ndim and value.shape[0] == odd]
    found = {int(state[key].shape[0]) for key in heads if key in state and state[key].ndim}
    if len(found) != 1:
        raise CheckpointError(
            f"The weights do not fit torchvision's {name}, whose last layer is missing: choose another "
            "architecture."
        )
    num_classes = found.pop()
    _bounded(1, num_classes)
    _check(
        _shapes(name, num_classes), state, f"torchvision's {name}"
    )  # before memory is spent on a large network
    net = torchvision_classifier(name, num_classes)
    for module in net.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.Hardswish | nn.SiLU | nn.Hardsigmoid):
            module.inplace = False  # its input may be a cached feature
    return Recognized(TORCHVISION + name, 0, num_classes, _filled(net, state, f"torchvision's {name}"))


def _shapes(name: str, num_classes: int) -> Mapping[str, Tensor]:
    """Return the state of a classifier of torchvision without allocating it, where that is possible."""
    try:
        with torch.device("meta"):
            return torchvision_classifier(name, num_classes).state_dict()
    except NotImplementedError:  # regnet reads its weights while it is built
        return torchvision_classifier(name, num_classes).state_dict()


def _bounded(width: int, num_classes: int) -> None:
    if not 1 <= width <= 256 or not 2 <= num_classes <= 2000:
        raise CheckpointError(
            f"The network has width {width} and {num_classes} classes: upload one of width up to 256 with 2 "
            "to 2000 classes."
        )


def _check(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError if `state` differs from `expected` in names or shapes."""
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in expected]
    other = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    for problem, names in (("missing", missing), ("unexpected", extra), ("of another shape", other)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"The weights do not fit {what} ({problem}: {names[0]!r}{more}): choose another architecture."
            )


def _filled(net: nn.Module, state: Mapping[str, Tensor], what: str) -> nn.Module:
    full = net.state_dict()
    _check(full, state, what)
    try:
        full.update(state)  # this dictionary keeps the version of each module, which mnasnet needs
        net.load_state_dict(full)
    except (RuntimeError, NPDError) as error:
        raise CheckpointError(
            f"The weights do not fit {what} ({first_line(error)}): choose another architecture."
        ) from error
    return net.eval().requires_grad_(False)

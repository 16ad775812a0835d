"""Which network a state dict belongs to: its architecture, width and number of classes, told by names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from npd_core.config.npd import DEFAULT_LAYERS
from npd_core.errors import CheckpointError, NPDError, unknown_name
from npd_core.models import MODELS, TORCHVISION, build_model, torchvision_classifier, torchvision_names
from npd_core.polarizer.insertion import LayerInfo, default_insertion_layer, insertion_layers

AUTO = "auto"


class Recognised(NamedTuple):
    """A network and what it is."""

    arch: str
    width: int
    """0 for torchvision's classifiers."""
    num_classes: int
    net: nn.Module
    """With the weights, taking normalised images; eval, frozen."""


def recognise(state: Mapping[str, Tensor], arch: str = AUTO) -> Recognised:
    """The network that the weights fit, every one of them.

    Args:
        state: name -> weights; names of BackdoorBench and torchvision are understood.
        arch: a name in MODELS, that of one of torchvision's classifiers (with or without `torchvision:`), or `auto`,
            which tries those in MODELS.
    Raises:
        UnknownNameError: no such architecture.
        CheckpointError: the weights fit none, or not this one.
    """
    plain = arch.removeprefix(TORCHVISION)
    if arch == AUTO:
        tried = [name for name in MODELS if _looks_like(name, state)]
        if not tried:
            raise CheckpointError(
                f"The weights look like none of {', '.join(MODELS)} (first name: {next(iter(state), 'none')!r}): "
                "choose the torchvision classifier that they belong to."
            )
        return _ours(tried[0], state)
    if arch in MODELS and (_looks_like(arch, state) or arch not in torchvision_names()):
        return _ours(arch, state)
    if plain in torchvision_names():
        return _torchvision(plain, state)
    raise unknown_name("architecture", plain, [*MODELS, *torchvision_names()])


def suggested_layer(net: nn.Module, arch: str, size: int) -> str:
    """Return the default insertion layer of the architecture, or `default_insertion_layer` where it has none.

    Raises CheckpointError when the network has no convolution, or cannot take images of this size.
    """
    if arch in DEFAULT_LAYERS:
        return DEFAULT_LAYERS[arch]
    discover(net, size)
    return default_insertion_layer(net, size)


def discover(net: nn.Module, size: int) -> list[LayerInfo]:
    """The insertion points of the network for images of `size` pixels. Raises CheckpointError where it has none or
    refuses such images."""
    try:
        points = insertion_layers(net, size)
    except (RuntimeError, ValueError, AssertionError, TypeError, ArithmeticError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(
            f"The network cannot take images of {size} x {size} pixels ({reason}): choose the size it was trained with."
        ) from error
    if not points:
        raise CheckpointError(
            "The network has no convolution to put a polarizer before: bring a convolutional one."
        )
    return points


def _looks_like(arch: str, state: Mapping[str, Tensor]) -> bool:
    if arch == "preact_resnet18":
        return "conv1.weight" in state and "linear.weight" in state and "layer4.1.conv2.weight" in state
    heads = {name.rpartition(".")[0] for name in state if not name.startswith("features.")}
    return "features.49.weight" in state and "features.50.running_mean" in state and len(heads) == 1


def _ours(arch: str, state: Mapping[str, Tensor]) -> Recognised:
    names = {name: _our_name(arch, name) for name in state}
    renamed = {names[name]: value for name, value in state.items()}
    first = renamed.get("conv1.weight" if arch == "preact_resnet18" else "features.0.weight")
    head = renamed.get("linear.weight")
    if first is None or first.ndim != 4 or head is None or head.ndim != 2 or not len(head) or not len(first):
        raise CheckpointError(
            f"The weights do not fit {arch}, its first or its last layer is missing: choose another."
        )
    width, num_classes = int(first.shape[0]), int(head.shape[0])
    _bounded(width, num_classes)
    net = build_model(arch, num_classes, width).net
    return Recognised(arch, width, num_classes, _filled(net, renamed, arch))


def _our_name(arch: str, name: str) -> str:
    """Names of other code for the same weights: a shortcut that is a list of one, a head called classifier."""
    if arch == "preact_resnet18":
        return re.sub(r"\.shortcut\.0\.", ".shortcut.", name)
    return re.sub(r"^classifier\.(\d+\.)?", "linear.", name)


def _torchvision(name: str, state: Mapping[str, Tensor]) -> Recognised:
    """The number of classes is where the weights differ from those of the network for another number of classes."""
    odd = 977  # no layer of a classifier has so many channels
    expected = _shapes(name, odd)
    heads = [key for key, value in expected.items() if value.ndim and value.shape[0] == odd]
    found = {int(state[key].shape[0]) for key in heads if key in state and state[key].ndim}
    if len(found) != 1:
        raise CheckpointError(
            f"The weights do not fit torchvision's {name}, its last layer is missing: choose another."
        )
    num_classes = found.pop()
    _bounded(1, num_classes)
    _check(
        _shapes(name, num_classes), state, f"torchvision's {name}"
    )  # before a large network is made for nothing
    net = torchvision_classifier(name, num_classes)
    for module in net.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.Hardswish | nn.SiLU | nn.Hardsigmoid):
            module.inplace = False  # what it is given may be a cached feature
    return Recognised(TORCHVISION + name, 0, num_classes, _filled(net, state, f"torchvision's {name}"))


def _shapes(name: str, num_classes: int) -> Mapping[str, Tensor]:
    """The state of one of torchvision's classifiers without its numbers, where it can be had without them."""
    try:
        with torch.device("meta"):
            return torchvision_classifier(name, num_classes).state_dict()
    except NotImplementedError:  # regnet reads its numbers while it is built
        return torchvision_classifier(name, num_classes).state_dict()


def _bounded(width: int, num_classes: int) -> None:
    if not 1 <= width <= 256 or not 2 <= num_classes <= 2000:
        raise CheckpointError(
            f"Networks of width up to 256 for 2 to 2000 classes can be brought, this one has {width} and {num_classes}."
        )


def _check(own: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Raises CheckpointError where `state` has other names or shapes than `own`."""
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    other = [k for k in own if k in state and state[k].shape != own[k].shape]
    for reason, names in (("lacks", missing), ("has no place for", extra), ("has another shape of", other)):
        if names:
            who = "The checkpoint" if reason == "lacks" else what
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"The weights do not fit {what}: {who} {reason} {names[0]!r}{more}; choose the architecture it was "
                "trained as."
            )


def _filled(net: nn.Module, state: Mapping[str, Tensor], what: str) -> nn.Module:
    own = net.state_dict()
    _check(own, state, what)
    try:
        own.update(state)  # this dictionary knows the version of each module, which mnasnet asks for
        net.load_state_dict(own)
    except (RuntimeError, NPDError) as error:
        raise CheckpointError(
            f"The weights do not fit {what} ({str(error).splitlines()[0]}): choose another."
        ) from error
    return net.eval().requires_grad_(False)

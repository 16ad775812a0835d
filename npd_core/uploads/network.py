"""Recognize the network of a state dict: architecture, width and number of classes, from names and shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from npd_core.config.presets import DEFAULT_LAYERS
from npd_core.errors import CheckpointError, ConfigError, NPDError, first_line, unknown_name
from npd_core.models import (
    CHAIN,
    MODELS,
    TIMM,
    TORCHVISION,
    UPLOADED,
    build_model,
    chain_words,
    describe_chain,
    torchvision_names,
)
from npd_core.polarizer.insertion import default_insertion_layer, insertion_layers
from npd_core.uploads.checkpoint import Checkpoint

AUTO = "auto"
MAX_CLASSES = 2000
OTHERWISE = "export it as ONNX, describe a plain chain of layers, or repair it in Python with `npd.polarize`"
BENCH = {
    "preactresnet18": "preact_resnet18", "vgg19_bn": AUTO, "vgg19": AUTO,
    "efficientnet_b3": "torchvision:efficientnet_b3",
    "mobilenet_v3_large": "torchvision:mobilenet_v3_large", "densenet161": "torchvision:densenet161",
    "vit_b_16": "torchvision:vit_b_16@224", "convnext_tiny": "torchvision:convnext_tiny",
}  # fmt: skip
"""The networks of BackdoorBench by the name in its files. Its ViT resizes images to 224 x 224 itself."""
FAMILIES = (
    (r"^layer4\.\d+\.conv1", r"^(resnet|resnext|wide_resnet)"), (r"^features\.denseblock1", r"^densenet"),
    (r"^encoder\.layers\.encoder_layer_0", r"^vit_"), (r"^features\.1\.0\.(attn|norm1)", r"^swin"),
    (r"^features\.1\.(0\.)?(layer_scale|block\.0)", r"^(convnext|efficientnet|mobilenet_v3)"),
    (r"^features\.1\.conv\.0", r"^mobilenet_v2"), (r"^features\.\d+\.squeeze", r"^squeezenet"),
    (r"^features\.0\.weight", r"^(vgg|alexnet)"), (r"^layers\.8\.0\.layers", r"^mnasnet"),
    (r"^stage2\.0\.branch1", r"^shufflenet"), (r"^inception3a", r"^googlenet"), (r"^Mixed_5b", r"^inception"),
    (r"^blocks\.0\.layers", r"^maxvit"),
)  # fmt: skip
"""A name among the weights, and the classifiers of torchvision that have such a name. Not regnet, which can
be described
only by building it."""


class Identified(NamedTuple):
    """What a network is, from the shapes of its weights alone."""

    arch: str
    """A name for `build_model`."""
    width: int
    """0 where the architecture has none."""
    num_classes: int
    names: Mapping[str, str]
    """Name in the network -> name among the weights."""


class Recognized(NamedTuple):
    """A network and what it is."""

    arch: str
    width: int
    """0 where the architecture has none."""
    num_classes: int
    net: nn.Module
    """With the weights, for normalized images; in eval mode, frozen."""


def recognize(state: Mapping[str, Tensor], arch: str = AUTO) -> Recognized:
    """Build the network that all of the weights fit.

    Args:
        state: name -> weights, named as here, by BackdoorBench, by torchvision, or as the field names
        networks for
            small images.
        arch: a name for `build_model`, a classifier of torchvision without its prefix, the description of a
        chain
            behind `chain:`, or `auto`.
    Raises:
        UnknownNameError: no such architecture.
        CheckpointError: the weights fit no architecture, or not this one.
    """
    return _filled(identify(state, arch), state.__getitem__)


def recognize_file(found: list[Checkpoint], arch: str = AUTO) -> tuple[Recognized, Checkpoint]:
    """Build the network of the first set of weights in a file that fits; nothing is read before one fits.

    Args:
        found: the result of `read_checkpoints`.
        arch: as for `recognize`; `auto` also follows the name that the file states.
    """
    errors: list[NPDError] = []
    for checkpoint in found:
        for name in _wanted(checkpoint, arch):
            try:
                known = identify(checkpoint.shapes, name)
            except (CheckpointError, ConfigError) as error:
                errors.append(error)
                continue
            if checkpoint.num_classes not in (None, known.num_classes):
                errors.append(
                    CheckpointError(
                        f"The file states {checkpoint.num_classes} classes, but the last layer of its "
                        "weights has "
                        f"{known.num_classes}: upload the file as it was saved."
                    )
                )
                continue
            return _filled(known, checkpoint.read), checkpoint
    raise errors[0]


def _wanted(checkpoint: Checkpoint, arch: str) -> list[str]:
    """Return the architectures to try: the one asked for, or first what the file states."""
    if arch != AUTO or checkpoint.arch is None:
        return [arch]
    stated = checkpoint.arch.strip()[:100]
    if stated in BENCH:
        return list(dict.fromkeys((BENCH[stated], AUTO)))
    if stated in torchvision_names():
        return [AUTO, TORCHVISION + stated]
    return [AUTO, *([TIMM + stated] if re.fullmatch(r"[a-z0-9_.]+", stated) and _timm_has(stated) else [])]


def _timm_has(name: str) -> bool:
    try:
        import timm
    except ImportError:
        return False
    return bool(timm.is_model(name))


def identify(state: Mapping[str, Tensor], arch: str = AUTO) -> Identified:
    """Find the architecture that all of the weights fit, by names and shapes; their numbers are not needed.

    Arguments and errors as for `recognize`.
    """
    if arch == AUTO:
        return _automatic(state)
    if arch.startswith(CHAIN):
        text, names = describe_chain(arch, state)
        return _classified(text, 0, names, state)
    plain = arch.removeprefix(TORCHVISION)
    if arch in MODELS and (_looks_like(arch, state) or arch not in torchvision_names()):
        return _ours(arch, state)
    if arch in UPLOADED:
        return _sized(arch, state)
    if plain.partition("@")[0] in torchvision_names():
        return _foreign(TORCHVISION + plain, state)
    if arch.startswith(TIMM):
        return _foreign(arch, state)
    raise unknown_name("architecture", plain, [*MODELS, *UPLOADED, *torchvision_names()])


def _automatic(state: Mapping[str, Tensor]) -> Identified:
    """Try every architecture that has a name of these weights; the first error of a near miss is the one
    shown."""
    tried = [name for name in MODELS if _looks_like(name, state)]
    finders: list[Callable[[], Identified]] = [lambda name=name: _ours(name, state) for name in tried]  # type: ignore[misc]
    sized = _sized_name(state)
    if sized is not None:
        finders.append(lambda: _sized(sized, state))
    chain = _vgg(state)
    if chain is not None:
        finders.append(lambda: identify(state, chain))
    errors: list[NPDError] = []
    for find in finders:
        try:
            return find()
        except NPDError as error:
            errors.append(error)
    for name in _candidates(state):
        try:
            return _foreign(TORCHVISION + name, state)
        except CheckpointError:
            continue
    if errors:
        raise errors[0]
    _one_channel(state)
    raise CheckpointError(
        f"The weights (first: {next(iter(state), 'none')[:60]!r}, {len(state)} in all) belong to none of the "
        "architectures that are recognized "
        f"({', '.join([*MODELS, 'CIFAR ResNets, WideResNet, VGG, torchvision'])}): "
        f"choose the architecture, or {OTHERWISE}{_layers(state)}."
    )


def _layers(state: Mapping[str, Tensor]) -> str:
    """Say which layers a description would have, for weights of a plain chain."""
    kinds = chain_words(state)
    return f" (`chain:` and {', '.join(kinds)}, with activations and pooling between them)" if kinds else ""


def _one_channel(state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for a network of gray images."""
    first = next((value for value in state.values() if value.ndim == 4), None)
    if first is not None and first.shape[1] == 1:
        raise CheckpointError(
            "The network takes gray images of one channel, which is not supported: upload a network of RGB "
            "images."
        )


def _candidates(state: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the classifiers of torchvision that share a name with the weights."""
    for mark, family in FAMILIES:
        if any(re.search(mark, name) for name in state):
            yield from (name for name in torchvision_names() if re.search(family, name))


def suggested_layer(net: nn.Module, arch: str, size: int) -> str:
    """Return the default insertion layer of the architecture, or `default_insertion_layer` where it has none.

    Raises CheckpointError when the network has no insertion layer, or does not accept images of this size.
    """
    try:
        layers = insertion_layers(net, size)
    except (RuntimeError, ValueError, AssertionError, TypeError, ArithmeticError, LookupError) as error:
        raise CheckpointError(
            f"The network does not accept images of {size} x {size} pixels: choose another size. "
            f"({first_line(error)})"
        ) from error
    if not layers:
        raise CheckpointError("The network has no convolution: upload a convolutional network.")
    return DEFAULT_LAYERS.get(arch) or default_insertion_layer(net, size)


def _looks_like(arch: str, state: Mapping[str, Tensor]) -> bool:
    if arch == "preact_resnet18":
        known = "conv1.weight" in state and "linear.weight" in state and "layer4.1.conv2.weight" in state
        return known and "bn1.weight" not in state
    heads = {name.rpartition(".")[0] for name in state if not name.startswith("features.")}
    return "features.49.weight" in state and "features.50.running_mean" in state and len(heads) == 1


def _ours(arch: str, state: Mapping[str, Tensor]) -> Identified:
    names = {_our_name(arch, name): name for name in state}
    first = state.get(names.get("conv1.weight" if arch == "preact_resnet18" else "features.0.weight", ""))
    return _by_width(arch, first, names, state)


def _by_width(
    arch: str,
    first: Tensor | None,
    names: Mapping[str, str],
    state: Mapping[str, Tensor],
    head: str = "linear",
) -> Identified:
    """Identify an architecture whose width is the number of channels of its first convolution."""
    last = state.get(names.get(f"{head}.weight", ""))
    if first is None or first.ndim != 4 or last is None or last.ndim != 2 or not len(last) or not len(first):
        raise CheckpointError(
            f"The weights do not fit {arch}, whose first or last layer is missing: choose another "
            "architecture."
        )
    if first.shape[1] == 1:
        _one_channel({"first": first})
    return _classified(arch, int(first.shape[0]), names, state, int(last.shape[0]))


def _classified(
    arch: str,
    width: int,
    names: Mapping[str, str],
    state: Mapping[str, Tensor],
    num_classes: int | None = None,
) -> Identified:
    """Check that every weight of the architecture is there in its shape. Allocates nothing."""
    if num_classes is None:
        last = [value for value in state.values() if value.ndim == 2]
        num_classes = int(last[-1].shape[0]) if last else 0
    _bounded(width, num_classes)
    expected = _shapes(arch, num_classes, width)
    _check(expected, {name: state[of] for name, of in names.items()}, arch)
    return Identified(arch, width, num_classes, dict(names))


def _our_name(arch: str, name: str) -> str:
    """Translate names of other code: a shortcut that is a list of one, a head called classifier."""
    if arch == "preact_resnet18":
        return re.sub(r"\.shortcut\.0\.", ".shortcut.", name)
    return re.sub(r"^classifier\.(\d+\.)?", "linear.", name)


def _sized_name(state: Mapping[str, Tensor]) -> str | None:
    """Return the residual network for small images that has blocks of these names, if one does."""
    first = state.get("conv1.weight")
    if first is None or first.shape[2:] != (3, 3):
        return None
    blocks = [len({n.split(".")[1] for n in state if n.startswith(f"layer{k}.")}) for k in range(1, 5)]
    wide = len({n.split(".")[2] for n in state if n.startswith("block1.layer.")})
    if wide:
        return next((name for name in UPLOADED if name == f"wide_resnet{6 * wide + 4}"), None)
    if "layer1.0.conv1.weight" not in state:
        return None
    deep = "layer1.0.conv3.weight" in state
    known: dict[tuple[object, ...], str] = {
        (2, 2, 2, 2, False): "cifar_resnet18", (3, 4, 6, 3, False): "cifar_resnet34",
        (3, 4, 6, 3, True): "cifar_resnet50", (3, 4, 23, 3, True): "cifar_resnet101",
    }  # fmt: skip
    if not blocks[3] and blocks[0] == blocks[1] == blocks[2] and not deep:
        option = "_b" if any(re.search(r"\.(shortcut|downsample)\.", name) for name in state) else ""
        name = f"resnet{6 * blocks[0] + 2}{option}"
        return name if name in UPLOADED else None
    return known.get((*blocks, deep))


def _sized(arch: str, state: Mapping[str, Tensor]) -> Identified:
    wide = arch.startswith("wide_resnet")
    head = "fc" if wide else "linear"
    names = {}
    for name in state:
        plain = re.sub(r"\.downsample\.", ".shortcut.", name)
        names[plain if wide else re.sub(r"^(fc|classifier)\.", "linear.", plain)] = name
    first = state.get("block1.layer.0.conv1.weight" if wide else "conv1.weight")
    known = _by_width(arch, first, names, state, head) if not wide else None
    if known is not None:
        return known
    last = state.get("fc.weight")
    if first is None or last is None or first.ndim != 4 or first.shape[0] % 16 or last.ndim != 2:
        raise CheckpointError(
            f"The weights do not fit {arch}, whose first or last layer is missing: {OTHERWISE}."
        )
    return _classified(arch, int(first.shape[0]) // 16, names, state, int(last.shape[0]))


def _vgg(state: Mapping[str, Tensor]) -> str | None:
    """Describe a VGG for small images: the gaps in the numbers of its convolutions are ReLU and pooling."""
    numbers = sorted({int(n.split(".")[1]) for n in state if re.match(r"features\.\d+\.weight", n)})
    heads = [value for name, value in state.items() if not name.startswith("features.") and value.ndim == 2]
    if len(numbers) < 8 or not heads:
        return None
    words, at = [], 0
    for number in numbers:
        weight = state[f"features.{number}.weight"]
        if weight.ndim == 4:
            gap = number - at
            words += ["relu"] * (number > 0) + (["maxpool 2"] if gap == 2 else [])
            if gap > 2 or weight.shape[2:] != (3, 3):
                return None
            words.append("conv")
        else:
            words.append("bn")
        at = number + 1
    pools = words.count("maxpool 2")
    if pools != 4 or heads[0].shape[1] > 1024:
        return None
    words += ["relu", "maxpool 2", "globalpool", "flatten"]
    words += ["linear, relu"] * (len(heads) - 1) + ["linear"]
    return CHAIN + ", ".join(words)


def _foreign(arch: str, state: Mapping[str, Tensor]) -> Identified:
    """Identify a classifier of torchvision or timm; its head is the layer whose size depends on the number of
    classes."""
    odd = 977  # a number of classes that no other layer has as its number of channels
    inner = "1." if "@" in arch and arch.startswith(TORCHVISION) else ""
    expected = _shapes(arch, odd, 0)
    heads = [key for key, value in expected.items() if value.ndim and value.shape[0] == odd]
    found = {
        int(state[key.removeprefix(inner)].shape[0]) for key in heads if (key.removeprefix(inner)) in state
    }
    if len(found) != 1:
        raise CheckpointError(
            f"The weights do not fit {arch}, whose last layer is missing: choose another architecture."
        )
    num_classes = found.pop()
    _bounded(1, num_classes)
    names = {inner + name: name for name in state}
    _check(_shapes(arch, num_classes, 0), {name: state[of] for name, of in names.items()}, arch)
    return Identified(arch, 0, num_classes, names)


def _shapes(arch: str, num_classes: int, width: int) -> Mapping[str, Tensor]:
    """Return the state of a network without allocating it, where that is possible."""
    try:
        with torch.device("meta"):
            return build_model(arch, num_classes, width).net.state_dict()
    except (NotImplementedError, RuntimeError):  # regnet reads its weights while it is built
        return build_model(arch, num_classes, width).net.state_dict()


def _bounded(width: int, num_classes: int) -> None:
    if not 0 <= width <= 256 or not 2 <= num_classes <= MAX_CLASSES:
        raise CheckpointError(
            f"The network has width {width} and {num_classes} classes: upload one of width up to 256 with 2 "
            f"to {MAX_CLASSES} classes."
        )


def _check(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError if `state` differs from `expected` in names or shapes."""
    what = what if len(what) < 80 else "the description"
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in expected]
    other = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    for problem, names in (("missing", missing), ("unexpected", extra), ("of another shape", other)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"The weights do not fit {what} ({problem}: {names[0][:80]!r}{more}): choose another "
                "architecture, or "
                f"{OTHERWISE}."
            )


def _filled(known: Identified, read: Callable[[str], Tensor]) -> Recognized:
    """Build the network and move the weights into it one by one."""
    net = build_model(known.arch, known.num_classes, known.width).net
    full = net.state_dict()  # views of the network, and the versions of its modules, which mnasnet needs
    with torch.no_grad():
        for name, of in known.names.items():
            full[name].copy_(read(of))
    net.load_state_dict(full)
    return Recognized(known.arch, known.width, known.num_classes, net.eval().requires_grad_(False))

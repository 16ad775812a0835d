"""A plain chain of layers, described by a line of text. The text is read word by word and never executed.

    conv pad 0, relu, avgpool 2, conv pad 0, relu, avgpool 2, flatten, linear, relu, linear

Channels, kernels and biases need not be given for weights that exist: `describe_chain` takes them from their
shapes and
returns the complete description, which `build_chain` turns into a network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from npd_core.errors import CheckpointError, ConfigError, unknown_name

CHAIN = "chain:"
"""Prefix of the names of such networks."""
MAX_TEXT = 20_000
MAX_LAYERS = 400
MAX_SIZE = 1024
"""Largest kernel, stride or padding."""
MAX_CHANNELS = 100_000

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "elu": nn.ELU, "leakyrelu": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU,
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
}  # fmt: skip
LEFT_OUT = ("dropout", "softmax", "logsoftmax", "identity")
"""Without effect on the predicted class, at the place where they stand."""
WEIGHTED = ("conv", "bn", "linear")
WORDS = (*WEIGHTED, *ACTIVATIONS, "maxpool", "avgpool", "globalpool", "flatten", *LEFT_OUT)
OPTIONS = {
    "conv": ("in", "out", "kernel", "stride", "pad", "groups", "bias"),
    "bn": ("out",), "linear": ("in", "out", "bias"),
    "maxpool": ("kernel", "stride", "pad"), "avgpool": ("kernel", "stride", "pad"),
}  # fmt: skip


class Layer(NamedTuple):
    """One word with its numbers."""

    word: str
    options: dict[str, int]

    def __str__(self) -> str:
        return " ".join([self.word, *(f"{name} {value}" for name, value in self.options.items())])


def parse_chain(text: str) -> list[Layer]:
    """Read a description. Raises ConfigError or UnknownNameError: a word or number that has no meaning
    here."""
    text = text.strip().removeprefix(CHAIN)
    if len(text) > MAX_TEXT:
        raise ConfigError(f"The description has {len(text)} characters, at most {MAX_TEXT} are read.")
    layers = []
    for part in re.split(r"[,;\n]+", text.lower()):
        words = part.split()
        if not words:
            continue
        word, rest = words[0], words[1:]
        if word not in WORDS:
            raise unknown_name("layer", word[:40], WORDS)
        known = OPTIONS.get(word, ())
        if len(rest) % 2 and word in ("maxpool", "avgpool"):
            rest = ["kernel", *rest]
        options = {}
        for name, value in zip(rest[::2], [*rest[1::2], ""], strict=False):
            if name not in known:
                raise unknown_name(f"option of {word}", name[:40], known)
            high = MAX_CHANNELS if name in ("in", "out", "groups") else MAX_SIZE
            if not re.fullmatch(r"\d{1,6}", value) or int(value) > high:
                raise ConfigError(f"`{word} {name}` takes a whole number up to {high}, got {value[:20]!r}.")
            options[name] = int(value)
        layers.append(Layer(word, options))
    if not layers or len(layers) > MAX_LAYERS:
        raise ConfigError(f"A description has 1 to {MAX_LAYERS} layers, got {len(layers)}.")
    return layers


def describe_chain(text: str, state: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
    """Complete a description by the shapes of the weights, which are taken in the order of the file.

    Returns:
        The complete description, and for each name of the network to build the name in `state`.
    Raises:
        CheckpointError: the weights are not those of these layers.
        ConfigError, UnknownNameError: as for `parse_chain`.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        module, _, last = name.rpartition(".")
        groups.setdefault(module, {})[last] = value
    waiting = [(module, held) for module, held in groups.items() if "weight" in held]
    layers = [layer for layer in parse_chain(text) if layer.word not in LEFT_OUT]
    found = [_kind(held) for _, held in waiting]
    wanted = [layer.word for layer in layers if layer.word in WEIGHTED]
    if found != wanted:
        raise CheckpointError(
            f"The weights are those of {_short(found)}, but the description has {_short(wanted)}: describe "
            "the layers "
            "in their order."
        )
    complete: list[Layer] = []
    names: dict[str, str] = {}
    flat = False
    for layer in layers:
        if layer.word == "linear" and not flat:
            if not complete or complete[-1].word != "flatten":
                complete.append(Layer("flatten", {}))
            flat = True
        if layer.word in WEIGHTED:
            module, held = waiting.pop(0)
            names |= {f"{len(complete)}.{last}": f"{module}.{last}".lstrip(".") for last in held}
            layer = _completed(layer, held)
        complete.append(layer)
    return CHAIN + ", ".join(map(str, complete)), names


def chain_words(state: Mapping[str, Tensor]) -> list[str]:
    """Return the layers that have these weights, in the order of the file; [] if one is none of a chain's or
    there are
    more than 30."""
    modules = {name.rpartition(".")[0]: value for name, value in state.items() if name.endswith("weight")}
    kinds = [{4: "conv", 2: "linear", 1: "bn"}.get(value.ndim, "") for value in modules.values()]
    return kinds if all(kinds) and len(kinds) <= 30 else []


def _kind(held: Mapping[str, Tensor]) -> str:
    return {4: "conv", 2: "linear", 1: "bn"}.get(held["weight"].ndim, "other")


def _short(words: list[str]) -> str:
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")


def _completed(layer: Layer, held: Mapping[str, Tensor]) -> Layer:
    """Fill in what the weights of a layer say."""
    shape = tuple(held["weight"].shape)
    if layer.word == "bn":
        return Layer("bn", {"out": shape[0]})
    if layer.word == "linear":
        return Layer("linear", {"in": shape[1], "out": shape[0], "bias": int("bias" in held)})
    groups = layer.options.get("groups", 1)
    kernel = shape[2]
    return Layer(
        "conv",
        {
            "in": shape[1] * groups, "out": shape[0], "kernel": kernel,
            "stride": layer.options.get("stride", 1),
            "pad": layer.options.get("pad", kernel // 2), "groups": groups, "bias": int("bias" in held),
        },
    )  # fmt: skip


def build_chain(text: str) -> nn.Module:
    """Build the network of a complete description, with random weights.

    Raises ConfigError: a number that a layer needs is missing.
    """
    layers = parse_chain(text)
    try:
        net = nn.Sequential(*[_module(layer) for layer in layers])
    except KeyError as error:
        raise ConfigError(f"The description of the chain lacks {error.args[0]!r} in one layer.") from error
    except ValueError as error:
        raise ConfigError(f"The description of the chain does not fit together ({error}).") from error
    return net


def _module(layer: Layer) -> nn.Module:
    given = layer.options
    if layer.word in ACTIVATIONS:
        return ACTIVATIONS[layer.word]()
    if layer.word == "conv":
        return nn.Conv2d(
            given["in"], given["out"], given["kernel"], given["stride"], given["pad"], groups=given["groups"],
            bias=bool(given["bias"]),
        )  # fmt: skip
    if layer.word == "bn":
        return nn.BatchNorm2d(given["out"])
    if layer.word == "linear":
        return nn.Linear(given["in"], given["out"], bool(given["bias"]))
    if layer.word in ("maxpool", "avgpool"):
        kind = nn.MaxPool2d if layer.word == "maxpool" else nn.AvgPool2d
        return kind(given["kernel"], given.get("stride", given["kernel"]), given.get("pad", 0))
    return nn.AdaptiveAvgPool2d(1) if layer.word == "globalpool" else nn.Flatten()

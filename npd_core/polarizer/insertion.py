"""Where a polarizer can be put, and the frozen network with one put there."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from npd_core.errors import unknown_name
from npd_core.models.normalized import Normalized
from npd_core.polarizer.layer import NeuralPolarizer

KINDS = ("before", "after", "stream")


@dataclass(frozen=True, order=True)
class InsertionLayer:
    """A place between two maps of the network. Its text is the module path of a convolution, meaning just before it;
    `after:` means just after it; `stream:` means the residual stream before a block, which filters the shortcut too."""

    module: str
    kind: str = "before"

    def __str__(self) -> str:
        return self.module if self.kind == "before" else f"{self.kind}:{self.module}"

    @classmethod
    def parse(cls, text: str) -> InsertionLayer:
        """`layer4.1.conv1`, `before:layer4.1.conv1`, `after:layer4.1.conv1` or `stream:layer4.1`."""
        kind, _, module = text.rpartition(":")
        return cls(module.strip(), kind.strip() or "before")


@dataclass(frozen=True)
class LayerInfo:
    """An insertion point with the shape of the features there."""

    layer: InsertionLayer
    channels: int
    height: int
    width: int

    @property
    def name(self) -> str:
        return str(self.layer)

    @property
    def stage(self) -> str:
        """First word of the module path: `conv1`, `layer4`."""
        return re.split(r"\.", self.layer.module)[0]


def insertion_layers(net: nn.Module, size: int = 32) -> list[LayerInfo]:
    """Every place that a network offers: before and after each convolution, and before each residual block.

    Found by running the network once on a blank image, so the order is that of the forward pass. (On the CPU: the meta
    device would do, but its BatchNorm imports torch's compiler, which takes seconds.)

    Args:
        net: classifier, (1, 3, size, size) -> logits; a Normalized one is looked into, so that names are the plain
            ones.
        size: height and width of the images.
    """
    plain = copy.deepcopy(net.net if isinstance(net, Normalized) else net).cpu().eval()
    found: list[LayerInfo] = []
    streams = set(getattr(plain, "blocks", ()))

    def note(module: str, kind: str, features: Tensor) -> None:
        _, channels, height, width = features.shape
        found.append(LayerInfo(InsertionLayer(module, kind), channels, height, width))

    for name, module in plain.named_modules():
        if name in streams:
            module.register_forward_pre_hook(lambda _m, args, name=name: note(name, "stream", args[0]))
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _m, args, name=name: note(name, "before", args[0]))
            module.register_forward_hook(lambda _m, _args, out, name=name: note(name, "after", out))
    with torch.no_grad():
        plain(torch.zeros(1, 3, size, size))
    return found


def find_layer(net: nn.Module, layer: str, size: int = 32) -> LayerInfo:
    """The point called `layer`. Raises UnknownNameError, with the nearest valid name, when the network has no such
    point."""
    points = insertion_layers(net, size)
    wanted = str(InsertionLayer.parse(layer))
    for info in points:
        if info.name == wanted:
            return info
    raise unknown_name("layer", layer, [info.name for info in points])


class Inserted(nn.Module):
    """A module of the network together with the polarizer in front of it, or behind it."""

    def __init__(self, module: nn.Module, polarizer: NeuralPolarizer, behind: bool):
        super().__init__()
        self.module = module
        self.polarizer = polarizer
        self.behind = behind
        self.active = True

    def forward(self, features: Tensor) -> Tensor:
        if not self.active:
            out: Tensor = self.module(features)
        elif self.behind:
            out = self.polarizer(self.module(features))
        else:
            out = self.module(self.polarizer(features))
        return out


class PolarizedNet(nn.Module):
    """f_hat_theta: a frozen copy of a backdoored network with one neural polarizer in it. Only the polarizer can train.

    Args:
        backdoored: f_w; it is copied and never changed.
        layer: name of an insertion point.
        size: height and width of the images.
    Raises:
        UnknownNameError: the network has no such point.
    """

    def __init__(self, backdoored: Normalized, layer: str, size: int = 32):
        super().__init__()
        info = find_layer(backdoored, layer, size)
        self.info = info
        self.layer = info.name
        self.net = copy.deepcopy(backdoored).requires_grad_(False)
        self.polarizer = NeuralPolarizer(info.channels).to(next(backdoored.parameters()).device)
        path = f"net.{info.layer.module}"
        inserted = Inserted(self.net.get_submodule(path), self.polarizer, info.layer.kind == "after")
        self.net.set_submodule(path, inserted)
        self._inserted = [inserted]
        segments = list(getattr(self.net.net, "segments", ()))
        inside = [i for i, name in enumerate(segments) if f"{info.layer.module}.".startswith(f"{name}.")]
        self._split = inside[0] if inside else 0
        self._segments = segments if inside else []
        self.eval()

    def train(self, mode: bool = True) -> PolarizedNet:
        """Only the polarizer ever leaves eval mode: the statistics of the frozen part cannot drift."""
        super().train(False)
        self.polarizer.train(mode)
        return self

    def prefix(self, x: Tensor) -> Tensor:
        """The frozen part in front: (B, 3, H, W) in [0, 1] -> what the segment with the polarizer is given."""
        h = self.net.normalise(x)
        for name in self._segments[: self._split]:
            h = self.net.net.get_submodule(name)(h)
        return h

    def suffix(self, h: Tensor) -> Tensor:
        """The rest, polarizer included: output of `prefix` -> (B, K) logits."""
        if not self._segments:
            logits: Tensor = self.net.net(h)
            return logits
        for name in self._segments[self._split :]:
            h = self.net.net.get_submodule(name)(h)
        logits = self.net.net.head(h)  # type: ignore[operator]
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K) logits."""
        return self.suffix(self.prefix(x))

    @contextmanager
    def removed(self) -> Iterator[PolarizedNet]:
        """Within this context the network is f_w again: the polarizer is passed by."""
        self._inserted[0].active = False
        try:
            yield self
        finally:
            self._inserted[0].active = True

    def features(self, h: Tensor) -> Tensor:
        """What the polarizer itself is given, from the output of `prefix`: (B, C, h, w)."""
        caught: list[Tensor] = []
        handle = self.polarizer.register_forward_pre_hook(lambda _m, args: caught.append(args[0]))
        try:
            self.suffix(h)
        finally:
            handle.remove()
        return caught[0]

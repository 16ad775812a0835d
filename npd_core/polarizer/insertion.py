"""Where a polarizer can be inserted, and the frozen network with one inserted."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from npd_core.errors import ConfigError, unknown_name
from npd_core.models.normalized import Normalized, as_normalized
from npd_core.polarizer.layer import NeuralPolarizer
from npd_core.polarizer.paths import Passage, Split, find_split, trace

KINDS = ("before", "after", "stream")
LISTS = (nn.Sequential, nn.ModuleList)
"""Modules whose members are looked at as residual blocks."""

ImageSize = int | tuple[int, int, int]
"""Height and width of square RGB images in pixels, or (channels, height, width)."""


@dataclass(frozen=True, order=True)
class InsertionLayer:
    """Where a polarizer is inserted. As text it is the module path of a convolution, which means in front of
    it; `after:` means behind it; `stream:` means the residual stream in front of a block, shortcut
    included."""

    module: str
    kind: str = "before"

    def __str__(self) -> str:
        return self.module if self.kind == "before" else f"{self.kind}:{self.module}"

    @classmethod
    def parse(cls, text: str) -> InsertionLayer:
        """Read `layer4.1.conv1`, `before:layer4.1.conv1`, `after:layer4.1.conv1` or `stream:layer4.1`."""
        kind, _, module = text.rpartition(":")
        return cls(module.strip(), kind.strip() or "before")


@dataclass(frozen=True)
class LayerInfo:
    """An insertion layer with the shape of the features there."""

    layer: InsertionLayer
    channels: int
    height: int
    width: int
    """Of N tokens, height is N and width is 1."""
    tokens: bool = False
    """Whether the channels are the last axis, as in (B, N, C) or (B, h, w, C)."""
    every_path: bool = True
    """Whether every path from the images to the logits passes here; not so in one of parallel branches."""
    pixels: bool = False
    """Whether the features are the pixels themselves."""

    @property
    def name(self) -> str:
        return str(self.layer)

    @property
    def stage(self) -> str:
        """First part of the module path: `conv1`, `layer4`."""
        return self.layer.module.partition(".")[0]


def insertion_layers(net: nn.Module, size: ImageSize = 32) -> list[LayerInfo]:
    """List every insertion layer of a network: before and after each nn.Conv2d and each nn.Linear over
    tokens, and before each residual block.

    They are found by running the network once on a blank image, so the order is that of the forward pass. (On
    the CPU: BatchNorm on the meta device imports torch's compiler, which takes seconds.)

    Args:
        net: classifier, images (B, C, H, W) -> logits (B, K). Module paths inside a Normalized one are those
            of the network that it holds.
    Raises:
        ConfigError: the network returns something else than logits.
    """
    plain = _plain_copy(net)
    passages, logits = trace(plain, _blank(size))
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"The network must map images (B, C, H, W) to logits (B, K), but it returns {shape}."
        )
    modules = dict(plain.named_modules())
    found: list[LayerInfo] = []
    for passage in passages:
        if _is_layer(modules[passage.module], passage):
            first = not found and passage.side == "before"
            tokens = isinstance(modules[passage.module], nn.Linear)
            found.append(_info(InsertionLayer(passage.module, passage.side), passage, tokens, first))
    return _with_streams(plain, passages, found)


def _plain_copy(net: nn.Module) -> nn.Module:
    """Return a frozen copy of the network without its normalization, on the CPU."""
    plain = copy.deepcopy(net.net if isinstance(net, Normalized) else net)
    return plain.cpu().eval().requires_grad_(False)


def _is_layer(module: nn.Module, passage: Passage) -> bool:
    if isinstance(module, nn.Linear):
        return len(passage.shape) in (3, 4)
    return isinstance(module, nn.Conv2d) and len(passage.shape) == 4


def _info(layer: InsertionLayer, passage: Passage, tokens: bool, pixels: bool) -> LayerInfo:
    sizes = passage.shape[1:]
    if tokens:
        channels, (height, width) = sizes[-1], (*sizes[:-1], 1)[:2]
    else:
        channels, height, width = sizes
    return LayerInfo(layer, channels, height, width, tokens, passage.every_path, pixels)


def _with_streams(plain: nn.Module, passages: list[Passage], layers: list[LayerInfo]) -> list[LayerInfo]:
    """Add the layers in front of residual blocks: those that the network names, else the members of a list of
    modules that every path passes while some layer inside lies on a branch."""
    own = hasattr(plain, "segments")
    named = set(plain.blocks) if own and hasattr(plain, "blocks") else set()  # type: ignore[arg-type]
    inside = {(info.layer.module, info.layer.kind): info for info in layers}
    found = []
    for passage in passages:
        listed = inside.get((passage.module, passage.side))
        if listed is not None:
            found.append(listed)
        elif passage.side == "before" and len(passage.shape) in (3, 4):
            within = [i for i in layers if i.layer.module.startswith(f"{passage.module}.")]
            member = isinstance(plain.get_submodule(passage.module.rpartition(".")[0]), LISTS)
            branched = not own and member and passage.every_path and not all(i.every_path for i in within)
            if within and not within[0].pixels and (passage.module in named or branched):
                layer = InsertionLayer(passage.module, "stream")
                found.append(_info(layer, passage, within[0].tokens, False))
    return found


def find_layer(net: nn.Module, layer: str, size: ImageSize = 32) -> LayerInfo:
    """Return the insertion layer called `layer`. Raises UnknownNameError, with the nearest valid name."""
    layers = {info.name: info for info in insertion_layers(net, size)}
    name = str(InsertionLayer.parse(layer))
    if name not in layers:
        raise unknown_name("layer", layer, layers)
    return layers[name]


def default_insertion_layer(net: nn.Module, size: ImageSize = 32) -> str:
    """Suggest an insertion layer for an unknown network: before the last but one convolution with a kernel
    larger than 1x1, or linear layer over tokens where there are no three such convolutions; and where that
    lies on a branch, the last layer in front of it that every path passes. Never the pixels. For both
    architectures of the paper this is its own choice (Sec. 4.1), branch or not.

    Raises:
        ConfigError: the network has no nn.Conv2d and no tokens, or returns something else than logits.
    """
    plain = net.net if isinstance(net, Normalized) else net
    layers = insertion_layers(net, size)
    before = [info for info in layers if info.layer.kind == "before"]
    if not before:
        raise ConfigError(
            "The network has no `nn.Conv2d` and no `nn.Linear` over tokens to insert a polarizer at."
        )
    later = before[1:] or before
    kernels = {name: m.kernel_size for name, m in plain.named_modules() if isinstance(m, nn.Conv2d)}
    wide = [info for info in later if max(kernels.get(info.layer.module, (0,))) > 1]
    if len(wide) < 2:
        wide = [info for info in later if info.tokens or info in wide]
    chosen = (wide[-2:] or later)[0]
    if hasattr(plain, "segments"):
        return chosen.name
    passed = [info for info in layers if info.every_path and not info.pixels]
    at = layers.index(chosen)
    return ([info for info in passed if layers.index(info) <= at][-1:] or passed or [chosen])[0].name


def _blank(size: ImageSize) -> Tensor:
    return torch.zeros(1, *((3, size, size) if isinstance(size, int) else size))


@torch.no_grad()
def _takes_channels_last(net: nn.Module, size: ImageSize) -> bool:
    """Whether the network runs in the faster memory format; `Tensor.view` between layers can forbid it."""
    trial = copy.deepcopy(net).cpu().eval().to(memory_format=torch.channels_last)
    try:
        trial(_blank(size).contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True


class Inserted(nn.Module):
    """A module of the network with the polarizer in front of it, or behind it."""

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
    """f_hat_theta: a frozen copy of a backdoored network with one neural polarizer in it. Only the polarizer
    can train.

    Args:
        backdoored: f_w, any classifier that maps images (B, C, H, W) in [0, 1] to logits (B, K), such as
            a Normalized. It is copied and never changed.
        layer: name of an insertion layer.
        size: of the images.
    Raises:
        UnknownNameError: the network has no such layer.
        ConfigError: the network returns something else than logits.
    """

    def __init__(self, backdoored: nn.Module, layer: str, size: ImageSize = 32):
        super().__init__()
        info = find_layer(backdoored, layer, size)
        self.info = info
        self.layer = info.name
        self.net = as_normalized(copy.deepcopy(backdoored)).requires_grad_(False)
        segments = list(getattr(self.net.net, "segments", ()))
        self.net.channels_last = bool(segments) or _takes_channels_last(self.net.net, size)
        if info.tokens:  # features of three axes know no memory format
            self.net.channels_last = False
        self.polarizer = NeuralPolarizer(info.channels, info.tokens).to(next(backdoored.parameters()).device)
        path = f"net.{info.layer.module}"
        inserted = Inserted(self.net.get_submodule(path), self.polarizer, info.layer.kind == "after")
        self.net.set_submodule(path, inserted)
        self._inserted = [inserted]
        inside = [i for i, name in enumerate(segments) if f"{info.layer.module}.".startswith(f"{name}.")]
        self._split = inside[0] if inside else 0
        self._segments = segments if inside else []
        self.eval()
        self._cut = None if inside else self._find_cut(backdoored, size)

    def _find_cut(self, backdoored: nn.Module, size: ImageSize) -> Split | None:
        """Return where a network without `segments` can be resumed: at the last module up to the layer that
        every path passes; None where there is none behind the pixels, or the check fails."""
        blank = _blank(size)
        passages, _ = trace(_plain_copy(backdoored), blank)
        end = [(p.module, p.side) for p in passages].index((self.info.layer.module, "before"))
        cuts = [passage for passage in passages[1 : end + 1] if passage.every_path]
        channels, height, width = blank.shape[1:]
        return find_split(self.net.net, cuts, (channels, height, width))

    def train(self, mode: bool = True) -> PolarizedNet:
        """Set the mode of the polarizer alone, so that the statistics of the frozen part cannot drift."""
        super().train(False)
        self.polarizer.train(mode)
        return self

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of images and features."""
        return self.net.memory_format

    def prefix(self, x: Tensor) -> Tensor:
        """Run the frozen part in front: (B, C, H, W) in [0, 1] -> input of the segment with the polarizer. A
        network without `segments` is cut where every path passes, or it is one segment."""
        h = self.net.normalize(x)
        if self._cut is not None:
            return self._cut.prefix(self.net.net, h)
        for name in self._segments[: self._split]:
            h = self.net.net.get_submodule(name)(h)
        return h

    def suffix(self, h: Tensor) -> Tensor:
        """Run the rest, polarizer included: output of `prefix` -> (B, K) logits."""
        if not self._segments:
            net = self.net.net
            logits: Tensor = net(h) if self._cut is None else self._cut.suffix(net, h)
            return logits
        for name in self._segments[self._split :]:
            h = self.net.net.get_submodule(name)(h)
        logits = self.net.net.head(h)  # type: ignore[operator]
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K) logits."""
        if self._segments:
            return self.suffix(self.prefix(x))
        logits: Tensor = self.net(x)
        return logits

    @contextmanager
    def removed(self) -> Iterator[PolarizedNet]:
        """Within this context the network is f_w: the polarizer is skipped."""
        self._inserted[0].active = False
        try:
            yield self
        finally:
            self._inserted[0].active = True

    def features(self, h: Tensor) -> Tensor:
        """Return the input of the polarizer, (B, C, h, w), for an output of `prefix`."""
        caught: list[Tensor] = []
        handle = self.polarizer.register_forward_pre_hook(lambda _m, args: caught.append(args[0]))
        try:
            self.suffix(h)
        finally:
            handle.remove()
        return caught[0]

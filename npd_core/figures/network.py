"""The plan of a network for its drawing: stages, blocks, convolutions and insertion layers. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from npd_core.errors import unknown_name
from npd_core.figures.tables import percent
from npd_core.names import METRICS

KINDS = {
    "before": "just before a convolution (as in the paper)",
    "after": "just after a convolution",
    "stream": "on the residual stream, before a block: the shortcut is filtered too",
}
"""Kinds of insertion layer, with the text shown for each."""


@dataclass(frozen=True)
class Conv:
    """One convolution: `name` is its module path, `size` the side of its input map in pixels."""

    name: str
    channels_in: int
    channels_out: int
    size: int
    stride: int = 1


@dataclass(frozen=True)
class Block:
    """A pre-activation residual block: two convolutions, and one on the shortcut where the shape changes."""

    name: str
    convs: tuple[Conv, ...]
    shortcut: Conv | None


@dataclass(frozen=True)
class Stage:
    """A row of equal resolution: residual blocks, or plain convolutions where there is no shortcut."""

    name: str
    channels: int
    size: int
    blocks: tuple[Block, ...] = ()
    plain: tuple[Conv, ...] = ()
    """Convolutions in a chain, followed by 2x2 max pooling."""


@dataclass(frozen=True)
class Plan:
    """The whole network, in forward order."""

    arch: str
    stem: Conv | None
    """The convolution before the first stage; None: the first stage takes the image."""
    stages: tuple[Stage, ...]
    classes: int

    def convs(self) -> list[Conv]:
        """Return all convolutions; within a block the two main ones, then the shortcut."""
        found = [self.stem] if self.stem else []
        for stage in self.stages:
            found += stage.plain
            for block in stage.blocks:
                found += [*block.convs, *([block.shortcut] if block.shortcut else [])]
        return found

    def layers(self) -> list[str]:
        """Return every insertion layer in canonical spelling: before and after convolutions, before
        blocks."""
        names = [conv.name for conv in self.convs()]
        blocks = [block.name for stage in self.stages for block in stage.blocks]
        return [*names, *(f"after:{name}" for name in names), *(f"stream:{name}" for name in blocks)]

    def forward(self) -> list[str]:
        """Return every insertion layer in forward order; a shortcut follows the two convolutions of its
        block."""
        places = {conv.name: number for number, conv in enumerate(self.convs())}
        for stage in self.stages:
            places |= {block.name: places[block.convs[0].name] for block in stage.blocks}
        kinds = ("stream", "before", "after")

        def place(layer: str) -> tuple[int, int]:
            kind, module = kind_of(layer)
            return places[module], kinds.index(kind)

        return sorted(self.layers(), key=place)

    def kinds(self) -> dict[str, str]:
        """Return the KINDS of this network; without blocks there is no residual stream."""
        blocks = any(stage.blocks for stage in self.stages)
        return {kind: words for kind, words in KINDS.items() if blocks or kind != "stream"}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for the drawing."""
        return asdict(self)


def plan(arch: str, width: int, image_size: int, num_classes: int) -> Plan:
    """Return the plan of an architecture. Raises UnknownNameError where there is no drawing.

    Args:
        width: channels of the first stage.
        image_size: side of the input in pixels.
    """
    if arch not in PLANS:
        raise unknown_name("architecture", arch, PLANS)
    return PLANS[arch](width, image_size, num_classes)


def _preact_resnet18(width: int, image_size: int, num_classes: int) -> Plan:
    stages, channels, size = [], width, image_size
    for number in range(4):
        out, blocks = width * 2**number, []
        for position in range(2):
            stride = 2 if number > 0 and position == 0 else 1
            name = f"layer{number + 1}.{position}"
            inner = size // stride
            convs = (
                Conv(f"{name}.conv1", channels, out, size, stride),
                Conv(f"{name}.conv2", out, out, inner),
            )
            changed = stride != 1 or channels != out
            shortcut = Conv(f"{name}.shortcut", channels, out, inner) if changed else None
            blocks.append(Block(name, convs, shortcut))
            channels, size = out, inner
        stages.append(Stage(f"layer{number + 1}", out, size, tuple(blocks)))
    return Plan("preact_resnet18", Conv("conv1", 3, width, image_size), tuple(stages), num_classes)


def _vgg19_bn(width: int, image_size: int, num_classes: int) -> Plan:
    stages, channels, size, place = [], 3, image_size, 0
    for number, (multiple, count) in enumerate(((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))):
        out, plain = width * multiple, []
        for _ in range(count):
            plain.append(Conv(f"features.{place}", channels, out, size))
            channels, place = out, place + 3  # convolution, BatchNorm, ReLU
        stages.append(Stage(f"stage {number + 1}", out, size, plain=tuple(plain)))
        size, place = size // 2, place + 1  # max pooling
    return Plan("vgg19_bn", None, tuple(stages), num_classes)


PLANS: dict[str, Callable[[int, int, int], Plan]] = {
    "preact_resnet18": _preact_resnet18,
    "vgg19_bn": _vgg19_bn,
}
"""Width, image size and number of classes -> plan, by architecture."""


def kind_of(layer: str) -> tuple[str, str]:
    """Return kind and module path of an insertion layer: "after:layer1.0.conv1" -> ("after",
    "layer1.0.conv1")."""
    kind, colon, module = layer.partition(":")
    return (kind, module) if colon else ("before", layer)


def describe(layer: str) -> str:
    """Return an insertion layer in words, for the page and for screen readers."""
    kind, module = kind_of(layer)
    return {"before": "before", "after": "after", "stream": "residual stream before"}.get(
        kind, kind
    ) + f" {module}"


SCALES: dict[str, tuple[float | None, float]] = {
    "acc": (None, 1.0),
    "asr": (0.0, 1.0),
    "ra": (0.0, 1.0),
    "der": (0.5, 1.0),
}
"""Ends of the color scale of each metric. None: the least value rounded down to 10%, as ACC varies little."""


@dataclass(frozen=True)
class Tint:
    """Colors of a drawing by a metric."""

    metric: str
    """A name in METRICS."""
    low: float
    """Value without color."""
    high: float
    """Value of full color."""
    values: Mapping[str, float]
    """Insertion layer -> fraction."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for the drawing: texts, and the share of color of each layer, in [0,
        1]."""
        span = self.high - self.low
        return {
            "metric": self.metric,
            "title": METRICS[self.metric].full,
            "low": percent(self.low),
            "high": percent(self.high),
            "points": {
                layer: {
                    "share": min(1.0, max(0.0, (value - self.low) / span)),
                    "short": percent(value) if value < 0.0995 else f"{value:.0%}",
                    "words": f"{self.metric.upper()} {percent(value)}",
                }
                for layer, value in self.values.items()
            },
        }


def tint(metric: str, values: Mapping[str, float]) -> Tint | None:
    """Return the colors of measured layers; None when there are none. Raises UnknownNameError.

    Args:
        values: insertion layer -> fraction in [0, 1].
    """
    if metric not in SCALES:
        raise unknown_name("metric", metric, SCALES)
    if not values:
        return None
    low, high = SCALES[metric]
    if low is None:
        low = max(0.0, min(0.9, math.floor(min(values.values()) * 10) / 10))
    return Tint(metric, low, high, dict(values))

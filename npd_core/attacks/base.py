"""What an attack is: a trigger that changes images, and a rule for the label that the attacker wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from npd_core.errors import unknown_name

Trigger = Callable[[Tensor], Tensor]
"""(B, 3, H, W) float32 in [0, 1] -> poisoned images of the same shape and range."""

QUANTIZE = ("floor", "round", "none")


class TargetRule(Protocol):
    """Which label the attacker wants, and for which images a success means anything."""

    def target(self, y: Tensor) -> Tensor:
        """True labels (B,) int64 -> wanted labels (B,) int64."""

    def eligible(self, y: Tensor) -> Tensor:
        """True labels (B,) -> bool (B,): False where the true label already is the target."""


@dataclass(frozen=True)
class AllToOne:
    """Every poisoned image becomes class `label`."""

    label: int = 0

    def target(self, y: Tensor) -> Tensor:
        return torch.full_like(y, self.label)

    def eligible(self, y: Tensor) -> Tensor:
        return y != self.label


def quantize(x: Tensor, how: str = "floor") -> Tensor:
    """Images as an 8-bit file would hold them.

    Args:
        x: (B, 3, H, W) in [0, 1].
        how: `floor` cuts off (what casting to uint8 does), `round` takes the nearest. `floor` forgives 1e-4 of a step,
            so that pixels which already are eight-bit numbers survive their way through float32.
    Returns:
        uint8, the same shape.
    """
    if how not in ("floor", "round"):
        raise unknown_name("quantization", how, ("floor", "round"))
    scaled = x.clamp(0, 1) * 255
    return (scaled.round() if how == "round" else (scaled + 1e-4).floor()).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Attack:
    """A trigger and a target rule under the field's name for the two."""

    name: str
    trigger: Trigger
    rule: TargetRule
    quantize: str = "floor"
    params: Mapping[str, Any] = field(default_factory=dict)
    """What `get_attack` needs to build the same attack again; goes into the model's card."""

    def apply(self, images: Tensor) -> Tensor:
        """Stamp the trigger: (B, 3, H, W) uint8 -> poisoned images as they would be stored, uint8."""
        return quantize(self.trigger(images.float() / 255), self.quantize)


@dataclass(frozen=True)
class AttackInfo:
    """What a visitor is told about an attack."""

    title: str
    sentence: str
    source: str

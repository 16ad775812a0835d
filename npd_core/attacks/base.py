"""What an attack is: a trigger that changes images, and a rule for the label that the attacker wants."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from npd_core.data.load import ImageSet
from npd_core.data.spec import DatasetSpec
from npd_core.errors import unknown_name
from npd_core.events import Event

Trigger = Callable[[Tensor], Tensor]
"""(B, 3, H, W) float32 in [0, 1] -> poisoned images of the same shape and range."""

AT_ONCE = 500
"""Images that a trigger is given at a time, so that one made by a network needs little memory."""


class TargetRule(Protocol):
    """Which label the attacker wants, and for which images a success means anything."""

    def target(self, y: Tensor) -> Tensor:
        """True labels (B,) int64 -> wanted labels (B,) int64."""

    def eligible(self, y: Tensor) -> Tensor:
        """True labels (B,) -> bool (B,): False where the true label already is the target."""

    def describe(self, classes: Sequence[str]) -> str:
        """The target in words, for the model's card; `classes` are the names of the classes."""


@dataclass(frozen=True)
class AllToOne:
    """Every poisoned image becomes class `label`."""

    label: int = 0

    def target(self, y: Tensor) -> Tensor:
        return torch.full_like(y, self.label)

    def eligible(self, y: Tensor) -> Tensor:
        return y != self.label

    def describe(self, classes: Sequence[str]) -> str:
        return f"class {self.label} ({classes[self.label]})"


@dataclass(frozen=True)
class AllToAll:
    """Every poisoned image becomes the class after its own, the last one class 0."""

    num_classes: int

    def target(self, y: Tensor) -> Tensor:
        return (y + 1) % self.num_classes

    def eligible(self, y: Tensor) -> Tensor:
        return torch.ones_like(y, dtype=torch.bool)

    def describe(self, classes: Sequence[str]) -> str:
        return "the class after their own"


@dataclass(frozen=True)
class NoTarget:
    """Nothing is wanted and no image counts: the rule of a network that is not backdoored."""

    def target(self, y: Tensor) -> Tensor:
        return y

    def eligible(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y, dtype=torch.bool)

    def describe(self, classes: Sequence[str]) -> str:
        return "none"


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
    assets: Mapping[str, Tensor] = field(default_factory=dict)
    """What the trigger is made of (a pattern, a field, weights), on the CPU; `get_attack` needs it too. Goes into the
    model's folder."""
    train_mode: str = "static"
    """`static`: the training set is poisoned once; `dynamic`: every batch is, inside the training loop."""
    carried: ImageSet | None = None
    """Images that carry the trigger already, with their true labels, where the trigger itself is not known."""
    cross: Trigger | None = None
    """A dynamic attack's disturbance that must change no label: a noisy warp, the trigger of another image."""

    def apply(self, images: Tensor) -> Tensor:
        """Stamp the trigger: (B, 3, H, W) uint8 -> poisoned images as they would be stored, uint8."""
        return self._stored(images, self.trigger)

    def apply_cross(self, images: Tensor) -> Tensor:
        """The same with `cross`. An attack without one leaves the images as they are."""
        return images if self.cross is None else self._stored(images, self.cross)

    @torch.no_grad()
    def _stored(self, images: Tensor, change: Trigger) -> Tensor:
        return torch.cat(
            [quantize(change(part.float() / 255), self.quantize) for part in images.split(AT_ONCE)]
        )


class Stamped(NamedTuple):
    """What a dynamic trigger makes of the attacked part of a training batch."""

    attacked: Tensor
    """(n, 3, H, W) in [0, 1]: with their own trigger."""
    crossed: Tensor
    """(m, 3, H, W) in [0, 1]: with a disturbance that must change no label."""
    loss: Tensor | None = None
    """What the trigger itself wants to be small, beside the classifier's loss."""


class DynamicTrigger(Protocol):
    """A trigger inside the training loop; it may learn there."""

    cross_ratio: int
    """Cross-trigger images for each triggered one."""

    def __init__(self, attack: Attack, dataset: DatasetSpec, device: torch.device) -> None:
        """Begin with the trigger of `attack`, for images of `dataset` on `device`."""

    def stamp(self, x: Tensor, x_cross: Tensor, images: Tensor, generator: torch.Generator) -> Stamped:
        """Attack one part of a batch and disturb another one.

        Args:
            x: to be attacked, (n, 3, H, W) in [0, 1].
            x_cross: to be disturbed, (m, 3, H, W) in [0, 1].
            images: the whole training set, (N, 3, H, W) uint8 on the same device, where others are to be drawn.
            generator: on the CPU; the only source of chance.
        """

    def step(self, rate: float) -> None:
        """Learn from the gradients of the batch, if there is anything to learn.

        Args:
            rate: what to multiply the trigger's own learning rate with, in (0, 1].
        """

    def state_dict(self) -> dict[str, Any]:
        """All that an interrupted training needs to go on to the same result."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""

    def attack(self) -> Attack:
        """The attack as it stands now, to be measured and saved."""


Making = Generator[Event, None, Attack]
"""How a trigger is made that takes time: a generator of a training's events, whose value is the attack."""


def made(making: Making) -> Attack:
    """The attack at the end of its making, for callers who do not watch."""
    while True:
        try:
            next(making)
        except StopIteration as end:
            attack: Attack = end.value
            return attack

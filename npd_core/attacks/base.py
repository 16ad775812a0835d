"""An attack: a trigger that changes images, and a rule that gives the target labels."""

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
"""(B, 3, H, W) float32 in [0, 1] -> triggered images of the same shape and range."""

AT_ONCE = 500
"""Images that a trigger gets at a time, to limit the memory of triggers made by a network."""


class TargetRule(Protocol):
    """The target label of each image, and the images on which the attack is measured."""

    def target(self, y: Tensor) -> Tensor:
        """True labels (B,) int64 -> target labels (B,) int64."""

    def eligible(self, y: Tensor) -> Tensor:
        """True labels (B,) -> bool (B,): False where the true label is the target already."""

    def describe(self, classes: Sequence[str]) -> str:
        """Describe the target for the model's card; `classes` are the class names."""


@dataclass(frozen=True)
class AllToOne:
    """The target of every image is class `label`."""

    label: int = 0

    def target(self, y: Tensor) -> Tensor:
        return torch.full_like(y, self.label)

    def eligible(self, y: Tensor) -> Tensor:
        return y != self.label

    def describe(self, classes: Sequence[str]) -> str:
        return f"class {self.label} ({classes[self.label]})"


@dataclass(frozen=True)
class AllToAll:
    """The target of every image is the class after its own, of the last class class 0."""

    num_classes: int

    def target(self, y: Tensor) -> Tensor:
        return (y + 1) % self.num_classes

    def eligible(self, y: Tensor) -> Tensor:
        return torch.ones_like(y, dtype=torch.bool)

    def describe(self, classes: Sequence[str]) -> str:
        return "the class after their own"


@dataclass(frozen=True)
class NoTarget:
    """The rule of a clean model: no target, and no image to measure on."""

    def target(self, y: Tensor) -> Tensor:
        return y

    def eligible(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y, dtype=torch.bool)

    def describe(self, classes: Sequence[str]) -> str:
        return "none"


def quantize(x: Tensor, how: str = "floor") -> Tensor:
    """Return images as an 8-bit file would store them.

    Args:
        x: (B, 3, H, W) in [0, 1].
        how: `floor`, as casting to uint8 does, or `round`. `floor` tolerates 1e-4 of a step, so that
            eight-bit values are unchanged after a conversion to float32.
    Returns:
        uint8, the same shape.
    """
    if how not in ("floor", "round"):
        raise unknown_name("quantization", how, ("floor", "round"))
    scaled = x.clamp(0, 1) * 255
    return (scaled.round() if how == "round" else (scaled + 1e-4).floor()).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Attack:
    """A trigger and a target rule."""

    name: str
    trigger: Trigger
    rule: TargetRule
    quantize: str = "floor"
    params: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `get_attack` that build the same attack again; stored on the model's card."""
    assets: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of the trigger (a pattern, a field, weights) on the CPU, an argument of `get_attack`; stored
    beside the card."""
    train_mode: str = "static"
    """`static`: the training set is poisoned once; `dynamic`: every batch is poisoned in the training
    loop."""
    carried: ImageSet | None = None
    """Triggered images with their true labels, for an attack with an unknown trigger."""
    cross: Trigger | None = None
    """How a dynamic attack makes cross-trigger images (label kept): a noisy warp, the trigger of another
    image."""

    def apply(self, images: Tensor) -> Tensor:
        """Add the trigger: (B, 3, H, W) uint8 -> triggered images as a file would store them, uint8."""
        return self._stored(images, self.trigger)

    def apply_cross(self, images: Tensor) -> Tensor:
        """Make cross-trigger images, as `apply`. An attack without `cross` returns the images unchanged."""
        return images if self.cross is None else self._stored(images, self.cross)

    @torch.no_grad()
    def _stored(self, images: Tensor, change: Trigger) -> Tensor:
        return torch.cat(
            [quantize(change(part.float() / 255), self.quantize) for part in images.split(AT_ONCE)]
        )


class Stamped(NamedTuple):
    """The parts of a training batch that a dynamic trigger changes."""

    triggered: Tensor
    """(n, 3, H, W) in [0, 1]: with their own trigger."""
    cross: Tensor
    """(m, 3, H, W) in [0, 1]: cross-trigger images, which keep their labels."""
    loss: Tensor | None = None
    """The trigger's own loss, added to that of the classifier."""


class DynamicTrigger(Protocol):
    """A trigger in the training loop, where it may learn."""

    cross_ratio: int
    """Cross-trigger images for each triggered one."""

    def __init__(self, attack: Attack, dataset: DatasetSpec, device: torch.device) -> None:
        """Begin with the trigger of `attack`, for images of `dataset` on `device`."""

    def stamp(self, x: Tensor, x_cross: Tensor, images: Tensor, generator: torch.Generator) -> Stamped:
        """Add the trigger to one part of a batch, and make cross-trigger images of another.

        Args:
            x: images to poison, (n, 3, H, W) in [0, 1].
            x_cross: images that become cross-trigger images, (m, 3, H, W) in [0, 1].
            images: the whole training set, (N, 3, H, W) uint8 on the same device.
            generator: on the CPU; the only source of random numbers.
        """

    def step(self, rate: float) -> None:
        """Update the trigger from the gradients of the batch, if it learns.

        Args:
            rate: factor of the trigger's own learning rate, in (0, 1].
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which an interrupted training continues to the same result."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state_dict`."""

    def attack(self) -> Attack:
        """Return the attack in its present state, to be measured and saved."""


Making = Generator[Event, None, Attack]
"""The making of a trigger: a generator of training events that returns the attack."""


def made(making: Making) -> Attack:
    """Run the making to its end and return the attack."""
    while True:
        try:
            next(making)
        except StopIteration as end:
            attack: Attack = end.value
            return attack

"""Stop a training that diverges, or that destroys the clean accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping

LOW_EPOCHS = 3
"""Epochs in a row with less than half of the clean accuracy of the start after which a training has
failed."""
NOT_FINITE = "The loss is no longer a number"
COLLAPSED = f"Clean accuracy stayed below half of its start for {LOW_EPOCHS} epochs"
ENDED_LOW = "Clean accuracy ended below half of its start"
LOWER_LR = "lower `lr`, the learning rate"


def finite(losses: Mapping[str, float]) -> bool:
    """Return whether every loss is a finite number."""
    return all(math.isfinite(value) for value in losses.values())


class Guard:
    """Judge every epoch by its losses and its clean accuracy.

    Args:
        accuracy: on the clean images before the training, in [0, 1].
        remedy: what to change after a failure, as the end of the sentence.
    """

    def __init__(self, accuracy: float, remedy: str = LOWER_LR):
        self.minimum = accuracy / 2
        self.remedy = remedy
        self.low = 0
        """Epochs in a row below the minimum."""

    def check(self, losses: Mapping[str, float], accuracy: float) -> str:
        """Note the end of an epoch. Return why the training has failed, or an empty string."""
        if not finite(losses):
            return self.failure(NOT_FINITE)
        self.low = self.low + 1 if accuracy < self.minimum else 0
        return self.failure(COLLAPSED) if self.low == LOW_EPOCHS else ""

    def failure(self, reason: str) -> str:
        return f"{reason}: {self.remedy}."

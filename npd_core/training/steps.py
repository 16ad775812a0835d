"""Parts of a training loop: gradient steps, means of losses, time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Self

import torch
from torch import Tensor
from torch.optim import Optimizer


def descend(optimizer: Optimizer, loss: Tensor) -> None:
    """Take one step down the gradient of `loss`, a scalar."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def set_gradients(params: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
    """Give every parameter its gradient, for the next step of an optimizer."""
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient


def clear_gradients(params: Iterable[Tensor]) -> None:
    """Free the gradients."""
    for param in params:
        param.grad = None


class LossMeans:
    """Mean of every loss over the steps of an epoch, summed on the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()

    def add(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add the losses of one step, scalars, and return them detached."""
        found = {name: value.detach() for name, value in losses.items()}
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.counts.update(found.keys())
        return found

    def read(self) -> dict[str, float]:
        """Return the means. Waits for the device."""
        return {name: float(value) / self.counts[name] for name, value in self.sums.items()}


class Stopwatch:
    """Seconds spent inside this context, summed over all its uses."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start

"""Learning rates over epochs and over steps."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau


def epoch_schedule(name: str, optimizer: Optimizer, epochs: int) -> Callable[[float], None]:
    """Return what to call after every epoch, with the mean loss of that epoch.

    Args:
        name: `cosine` to zero over `epochs`; `plateau`, a tenth whenever the loss has not fallen for 10
            epochs; or `constant`.
    """
    if name == "plateau":
        return ReduceLROnPlateau(optimizer, factor=0.1, patience=10).step

    def share(epoch: int) -> float:
        return (1 + math.cos(math.pi * epoch / max(1, epochs))) / 2 if name == "cosine" else 1.0

    scheduler = LambdaLR(optimizer, share)
    return lambda _loss: scheduler.step()


def one_cycle(step: int, steps: int, peak_lr: float, warm_fraction: float) -> float:
    """Return the learning rate of a step: linear up to the peak, then linear down to zero."""
    peak = max(1, int(warm_fraction * steps))
    return peak_lr * (step + 1) / peak if step < peak else peak_lr * (steps - step) / max(1, steps - peak)


def step_schedule(optimizer: Optimizer, rate: Callable[[int], float], first: int = 0) -> LambdaLR:
    """Set the learning rate of step `first` to `rate(first)`, and of the next one at every call of
    `.step()`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 1.0  # which LambdaLR multiplies by the rate
    return LambdaLR(optimizer, rate, last_epoch=first - 1)

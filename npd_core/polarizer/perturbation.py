"""The inner level (Eq. 4): a small perturbation that pulls each image toward a target class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from npd_core.errors import unknown_name
from npd_core.polarizer.config import INNER_STEPS, NORMS

LogitsFn = Callable[[Tensor], Tensor]
"""(B, 3, H, W) in [0, 1] -> (B, K) logits."""


class Ball(Protocol):
    """||delta||_p <= rho, for each image on its own."""

    @property
    def rho(self) -> float: ...

    def project(self, delta: Tensor) -> Tensor:
        """The nearest (l2, linf) or the scaled (l1) delta inside the ball; (B, 3, H, W) -> the same shape."""


@dataclass(frozen=True)
class L2Ball:
    """The sum of squares over all colour values of one image is at most rho^2."""

    rho: float

    def project(self, delta: Tensor) -> Tensor:
        return _shrink(delta, self.rho, torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True))


@dataclass(frozen=True)
class L1Ball:
    """The sum of absolute values is at most rho. Projection by scaling, which stays inside but is not the nearest
    point."""

    rho: float

    def project(self, delta: Tensor) -> Tensor:
        return _shrink(delta, self.rho, delta.abs().sum(dim=(1, 2, 3), keepdim=True))


@dataclass(frozen=True)
class LinfBall:
    """No colour value changes by more than rho."""

    rho: float

    def project(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.rho, self.rho)


def _shrink(delta: Tensor, rho: float, norm: Tensor) -> Tensor:
    return delta * (rho / norm.clamp(min=1e-12)).clamp(max=1)


BALLS: dict[str, Callable[[float], Ball]] = {"l2": L2Ball, "linf": LinfBall, "l1": L1Ball}
assert tuple(BALLS) == NORMS


def runner_up(logits: Tensor, y: Tensor) -> Tensor:
    """Surrogate target y' = argmax over k != y of the logits. (B, K), (B,) -> (B,) int64; never equal to y."""
    return logits.scatter(1, y[:, None], float("-inf")).argmax(dim=1)


def direction(gradient: Tensor, how: str) -> Tensor:
    """Steepest way down of one inner step: `sign`, `l2` (unit length per image) or `raw` (gradient of the batch
    mean)."""
    if how == "sign":
        return gradient.sign()
    if how == "l2":
        return gradient / torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    if how == "raw":
        return gradient / len(gradient)
    raise unknown_name("inner step", how, INNER_STEPS)


class Perturbed(NamedTuple):
    """Images of the inner level, and what the network says of them."""

    x: Tensor
    """(B, 3, H, W) in [0, 1], detached: clip(x + delta, 0, 1)."""
    delta: Tensor
    """(B, 3, H, W), detached, inside the ball; not clipped."""
    logits: Tensor
    """(B, K) of the perturbed images, with a graph that reaches the parameters."""


def targeted_pgd(
    logits: LogitsFn,
    x: Tensor,
    target: Tensor,
    *,
    ball: Ball,
    steps: int,
    step_size: float,
    step: str = "sign",
    early_stop: float | None = None,
) -> Perturbed:
    """Targeted PGD (Madry et al., 2018): delta* = argmin of CE(f(clip(x + delta)), target) inside the ball. Eq. 4.

    Each forward pass serves twice: as the success check of the step before it and as the start of the next one; the
    last one is the pass on the perturbed images that the outer level needs. S steps cost S + 1 forward and S backward
    passes, and fewer when the loop ends early.

    Args:
        logits: the network.
        x: images, (B, 3, H, W) in [0, 1].
        target: class to reach, (B,) int64.
        steps: S, at least 1.
        step_size: length of one step, in pixel units.
        step: see `direction`.
        early_stop: the loop ends when this share of the batch has reached its target; costs one host sync a step.
    """
    delta = torch.zeros_like(x)
    for done in range(steps + 1):
        last = done == steps
        delta.requires_grad_(not last)
        x_adv = (x + delta).clamp(0, 1)
        z = logits(x_adv).float()
        if last or (done and early_stop is not None and bool(z.argmax(1).eq(target).float().mean() > early_stop)):
            break
        loss = F.cross_entropy(z, target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = ball.project(delta.detach() - step_size * direction(gradient, step))
    return Perturbed(x_adv.detach(), delta.detach(), z)

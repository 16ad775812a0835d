"""The inner level (Eq. 4): a small perturbation, of each image or of all, that changes the prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from npd_core.config.npd import INNER_STEPS, NORMS
from npd_core.errors import unknown_name

LogitsFn = Callable[[Tensor], Tensor]
"""(B, 3, H, W) in [0, 1] -> (B, K) logits."""


class Ball(Protocol):
    """||delta||_p <= rho, for each image on its own."""

    @property
    def rho(self) -> float: ...

    def project(self, delta: Tensor) -> Tensor:
        """Return the nearest (l2, linf) or the scaled (l1) delta inside the ball; (B, 3, H, W) -> the same
        shape."""


@dataclass(frozen=True)
class L2Ball:
    """The sum of squares over all pixel values of one image is at most rho^2."""

    rho: float

    def project(self, delta: Tensor) -> Tensor:
        return _shrink(delta, self.rho, torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True))


@dataclass(frozen=True)
class L1Ball:
    """The sum of absolute values is at most rho. The projection scales delta, which is not the nearest delta
    inside."""

    rho: float

    def project(self, delta: Tensor) -> Tensor:
        return _shrink(delta, self.rho, delta.abs().sum(dim=(1, 2, 3), keepdim=True))


@dataclass(frozen=True)
class LinfBall:
    """No pixel value changes by more than rho."""

    rho: float

    def project(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.rho, self.rho)


def _shrink(delta: Tensor, rho: float, norm: Tensor) -> Tensor:
    return delta * (rho / norm.clamp(min=1e-12)).clamp(max=1)


BALLS: dict[str, Callable[[float], Ball]] = {"l2": L2Ball, "linf": LinfBall, "l1": L1Ball}
assert tuple(BALLS) == NORMS


def runner_up(logits: Tensor, y: Tensor) -> Tensor:
    """Return the surrogate target y' = argmax over k != y of the logits. (B, K), (B,) -> (B,) int64; never
    equal to y."""
    return logits.scatter(1, y[:, None], float("-inf")).argmax(dim=1)


def direction(gradient: Tensor, how: str, images: Tensor | None = None) -> Tensor:
    """Return the direction of an inner step, which is subtracted: `sign`, `l2` (unit length per perturbation)
    or `raw` (gradient of the batch mean).

    Args:
        gradient: of the loss summed over the batch, (n, 3, H, W).
        images: (n,), how many images share each perturbation; None: each of the n images has its own.
    """
    if how == "sign":
        return gradient.sign()
    if how == "l2":
        return gradient / torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    if how == "raw":
        return gradient / (len(gradient) if images is None else images.clamp(min=1)[:, None, None, None])
    raise unknown_name("inner step", how, INNER_STEPS)


class Perturbed(NamedTuple):
    """Perturbed images and their logits."""

    x: Tensor
    """(B, 3, H, W) in [0, 1], detached: clip(x + delta, 0, 1)."""
    delta: Tensor
    """(B, 3, H, W), or (n, 3, H, W) where images share; detached, inside the ball; not clipped."""
    logits: Tensor
    """(B, K) of the perturbed images, with a graph that reaches the parameters."""


class Shared(NamedTuple):
    """Universal perturbations, one for all images with the same target."""

    delta: Tensor
    """(n, 3, H, W): start of the steps."""
    member: Tensor
    """(B, n) of 0 and 1 in the type of `delta`: row i selects the perturbation of image i; all 0: none."""

    def of_images(self, delta: Tensor) -> Tensor:
        """Return the perturbation of each image: (n, 3, H, W) -> (B, 3, H, W)."""
        return torch.einsum("bn,nchw->bchw", self.member, delta)


def pgd(
    logits: LogitsFn,
    x: Tensor,
    label: Tensor,
    *,
    ball: Ball,
    steps: int,
    step_size: float,
    step: str = "sign",
    early_stop: float | None = None,
    away: bool = False,
    kept: Tensor | None = None,
    shared: Shared | None = None,
) -> Perturbed:
    """Run PGD (Madry et al., 2018): delta* = argmin of CE(f(clip(x + delta)), label) inside the ball (Eq. 4),
    or argmax.

    Each forward pass is the success check of the step before it and the start of the next step. The last one
    is the pass on the perturbed images that the outer level needs. So S steps cost S + 1 forward and S
    backward passes, fewer when the loop ends early.

    Args:
        logits: the network.
        x: images, (B, 3, H, W) in [0, 1].
        label: class to reach, or with `away` to leave, (B,) int64.
        steps: S, at least 1.
        step_size: length of one step, in pixel units.
        step: see `direction`.
        early_stop: the loop ends when more than this share of the kept images has reached, or left, its
            label; costs one host sync a step.
        away: untargeted: leave `label` (argmax) instead of reaching it.
        kept: (B,) bool; the other images are ignored. None: all are kept.
        shared: universal perturbations to continue from (Moosavi-Dezfooli et al., 2017; targeted: Lu et al.,
            2021), each projected like that of one image. None: each image has its own, from 0.
    """
    delta = torch.zeros_like(x) if shared is None else shared.delta.detach()
    images = None if shared is None else shared.member.sum(0)
    for done in range(steps + 1):
        last = done == steps
        delta.requires_grad_(not last)
        x_adv = (x + (delta if shared is None else shared.of_images(delta))).clamp(0, 1)
        z = logits(x_adv).float()
        if last or (done and early_stop is not None and bool(_reached(z, label, away, kept) > early_stop)):
            break
        if kept is None:
            loss = F.cross_entropy(z, label, reduction="sum")
        else:
            loss = (F.cross_entropy(z, label, reduction="none") * kept).sum()
        (gradient,) = torch.autograd.grad(-loss if away else loss, delta)
        delta = ball.project(delta.detach() - step_size * direction(gradient, step, images))
    return Perturbed(x_adv.detach(), delta.detach(), z)


def _reached(logits: Tensor, label: Tensor, away: bool, kept: Tensor | None) -> Tensor:
    """Return the share of kept images predicted as `label`, or with `away` as any other class; 0 when none is
    kept."""
    predicted = logits.argmax(1)
    hits = predicted.ne(label) if away else predicted.eq(label)
    return hits.float().mean() if kept is None else (hits & kept).sum() / kept.sum().clamp(min=1)

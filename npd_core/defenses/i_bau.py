"""I-BAU: all weights are trained against the universal perturbation that harms them most, by the gradient of
the whole min-max problem. Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR
2022."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from npd_core.config.baselines import IBAUConfig
from npd_core.data.load import ImageSet
from npd_core.defenses.common import Repair, augmented
from npd_core.device import autocast
from npd_core.events import EpochEnd, Event, Started, StepEnd
from npd_core.models.normalized import Normalized
from npd_core.training.guard import Guard
from npd_core.training.steps import LossMeans, set_gradients

Batch = tuple[Tensor, Tensor]
"""Images (B, 3, H, W) in [0, 1] and labels (B,) int64."""


def hypergradient(
    outer: Tensor,
    phi: Tensor | None,
    delta: Tensor,
    theta: Sequence[Tensor],
    *,
    steps: int,
    tolerance: float = 0.0,
) -> list[Tensor]:
    """Return the gradient of H(delta*(theta), theta) with respect to theta, where delta* is the fixed point
    of Phi.

    grad_theta H + (dPhi/dtheta)^T v, with v = (I - dPhi/ddelta)^-T grad_delta H found by iterating
    v <- (dPhi/ddelta)^T v + grad_delta H from v = 0. No Jacobian is ever formed: an iteration is one backward
    pass through the graph of Phi.

    Args:
        outer: H(delta, theta), a scalar with a graph to `delta` and `theta`.
        phi: Phi(delta, theta), of the shape of `delta`, with a graph to both; None only when `steps` is 0.
        delta: leaf at which both were computed.
        theta: leaves.
        steps: iterations K; 0: the gradient of H at a fixed delta.
        tolerance: v stays as it is once an iteration would change it by less, in the 2-norm.
    Returns:
        one gradient for each of `theta`.
    """
    slope, *gradients = torch.autograd.grad(outer, [delta, *theta], materialize_grads=True)
    if steps == 0:
        return gradients
    assert phi is not None
    v = slope
    for _ in range(steps - 1):
        (carried,) = torch.autograd.grad(phi, delta, v, retain_graph=True)
        change = carried + slope - v
        v = v + change * (torch.linalg.vector_norm(change) >= tolerance)
    implicit = torch.autograd.grad(phi, theta, v, materialize_grads=True)
    return [direct + through for direct, through in zip(gradients, implicit, strict=True)]


def inner_objective(logits: Tensor, y: Tensor, delta: Tensor, weight: float) -> Tensor:
    """Return h = -CE(f(x + delta), y) + weight ||delta||^2, small where delta fools the network. (B, K), (B,)
    -> scalar."""
    return weight * delta.square().sum() - F.cross_entropy(logits, y)


class Minimax:
    """Both levels of the problem for one network.

    Args:
        net: on the device, in eval mode, so that Phi is the same map every time; its parameters require
            gradients.
    """

    def __init__(self, net: Normalized, cfg: IBAUConfig, device: torch.device):
        self.net, self.cfg, self.device = net, cfg, device
        self.theta = list(net.parameters())

    def logits(self, x: Tensor, delta: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] and a perturbation that broadcasts to it -> (B, K) float32."""
        with autocast(self.device, self.cfg.precision):
            if self.cfg.space == "pixel":
                z: Tensor = self.net((x + delta).clamp(0, 1))
            else:
                z = self.net.net(self.net.normalize(x) + delta)
        return z.float()

    def ascend(self, x: Tensor, y: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Take one SGD step on the inner objective. Returns the new delta, (3, H, W), and the objective."""
        delta = delta.detach().requires_grad_()
        loss = inner_objective(self.logits(x, delta), y, delta, self.cfg.delta_weight)
        (gradient,) = torch.autograd.grad(loss, delta)
        return delta.detach() - self.cfg.delta_lr * gradient, loss.detach()

    def inner_map(self, x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
        """Return Phi(delta, theta) = delta - inner_step grad_delta h, with a graph to both."""
        loss = inner_objective(self.logits(x, delta), y, delta, self.cfg.delta_weight)
        (gradient,) = torch.autograd.grad(loss, delta, create_graph=True)
        return delta - self.cfg.inner_step * gradient

    def gradient(
        self, x: Tensor, y: Tensor, patched: Tensor, first: tuple[Tensor, Tensor], delta: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the hypergradient for one batch, with the loss and the logits.

        Args:
            x, y: images (B, 3, H, W) in [0, 1] and labels (B,).
            patched: which images carry delta, (B,) of zeros and ones.
            first: images and labels of the inner map.
            delta: (3, H, W).
        """
        delta = delta.detach().requires_grad_()
        z = self.logits(x, patched[:, None, None, None] * delta)
        loss = F.cross_entropy(z, y)
        steps = self.cfg.fixed_point_steps
        phi = self.inner_map(*first, delta) if steps else None
        tolerance = self.cfg.fixed_point_tolerance
        gradients = hypergradient(loss, phi, delta, self.theta, steps=steps, tolerance=tolerance)
        return gradients, loss.detach(), z.detach()


def draw_patched(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Draw which images of a batch carry the perturbation, (count,) of zeros and ones: the share rounded
    down, but at least one unless the share is 0."""
    chosen = min(count, max(1, math.floor(share * count))) if share > 0 else 0
    patched = torch.zeros(count)
    patched[torch.randperm(count, generator=generator)[:chosen]] = 1.0
    return patched


def perturb(
    problem: Minimax, fixed: Sequence[Batch], epoch: int, means: LossMeans
) -> Generator[Event, None, tuple[Tensor, Tensor]]:
    """Make the universal perturbation of a round, in one pass over the batches, against the predicted
    classes.

    Returns:
        delta, (3, H, W), and how many images the network classified correctly without it.
    """
    delta = torch.zeros_like(fixed[0][0][0])
    correct = torch.zeros((), device=problem.device)
    for number, (x, y) in enumerate(fixed):
        with torch.no_grad():
            predicted = problem.logits(x, torch.zeros_like(delta)).argmax(1)
        delta, loss = problem.ascend(x, predicted, delta)
        correct += predicted.eq(y).sum()
        yield StepEnd(epoch, number, means.add({"inner": loss}))
    return delta, correct


def unlearn(
    problem: Minimax,
    fixed: Sequence[Batch],
    delta: Tensor,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    epoch: int,
    means: LossMeans,
) -> Generator[Event, None, Tensor]:
    """Train all weights against `delta` in one pass over the batches.

    Returns:
        how many images were classified correctly, some of them perturbed.
    """
    correct = torch.zeros((), device=problem.device)
    for number, (x, y) in enumerate(fixed):
        patched = draw_patched(len(y), problem.cfg.patched, generator).to(problem.device)
        gradients, loss, z = problem.gradient(x, y, patched, fixed[0], delta)
        set_gradients(problem.theta, gradients)
        optimizer.step()
        correct += z.argmax(1).eq(y).sum()
        yield StepEnd(epoch, len(fixed) + number, means.add({"total": loss}))
    return correct


def unlearn_implicitly(
    net: Normalized, clean: ImageSet, cfg: IBAUConfig, device: torch.device
) -> Generator[Event, None, None]:
    """Alternate between one pass over the clean images that makes a universal perturbation, and one that
    trains all weights against it. BatchNorm runs on its stored statistics throughout.

    Args:
        net: changed in place; in eval mode and frozen afterwards.
        clean: D_bn, augmented once, in batches that stay the same.
    Yields:
        one epoch a round; the first half of its steps has the loss `inner`, of the perturbation, the second
        half `total`, of the weights. `Finished.details` holds `delta_norms`, the l2 norm of each round's
        perturbation in the space where it is added.
    Raises:
        ConfigError: fewer than 2 clean images.
    """
    batches = augmented(clean, cfg, device)
    with Repair(net, device) as repair:
        yield Started(cfg.rounds, 0, 2 * batches.steps, clean.size, str(device))
        with repair.clock:
            fixed = list(batches.shuffled())
            net.requires_grad_(True)
            problem = Minimax(net, cfg, device)
            optimizer = torch.optim.Adam(problem.theta, cfg.lr)
        norms: list[float] = []
        guard: Guard | None = None
        for epoch in range(cfg.rounds):
            with repair.clock:
                means = LossMeans()
                delta, before = yield from perturb(problem, fixed, epoch, means)
                during = yield from unlearn(problem, fixed, delta, optimizer, batches.generator, epoch, means)
                norms.append(float(delta.norm()))
                guard = guard or Guard(float(before) / clean.size)
                losses = means.read()
                finite = bool(torch.stack([param.isfinite().all() for param in problem.theta]).all())
                reason = guard.check(losses if finite else {"weights": math.nan}, float(during) / clean.size)
                if not reason and guard.low == 0:
                    repair.keep(epoch)
            if reason:
                yield repair.failed(reason)
                return
            yield EpochEnd(epoch, losses, repair.clock.seconds, guard.low == 0)
        yield repair.finished(delta_norms=norms)

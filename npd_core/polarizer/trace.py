"""One step of Algorithm 1 on one image: every number on the way from the image to a new theta."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from npd_core.config.npd import NPDConfig
from npd_core.data.load import ImageSet
from npd_core.polarizer import objective
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.perturbation import Ball, runner_up
from npd_core.polarizer.training import InnerResult, State, Trainer
from npd_core.training.steps import clear_gradients


class Inner(NamedTuple):
    """The perturbed image after some inner steps, and the next step."""

    delta: np.ndarray
    """(3, H, W) float32, in [0, 1] pixel units; not clipped."""
    norm: float
    """||delta|| in the norm of the config, at most rho."""
    logits: np.ndarray
    """(K,) float32, of the attacked network on clip(x + delta)."""
    loss: float
    """CE(f(clip(x + delta)), y'), which the step lowers (Eq. 4)."""
    gradient: np.ndarray | None
    """(3, H, W) float32, of this loss with respect to delta; None where no step follows."""
    unprojected: float | None
    """Norm after the step and before the projection; None where no step follows."""


class Part(NamedTuple):
    """Effect of the step on one parameter of theta."""

    name: str
    numbers: int
    gradient: float
    """L2 norm of the gradient, after clipping where there is any."""
    before: float
    """L2 norm of the parameter."""
    change: float
    """L2 norm of its change."""


class Outer(NamedTuple):
    """Output of f_hat with one theta, for the clean image and for the perturbed one that the step used."""

    clean: np.ndarray
    """(K,) logits."""
    perturbed: np.ndarray
    """(K,) logits."""
    losses: dict[str, float]
    """`bn`, `asr`, `bce1`, `bce2` (Eq. 2, 3, 5) and `total`, their weighted sum; only `bn` and `total` where
    all other weights are 0."""


class Trace(NamedTuple):
    """One step, in the order of its computation."""

    layer: str
    image: np.ndarray
    """(3, H, W) float32 in [0, 1]."""
    label: int
    target: int
    """y', the surrogate target."""
    attacked: np.ndarray
    """(K,) logits of the network that the inner level attacks (f_w or f_hat), on the clean image; they decide
    y'."""
    inner: tuple[Inner, ...]
    """From delta = 0 to the last delta: one more than steps were taken. Empty where the weights leave only
    L_bn."""
    before: Outer
    weights: dict[str, float]
    lr: float
    parts: tuple[Part, ...]
    after: Outer
    """With the new theta, on the same perturbed image."""

    @property
    def perturbed(self) -> np.ndarray:
        """clip(x + delta*), (3, H, W) float32."""
        return self.at(len(self.inner) - 1) if self.inner else self.image

    def at(self, step: int) -> np.ndarray:
        """Return the image after `step` inner steps, clipped, (3, H, W) float32."""
        return np.clip(self.image + self.inner[step].delta, 0, 1)

    def stopped_early(self, steps: int) -> bool:
        """Return whether the inner loop ended before it had taken `steps` steps."""
        return bool(self.inner) and len(self.inner) - 1 < steps


class _RecordingBall:
    """A ball that records every delta before and after its projection."""

    def __init__(self, ball: Ball) -> None:
        self.ball, self.rho = ball, ball.rho
        self.unprojected: list[Tensor] = []
        self.deltas: list[Tensor] = []

    def project(self, delta: Tensor) -> Tensor:
        inside = self.ball.project(delta)
        self.unprojected.append(delta.detach())
        self.deltas.append(inside.detach())
        return inside


def start(net: PolarizedNet, clean: ImageSet, cfg: NPDConfig) -> State:
    """Put theta where training begins, before its warm-up: the identity, with the statistics of `clean` where
    the config needs them. Returns a copy of theta. Raises ConfigError as the trainer does."""
    trainer = Trainer(net, clean, replace(cfg, cache=False), next(net.parameters()).device)
    trainer.start_statistics()
    return trainer.state()


def trace(net: PolarizedNet, image: Tensor, label: int, cfg: NPDConfig) -> Trace:
    """Take the first step of `npd` from the theta of `net`, on a batch of one image, and record all of it.

    The trainer's own functions take the step; gradients and logits along the inner loop are computed again.
    Warm-up, momentum and the pull of `decay_to_identity` are left out, as they do not affect a first step.
    Everything runs in fp32. Afterwards `net.polarizer` holds the new theta.

    Args:
        image: (3, H, W) uint8, or float in [0, 1].
        label: its true class.
    """
    pixels = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
    pair = ImageSet(pixels[None].repeat(2, 1, 1, 1), torch.tensor([label, label]))  # a trainer needs two
    cfg = replace(cfg, cache=False, holdout=0.0, precision="fp32")
    trainer = Trainer(net, pair, cfg, next(net.parameters()).device)
    ball = trainer.ball = _RecordingBall(trainer.ball)
    first = torch.tensor([0])
    x, h, y = trainer.clean.x(first), trainer.clean.features(first), trainer.clean.y(first)
    with torch.no_grad(), _attacked_network(trainer):
        attacked = trainer.suffix(h).float()
        target = runner_up(attacked, y)

    losses = trainer.losses(x, h, y).losses
    total = objective.total(losses, trainer.weights)
    inner = _inner_steps(trainer, ball, x, target) if trainer.adversarial else ()
    with torch.no_grad():
        h_adv = trainer.clean.prefix((x + ball.deltas[-1]).clamp(0, 1)) if ball.deltas else h
    before = _outer(trainer, h, h_adv, {**losses, "total": total})
    parts = _update(trainer, total)

    new = trainer.state()
    losses = trainer.losses(x, h, y, inner=InnerResult(h_adv, target)).losses
    net.polarizer.load_state_dict(new)  # training on batch statistics has moved the running ones
    after = _outer(trainer, h, h_adv, {**losses, "total": objective.total(losses, trainer.weights)})
    clear_gradients(trainer.params)
    return Trace(
        net.layer, _plain(x), label, int(target), _plain(attacked), inner,
        before, dict(trainer.weights), cfg.lr, parts, after,
    )  # fmt: skip


def _attacked_network(trainer: Trainer) -> AbstractContextManager[object]:
    """Return a context in which the network is the one that the inner level attacks."""
    return trainer.net.removed() if trainer.cfg.attack_on == "base" else nullcontext()


def _inner_steps(trainer: Trainer, ball: _RecordingBall, x: Tensor, target: Tensor) -> tuple[Inner, ...]:
    """Describe the perturbed image before each step, and after the last one."""
    norm, steps = trainer.cfg.norm, len(ball.deltas)
    found = []
    for k, delta in enumerate([torch.zeros_like(x), *ball.deltas]):
        delta = delta.detach().clone().requires_grad_()
        with _attacked_network(trainer):
            z = trainer.logits((x + delta).clamp(0, 1)).float()
            loss = F.cross_entropy(z, target)
            (gradient,) = torch.autograd.grad(loss, delta)
        found.append(
            Inner(
                _plain(delta), _norm(delta.detach(), norm), _plain(z), float(loss.detach()),
                gradient=_plain(gradient) if k < steps else None,
                unprojected=_norm(ball.unprojected[k], norm) if k < steps else None,
            )
        )  # fmt: skip
    return tuple(found)


def _update(trainer: Trainer, total: Tensor) -> tuple[Part, ...]:
    """Take the step, and describe what it does to each parameter."""
    old = [p.detach().clone() for p in trainer.params]
    trainer.update(trainer.optimizer(), total)
    return tuple(
        Part(name, p.numel(), _length(p.grad), _length(before), _length(p.detach() - before))
        for (name, p), before in zip(trainer.polarizer.named_parameters(), old, strict=True)
    )


@torch.no_grad()
def _outer(trainer: Trainer, h: Tensor, h_adv: Tensor, losses: dict[str, Tensor]) -> Outer:
    clean, perturbed = (trainer.outer_logits(features) for features in (h, h_adv))
    return Outer(
        _plain(clean), _plain(perturbed), {name: float(value.detach()) for name, value in losses.items()}
    )


def _norm(delta: Tensor, norm: str) -> float:
    return float(torch.linalg.vector_norm(delta, {"l1": 1, "l2": 2, "linf": float("inf")}[norm]))


def _length(values: Tensor | None) -> float:
    return 0.0 if values is None else float(torch.linalg.vector_norm(values))


def _plain(batch: Tensor) -> np.ndarray:
    """Return the only row of a batch as a C-ordered array."""
    return np.ascontiguousarray(batch[0].detach().float().cpu().numpy())

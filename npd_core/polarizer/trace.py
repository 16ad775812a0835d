"""One step of Algorithm 1 on one image, in slow motion: every number on the way from the image to a new theta."""

from __future__ import annotations

from contextlib import nullcontext
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


class Inner(NamedTuple):
    """The perturbed image after some inner steps, and the step that is taken from there."""

    delta: np.ndarray
    """(3, H, W) float32, in [0, 1] pixel units; not clipped."""
    norm: float
    """||delta|| in the norm of the config, at most rho."""
    logits: np.ndarray
    """(K,) float32, of the attacked network on clip(x + delta)."""
    loss: float
    """CE(f(clip(x + delta)), y'), which the step is to lower (Eq. 4)."""
    gradient: np.ndarray | None
    """(3, H, W) float32, of this loss with respect to delta; None where no step follows."""
    unprojected: float | None
    """Norm after the step and before the projection; None where no step follows."""


class Part(NamedTuple):
    """What the step does to one parameter of theta."""

    name: str
    numbers: int
    gradient: float
    """L2 norm of the gradient, after clipping where there is any."""
    before: float
    """L2 norm of the parameter."""
    change: float
    """L2 norm of what the step adds to it."""


class Outer(NamedTuple):
    """What f_hat says with one theta, of the clean image and of the perturbed one that the step used."""

    clean: np.ndarray
    """(K,) logits."""
    perturbed: np.ndarray
    """(K,) logits."""
    losses: dict[str, float]
    """`bn`, `asr`, `bce1`, `bce2` (Eq. 2, 3, 5) and `total`, their weighted sum; without `asr` and the others where
    their weights are 0, as the trainer then does without them."""


class Trace(NamedTuple):
    """One step, told in the order in which it is taken."""

    layer: str
    image: np.ndarray
    """(3, H, W) float32 in [0, 1]."""
    label: int
    target: int
    """y', the surrogate target."""
    attacked: np.ndarray
    """(K,) logits of the network that the inner level attacks (f_w or f_hat), on the clean image: y' is theirs."""
    inner: tuple[Inner, ...]
    """From delta = 0 to the last delta: one more than steps were taken. Empty where the weights leave only L_bn."""
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
        """The image after so many inner steps, clipped, (3, H, W) float32."""
        return np.clip(self.image + self.inner[step].delta, 0, 1)

    def stopped_early(self, steps: int) -> bool:
        """Whether the inner loop ended before its `steps` were taken."""
        return bool(self.inner) and len(self.inner) - 1 < steps


class _Witness:
    """A ball that remembers what was projected."""

    def __init__(self, ball: Ball) -> None:
        self.ball, self.rho = ball, ball.rho
        self.raw: list[Tensor] = []
        self.deltas: list[Tensor] = []

    def project(self, delta: Tensor) -> Tensor:
        inside = self.ball.project(delta)
        self.raw.append(delta.detach())
        self.deltas.append(inside.detach())
        return inside


def start(net: PolarizedNet, clean: ImageSet, cfg: NPDConfig) -> State:
    """Puts theta where training begins before its warm-up: the identity, with the statistics of `clean` where the
    config asks for them. Returns a copy of theta. Raises ConfigError as the trainer does."""
    trainer = Trainer(net, clean, replace(cfg, cache=False), next(net.parameters()).device)
    trainer.start_statistics()
    return trainer.state()


def trace(net: PolarizedNet, image: Tensor, label: int, cfg: NPDConfig) -> Trace:
    """Takes the first step of `npd` from the theta of `net`, on a batch that is one image, and tells all of it.

    The trainer's own functions take the step; only gradients and logits along the inner loop are looked up again.
    What has no meaning for a first step is left out: warm-up, momentum that is not there yet, the pull of
    `decay_to_identity`, running averages. It is told in fp32, on every device. Afterwards `net.polarizer` holds the new
    theta.

    Args:
        image: (3, H, W) uint8, or float in [0, 1].
        label: its true class.
    """
    device = next(net.parameters()).device
    pixels = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
    twice = ImageSet(
        pixels[None].repeat(2, 1, 1, 1), torch.tensor([label, label])
    )  # a trainer wants at least two
    trainer = Trainer(net, twice, replace(cfg, cache=False, holdout=0.0, precision="fp32"), device)
    witness = trainer.ball = _Witness(trainer.ball)
    first = torch.tensor([0])
    x, h, y = trainer.clean.x(first), trainer.clean.features(first), trainer.clean.labels[:1]

    base = cfg.attack_on == "base"
    with torch.no_grad(), net.removed() if base else nullcontext():
        attacked = trainer.suffix(h).float()
        target = runner_up(attacked, y)
    fixed = trainer.attack_base(x, h, y) if trainer.attacks_base else None
    told = trainer.losses(x, h, y, inner=fixed).losses
    total = objective.total(told, trainer.weights)

    deltas = [torch.zeros_like(x), *witness.deltas] if trainer.adversarial else []
    inner = []
    for k, delta in enumerate(deltas):
        moves = k + 1 < len(deltas)
        logits, loss, gradient = _look(trainer, x, delta, target, base)
        raw = witness.raw[k] if moves else None
        inner.append(
            Inner(
                _plain(delta), _norm(delta, cfg.norm), logits, loss,
                _plain(gradient) if moves else None, None if raw is None else _norm(raw, cfg.norm),
            )
        )  # fmt: skip

    with torch.no_grad():
        h_adv = trainer.clean.prefix((x + deltas[-1]).clamp(0, 1)) if deltas else h
    before = _outer(trainer, h, h_adv, {**told, "total": total})
    optimizer = torch.optim.SGD(
        trainer.params,
        lr=cfg.lr,
        momentum=cfg.momentum,
        weight_decay=0.0 if cfg.decay_to_identity else cfg.weight_decay,
    )
    old = [p.detach().clone() for p in trainer.params]
    trainer.update(optimizer, total)
    parts = tuple(
        Part(name, p.numel(), _length(p.grad), _length(was), _length(p.detach() - was))
        for (name, p), was in zip(net.polarizer.named_parameters(), old, strict=True)
    )
    new = trainer.state()
    told = trainer.losses(x, h, y, inner=InnerResult(h_adv, target)).losses
    net.polarizer.load_state_dict(new)  # with batch statistics, looking moved the running ones
    after = _outer(trainer, h, h_adv, {**told, "total": objective.total(told, trainer.weights)})
    for param in trainer.params:
        param.grad = None
    return Trace(
        net.layer, _plain(x), label, int(target), _plain(attacked), tuple(inner), before, dict(trainer.weights), cfg.lr,
        parts, after,
    )  # fmt: skip


def _look(
    trainer: Trainer, x: Tensor, delta: Tensor, target: Tensor, base: bool
) -> tuple[np.ndarray, float, Tensor]:
    """Logits on clip(x + delta), the loss of Eq. 4 and its gradient, in the network that the inner level attacks."""
    delta = delta.detach().clone().requires_grad_()
    with trainer.net.removed() if base else nullcontext():
        z = trainer.logits((x + delta).clamp(0, 1)).float()
        loss = F.cross_entropy(z, target)
        (gradient,) = torch.autograd.grad(loss, delta)
    return _plain(z), float(loss.detach()), gradient


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
    """The only row of a batch, as a C-ordered array."""
    return np.ascontiguousarray(batch[0].detach().float().cpu().numpy())

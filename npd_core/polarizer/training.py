"""Algorithm 1, and its variants, as a generator of events."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from npd_core.config.npd import NPDConfig, get_variant
from npd_core.data.clean import hold_out
from npd_core.data.load import ImageSet
from npd_core.device import autocast
from npd_core.errors import ConfigError
from npd_core.events import EpochEnd, Event, Failed, Finished, Started, StepEnd
from npd_core.polarizer import objective
from npd_core.polarizer.batches import CleanBatches
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.perturbation import BALLS, Shared, pgd, runner_up
from npd_core.training.batches import as_input
from npd_core.training.guard import ENDED_LOW, LOW_EPOCHS, Guard
from npd_core.training.schedules import epoch_schedule
from npd_core.training.steps import LossMeans, Stopwatch, clear_gradients, set_gradients

REMEDY = "lower the learning rate (`lr`), `rho` or the lambdas, or set `clip_grad`"

State = dict[str, Tensor]
TargetRule = Callable[[Tensor], Tensor]
"""True labels (B,) int64 -> the attacker's target classes (B,) int64; equal where an image cannot be
attacked."""


class InnerResult(NamedTuple):
    """Result of the inner level on f_w. That network never changes, so neither does this."""

    features: Tensor
    """(B, C, h, w): the perturbed images in front of the segment with the polarizer."""
    target: Tensor
    """(B,) int64: the class that each was pulled to; where it was only pushed away, its true label."""


class _Step(NamedTuple):
    losses: dict[str, Tensor]
    """Scalars with a graph to theta."""
    correct: Tensor
    """How many clean images were classified correctly, on the device."""
    universal: Tensor | None = None
    """The universal perturbations after this batch, (n, 3, H, W)."""


MOMENTUM = 0.9
"""Of SGD on theta. Reference code; the paper is silent."""
WARMUP_LR = 1e-4
"""Learning rate of SGD, without momentum, in the warm-up. Reference code."""


class Trainer:
    """One training of `net.polarizer`; the state that it would leave behind is always in `kept`."""

    identity: list[Tensor] | None = None
    """Parameters of the identity, once `start_statistics` has set them."""

    def __init__(
        self,
        net: PolarizedNet,
        clean: ImageSet,
        cfg: NPDConfig,
        device: torch.device,
        variant: str = "npd",
        target_rule: TargetRule | None = None,
    ):
        self.variant, self.target_rule = get_variant(variant), target_rule
        targets = self._targets(variant, clean.labels)
        count = len(targets) if self.variant.universal else 0
        self.targets = targets.to(device)
        """Classes that the universal perturbations lead to, ascending."""
        self.universal = torch.zeros(count, *clean.images.shape[1:], device=device)
        self.net, self.cfg, self.device = net.to(device).to(memory_format=net.memory_format), cfg, device
        clean, self.held_out = _split(clean, cfg)
        self.clean = CleanBatches(net, clean, cfg, device)
        self.polarizer = net.polarizer
        self.params = list(self.polarizer.parameters())
        self.ball = BALLS[cfg.norm](cfg.rho)
        self.weights = cfg.weights
        self.batch_statistics = cfg.bn_mode == "train_clean_stats"
        self.clock = Stopwatch()
        self.kept = self.state()
        self.kept_epoch = -1
        self.start = self.kept
        self.earlier: list[tuple[int, State]] = []
        self.best = math.inf
        """Lowest objective on the held-out images so far."""
        self.inner: InnerResult | None = None
        """Cached results of the inner level on f_w for all clean images and their copies."""
        self.missing: set[int] = set()
        """Indices of the images and copies without such a result."""

    def _targets(self, variant: str, labels: Tensor) -> Tensor:
        """Return the attacker's target classes of these images, ascending; where no target is known, one
        zero."""
        if self.variant.target != "known":
            return torch.zeros(1, dtype=torch.int64)
        if self.target_rule is None:
            raise ConfigError(
                f"`{variant}` needs the attacker's target: pass the rule of the attack as `target_rule`."
            )
        target = self.target_rule(labels)
        if not bool(target.ne(labels).any()):
            raise ConfigError(
                f"`{variant}` needs clean images with another class than the attacker's target, and there "
                "are none: use more images, or `npd`, which needs no target."
            )
        return target[target != labels].unique()

    # --- the state of theta

    def state(self) -> State:
        """Return a copy of the polarizer's parameters and statistics."""
        return {name: value.detach().clone() for name, value in self.polarizer.state_dict().items()}

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Restore the polarizer, statistics included, at the end of the block."""
        now = self.state()
        try:
            yield
        finally:
            self.polarizer.load_state_dict(now)

    def keep(self, epoch: int) -> None:
        """Take the current state as the one to leave behind."""
        self.kept, self.kept_epoch = self.state(), epoch
        self.earlier = [*self.earlier[-LOW_EPOCHS:], (epoch, self.kept)]

    def fall_back(self, minimum: float) -> None:
        """After a failure, keep the last state with a clean accuracy of at least `minimum`. The accuracy
        counted during an epoch may still be good when that at its end is not."""
        for epoch, state in reversed(self.earlier):
            self.kept, self.kept_epoch = state, epoch
            self.polarizer.load_state_dict(state)
            if float(self.clean_accuracy()) >= minimum:
                return
        self.kept, self.kept_epoch = self.start, -1

    # --- the inner level

    def suffix(self, h: Tensor) -> Tensor:
        """Return (B, K) logits of the output of `prefix`."""
        with autocast(self.device, self.cfg.precision):
            return self.net.suffix(h)

    def logits(self, x: Tensor) -> Tensor:
        """Return (B, K) logits of images (B, 3, H, W) in [0, 1]."""
        with autocast(self.device, self.cfg.precision):
            return self.net(x)

    def shared(self, count: int, target: Tensor | None, kept: Tensor | None) -> Shared | None:
        """Return the universal perturbations, and which of the `count` images gets which: that of its target,
        none when it is left out; without a target all get the same. None where each image has its own."""
        if not self.variant.universal:
            return None
        if target is None or kept is None:
            return Shared(self.universal, self.universal.new_ones(count, 1))
        member = target[:, None].eq(self.targets) & kept[:, None]
        return Shared(self.universal, member.to(self.universal.dtype))

    @property
    def adversarial(self) -> bool:
        """Whether any term of the objective needs perturbed images."""
        return any(weight for name, weight in self.weights.items() if name != "bn")

    @property
    def attacks_base(self) -> bool:
        """Whether the inner level has one result per image, independent of theta."""
        return self.cfg.attack_on == "base" and not self.variant.universal and self.adversarial

    def known_target(self, y: Tensor) -> Tensor | None:
        """Return the attacker's target classes, (B,) int64, for the variants that know them."""
        if self.variant.target != "known" or self.target_rule is None:
            return None
        return self.target_rule(y)

    def attack_base(self, x: Tensor, h: Tensor, y: Tensor) -> InnerResult:
        """Solve the inner level on f_w: y' is its runner-up and delta* its perturbation. Images do not
        influence each other, so the early stop, which depends on the whole batch, does not apply. Arguments
        as for `losses`."""
        cfg, features = self.cfg, h

        def logits(x_adv: Tensor) -> Tensor:
            nonlocal features
            features = self.clean.prefix(x_adv)
            return self.suffix(features)

        with self.net.removed():
            target = self.known_target(y)
            if target is None and self.variant.target == "surrogate":
                with torch.no_grad():
                    target = runner_up(self.suffix(h).float(), y)
            target = y if target is None else target
            pgd(
                logits, x, target, ball=self.ball, steps=cfg.inner_steps, step_size=cfg.inner_lr,
                step=cfg.inner_step, away=self.variant.target == "none",
            )  # fmt: skip
        return InnerResult(features.detach(), target)

    def inner_result(self, chosen: Tensor, x: Tensor, h: Tensor, y: Tensor) -> InnerResult:
        """Return `attack_base` of the clean images with these indices, computed once where features are
        cached."""
        if self.clean.cached is None:
            return self.attack_base(x, h, y)
        on_device = chosen.to(self.device)
        if self.inner is None:
            count = len(self.clean.labels)
            features = torch.empty((count, *h.shape[1:]), dtype=h.dtype, device=self.device)
            self.inner = InnerResult(features, torch.empty(count, dtype=torch.int64, device=self.device))
            self.missing = set(range(count))
        if not self.missing.isdisjoint(chosen.tolist()):
            found = self.attack_base(x, h, y)
            self.inner.features[on_device], self.inner.target[on_device] = found
            self.missing.difference_update(chosen.tolist())
        features = self.inner.features[on_device].contiguous(memory_format=self.net.memory_format)
        return InnerResult(features, self.inner.target[on_device])

    # --- both levels

    def losses(
        self, x: Tensor, h: Tensor, y: Tensor, stop_early: bool = True, inner: InnerResult | None = None
    ) -> _Step:
        """Compute the loss terms of Eq. 5 for one batch, as functions of theta. Changes no attribute.

        Args:
            x: images, (B, 3, H, W) in [0, 1].
            h: their features in front of the polarizer.
            y: labels, (B,) int64.
            stop_early: whether the early stop of the config applies.
            inner: result of the inner level, where it attacks f_w; None: it is solved here.
        """
        if inner is None and self.attacks_base:
            inner = self.attack_base(x, h, y)
        target = self.known_target(y)
        if self.variant.target == "surrogate" and inner is not None:
            target = inner.target
        z_adv: Tensor | None = None
        if inner is not None and not self.batch_statistics:
            z, z_adv = self.suffix(torch.cat([h, inner.features])).float().split(len(y))
        else:
            z, target = self._clean_logits(h, y, target)
        terms = {"bn": objective.loss_bn(z, y)}
        correct = z.detach().argmax(1).eq(y).sum()
        if not self.adversarial:
            return _Step(terms, correct)
        kept = target.ne(y) if self.variant.target == "known" and target is not None else None
        universal = None
        if inner is not None:
            z_adv = self.outer_logits(inner.features) if z_adv is None else z_adv
        else:
            z_adv, universal = self._perturbed_logits(x, y, target, kept, stop_early)
        label = y if self.cfg.bce1_label == "true" else z.detach().argmax(1)
        hit = runner_up(z_adv.detach(), y) if target is None else target
        terms["asr"] = objective.loss_asr(z_adv, hit, self.cfg.log_form, kept)
        terms["bce1"] = objective.loss_bce1(z_adv, label, kept)
        terms["bce2"] = objective.loss_bce2(z_adv, y, self.cfg.log_form, kept)
        return _Step(terms, correct, universal)

    def _clean_logits(self, h: Tensor, y: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return logits of the clean images, and the target with y' filled in where it is still missing."""
        surrogate = self.variant.target == "surrogate" and target is None
        if not self.batch_statistics:
            z = self.suffix(h).float()
            return z, runner_up(z.detach(), y) if surrogate else target
        if surrogate:
            with torch.no_grad():
                target = runner_up(self.suffix(h).float(), y)
        self.polarizer.train()
        z = self.suffix(h).float()
        self.polarizer.eval()
        return z, target

    def _perturbed_logits(
        self, x: Tensor, y: Tensor, target: Tensor | None, kept: Tensor | None, stop_early: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Solve the inner level. Return logits of the perturbed images, and the universal perturbations if
        any."""
        cfg = self.cfg
        base = cfg.attack_on == "base"
        with self.net.removed() if base else nullcontext():
            perturbed = pgd(
                self.logits, x, y if target is None else target, ball=self.ball, steps=cfg.inner_steps,
                step_size=cfg.inner_lr, step=cfg.inner_step, away=target is None, kept=kept,
                early_stop=cfg.early_stop if stop_early else None, shared=self.shared(len(y), target, kept),
            )  # fmt: skip
        universal = perturbed.delta if self.variant.universal else None
        if not (self.batch_statistics or base):
            return perturbed.logits, universal
        with torch.no_grad():
            h_adv = self.clean.prefix(perturbed.x)
        return self.outer_logits(h_adv), universal

    def outer_logits(self, h: Tensor) -> Tensor:
        """Return (B, K) logits for the outer level; with the batch's own BatchNorm statistics where the
        config trains on them, the running ones untouched."""
        if not self.batch_statistics:
            return self.suffix(h).float()
        self.polarizer.train()
        momentum, self.polarizer.bn.momentum = self.polarizer.bn.momentum, 0.0
        z = self.suffix(h).float()
        self.polarizer.bn.momentum = momentum
        self.polarizer.eval()
        return z

    def optimizer(self) -> Optimizer:
        """Return SGD on theta as the config sets it."""
        cfg = self.cfg
        decay = 0.0 if cfg.decay_to_identity else cfg.weight_decay
        return torch.optim.SGD(self.params, lr=cfg.lr, momentum=MOMENTUM, weight_decay=decay)

    def update(self, optimizer: Optimizer, loss: Tensor) -> None:
        """Take one SGD step on theta alone: no gradient is computed for a frozen weight or for an image."""
        set_gradients(self.params, torch.autograd.grad(loss, self.params))
        if self.cfg.decay_to_identity and self.identity is not None:
            for param, start in zip(self.params, self.identity, strict=True):
                assert param.grad is not None
                param.grad.add_(param.detach() - start, alpha=self.cfg.weight_decay)
        if self.cfg.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.params, self.cfg.clip_grad)
        optimizer.step()

    # --- the training

    def start_statistics(self) -> None:
        """Put the BatchNorm into the state that `bn_mode` needs before the first step."""
        if self.cfg.bn_mode == "stats_fold":
            order = torch.arange(len(self.clean)).split(256)
            with torch.no_grad(), autocast(self.device, self.cfg.precision):
                batches = [self.net.features(self.clean.features(chosen)) for chosen in order]
            self.polarizer.fold_statistics(batches)
        self.identity = [p.detach().clone() for p in self.params]

    def warm_up(self, epoch: int) -> Generator[Event, None, dict[str, float]]:
        """Train a (negative) epoch of L_bn alone, line 4 of Algorithm 1. Returns the mean losses."""
        self.polarizer.train(self.cfg.bn_mode in ("warmup_frozen", "train_clean_stats"))
        optimizer = torch.optim.SGD(self.params, lr=WARMUP_LR)
        means = LossMeans()
        for step, chosen in enumerate(self.clean.indices()):
            loss = objective.loss_bn(self.suffix(self.clean.features(chosen)).float(), self.clean.y(chosen))
            self.update(optimizer, loss)
            yield StepEnd(epoch, step, means.add({"bn": loss, "total": loss}))
        self.polarizer.eval()
        return means.read()

    def epoch(
        self, epoch: int, optimizer: Optimizer
    ) -> Generator[Event, None, tuple[dict[str, float], float]]:
        """Train one epoch of the bi-level problem. Returns the mean losses and the clean accuracy."""
        means, correct = LossMeans(), torch.zeros((), device=self.device)
        for step, chosen in enumerate(self.clean.indices()):
            x, h, y = self.clean.x(chosen), self.clean.features(chosen), self.clean.y(chosen)
            result = self.losses(
                x, h, y, inner=self.inner_result(chosen, x, h, y) if self.attacks_base else None
            )
            if result.universal is not None:
                self.universal = result.universal
            loss = objective.total(result.losses, self.weights)
            self.update(optimizer, loss)
            correct += result.correct
            yield StepEnd(epoch, step, means.add(result.losses | {"total": loss}))
        return means.read(), float(correct) / (self.clean.passes * len(self.clean))

    def events(self) -> Generator[Event, None, None]:
        """Run Algorithm 1. However it ends, `net.polarizer` then holds the kept state."""
        cfg, clock = self.cfg, self.clock
        try:
            yield Started(
                cfg.epochs,
                cfg.warmup_epochs,
                self.clean.steps,
                len(self.clean),
                str(self.device),
                self.net.layer,
            )
            with clock:
                self.clean.prepare()
                self.start_statistics()
                self.keep(-1)
                self.start = self.kept
                accuracy = float(self.clean_accuracy())
                guard = Guard(accuracy, REMEDY)
                optimizer = self.optimizer()
                end_epoch = epoch_schedule(cfg.schedule, optimizer, cfg.epochs)
            for epoch in range(-cfg.warmup_epochs, cfg.epochs):
                with clock:
                    if epoch < 0:
                        losses = yield from self.warm_up(epoch)
                    else:
                        losses, accuracy = yield from self.epoch(epoch, optimizer)
                        end_epoch(losses["total"])
                    reason = guard.check(losses, accuracy)
                    if reason:
                        self.fall_back(guard.minimum)
                    else:
                        kept, value = self._select(epoch, guard)
                if reason:
                    yield Failed(reason, self.kept_epoch, clock.seconds)
                    return
                yield EpochEnd(epoch, losses, clock.seconds, kept, value)
            with clock:
                ended_low = self._ended_low(guard)
            if ended_low:
                yield Failed(guard.failure(ENDED_LOW), self.kept_epoch, clock.seconds)
            else:
                yield Finished(self.kept_epoch, clock.seconds)
        finally:
            self.polarizer.load_state_dict(self.kept)
            self.polarizer.eval().requires_grad_(True)
            clear_gradients(self.params)

    def _select(self, epoch: int, guard: Guard) -> tuple[bool, float | None]:
        """Keep the state of this epoch if it is good: whether it was kept, and its objective on held-out
        images."""
        value = self.held_out_objective() if self.held_out is not None and epoch >= 0 else None
        if guard.low or (value is not None and value >= self.best):
            return False, value
        self.keep(epoch)
        self.best = self.best if value is None else value
        return True, value

    def _ended_low(self, guard: Guard) -> bool:
        """Whether the last state, which no later batch has measured, has lost the clean accuracy; then fall
        back."""
        if not guard.low:
            if self.kept_epoch != self.cfg.epochs - 1:
                return False
            if float(self.clean_accuracy()) >= guard.minimum:
                return False
        self.fall_back(guard.minimum)
        return True

    @torch.no_grad()
    def clean_accuracy(self) -> Tensor:
        """Return the accuracy on D_bn, a scalar on the device."""
        order = torch.arange(len(self.clean)).split(256)
        correct = [self.suffix(self.clean.features(c)).argmax(1).eq(self.clean.y(c)) for c in order]
        return torch.cat(correct).float().mean()

    def held_out_objective(self) -> float:
        """Return the training objective on the clean images that were held out of D_bn."""
        assert self.held_out is not None
        sums = torch.zeros((), device=self.device)
        with self.unchanged():
            for images, labels in zip(*(t.split(256) for t in self.held_out), strict=True):
                x = as_input(images.to(self.device))
                with torch.no_grad():
                    h = self.clean.prefix(x)
                result = self.losses(x, h, labels.to(self.device), stop_early=False)
                sums += objective.total(result.losses, self.weights).detach() * len(labels)
        return float(sums) / self.held_out.size


def _split(clean: ImageSet, cfg: NPDConfig) -> tuple[ImageSet, ImageSet | None]:
    """Hold out a share of every class, for choosing the epoch."""
    if cfg.holdout == 0:
        return clean, None
    rest, held = hold_out(clean, cfg.holdout, cfg.seed + 1)
    if held.size == 0 or rest.size < 2:
        raise ConfigError(
            f"A `holdout` of {cfg.holdout:g} needs a class with at least 2 images and 2 images left for "
            f"training, but there are {clean.size} clean images: use more images, or 0."
        )
    return rest, held


def train_polarizer(
    net: PolarizedNet,
    clean: ImageSet,
    cfg: NPDConfig,
    device: torch.device | None = None,
    *,
    variant: str = "npd",
    target_rule: TargetRule | None = None,
) -> Generator[Event, None, None]:
    """Run Algorithm 1. Changes only `net.polarizer`, which holds the kept state when the generator ends or is
    closed.

    Args:
        net: moved to `device`; in eval mode afterwards.
        clean: D_bn, the defender's clean images.
        device: where to train; None: where `net` is.
        variant: a name in VARIANTS, which says what replaces the unknown trigger.
        target_rule: the attacker's target class of each label, for the variants that know it. Images that
            already have their target are left out of the inner level, L_asr and L_bce, and stay in L_bn.
    Raises:
        UnknownNameError: no such variant.
        ConfigError: fewer than 2 clean images, or no target where one has to be known.
    """
    return Trainer(net, clean, cfg, device or next(net.parameters()).device, variant, target_rule).events()

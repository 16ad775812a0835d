"""Algorithm 1, and its variants, as a generator of events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from npd_core.config.npd import NPDConfig, get_variant
from npd_core.data.clean import hold_out
from npd_core.data.load import ImageSet
from npd_core.device import autocast
from npd_core.errors import ConfigError
from npd_core.events import EpochEnd, Event, Failed, Finished, Started, StepEnd
from npd_core.polarizer import objective
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.perturbation import BALLS, Shared, pgd, runner_up

CACHE_LIMIT = 2_000_000_000
"""Bytes of cached features above which they are computed anew for every batch."""
COLLAPSE_EPOCHS = 3
"""A run has failed when the clean accuracy stays below half of what it was at the start for this many epochs, or
at its end."""
REMEDY = "lower the learning rate, rho or the lambdas, or clip the gradient."

State = dict[str, Tensor]
Rule = Callable[[Tensor], Tensor]
"""True labels (B,) int64 -> labels that the attacker wants (B,) int64; equal where an image cannot be attacked."""


class CleanBatches:
    """The defender's clean images on the device, in shuffled batches, with the features in front of the polarizer
    cached.

    The frozen part is deterministic and nothing is augmented, so the features of an image are computed once.
    """

    def __init__(self, net: PolarizedNet, data: ImageSet, cfg: NPDConfig, device: torch.device):
        self.net, self.cfg, self.device = net, cfg, device
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.generator = torch.Generator().manual_seed(cfg.seed)
        self.cached: Tensor | None = None
        size = min(cfg.batch_size, len(self.labels))
        self.batch_size = size
        batches = len(_batches(torch.arange(len(self.labels)), size))
        self.passes = math.ceil(cfg.epoch_steps / batches)
        """Over the images in one epoch."""
        self.steps = self.passes * batches
        if cfg.cache:
            with torch.no_grad():
                first = self.prefix(self.x(torch.arange(min(2, len(self.labels)))))
                if first[0].numel() * first.element_size() * len(self.labels) <= CACHE_LIMIT:
                    everything = torch.arange(len(self.labels)).split(256)
                    self.cached = torch.cat([self.prefix(self.x(chosen)) for chosen in everything])

    def x(self, chosen: Tensor) -> Tensor:
        """Images as float32 in [0, 1]."""
        x = self.images[chosen.to(self.device)].float() / 255
        return x.contiguous(memory_format=torch.channels_last)

    def prefix(self, x: Tensor) -> Tensor:
        with autocast(self.device, self.cfg.precision):
            return self.net.prefix(x)

    def features(self, chosen: Tensor) -> Tensor:
        """Input of the segment that holds the polarizer, for the images with these indices."""
        if self.cached is not None:
            return self.cached[chosen.to(self.device)].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return self.prefix(self.x(chosen))

    def shuffled(self) -> Iterator[Tensor]:
        """Indices of one epoch's batches, `passes` times over all images. The last one of a pass may be smaller; a
        single left-over image joins the batch before."""
        for _ in range(self.passes):
            order = torch.randperm(len(self.labels), generator=self.generator)
            yield from _batches(order, self.batch_size)


def _batches(order: Tensor, size: int) -> list[Tensor]:
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


class Fixed(NamedTuple):
    """What the inner level found for images where it attacks f_w. That network never changes, so neither does this."""

    features: Tensor
    """(B, C, h, w): the perturbed images in front of the segment with the polarizer."""
    target: Tensor
    """(B,) int64: the class that each was pulled to; where it was only pushed away, its true label."""


class _Step(NamedTuple):
    losses: dict[str, Tensor]
    """Scalars with a graph to theta."""
    correct: Tensor
    """How many clean images were classified right, on the device."""
    universal: Tensor | None = None
    """The universal perturbations after this batch, (n, 3, H, W)."""


class Trainer:
    """One training of `net.polarizer`; the state that it would leave behind is always in `kept`."""

    def __init__(
        self,
        net: PolarizedNet,
        clean: ImageSet,
        cfg: NPDConfig,
        device: torch.device,
        variant: str = "npd",
        known: Rule | None = None,
    ):
        if len(clean.labels) < 2:
            raise ConfigError(f"The polarizer needs at least 2 clean images, got {len(clean.labels)}.")
        self.variant, self.known = get_variant(variant), known
        wanted = self._wanted(variant, clean.labels)
        count = len(wanted) if self.variant.universal else 0
        self.wanted = wanted.to(device)
        self.universal = torch.zeros(count, *clean.images.shape[1:], device=device)
        self.net, self.cfg, self.device = net.to(device).to(memory_format=torch.channels_last), cfg, device
        clean, self.held_out = _split(clean, cfg)
        self.clean = CleanBatches(net, clean, cfg, device)
        self.polarizer = net.polarizer
        self.params = list(self.polarizer.parameters())
        self.ball = BALLS[cfg.norm](cfg.rho)
        self.weights = cfg.weights
        self.kept = self.state()
        self.kept_epoch = -1
        self.start = self.kept
        self.earlier: list[tuple[int, State]] = []
        self.average: list[Tensor] | None = None
        self.fixed: Fixed | None = None
        self.unknown = set(range(len(self.clean.labels)))

    def _wanted(self, variant: str, labels: Tensor) -> Tensor:
        """The classes that the attacker wants of these images, ascending; without a known target one that stands for
        all."""
        if self.variant.target != "known":
            return torch.zeros(1, dtype=torch.int64)
        if self.known is None:
            raise ConfigError(
                f"`{variant}` knows the attacker's target: pass the rule of the attack as `known`."
            )
        target = self.known(labels)
        if not bool(target.ne(labels).any()):
            reason = "The attacker wants no other class of any of these clean images"
            raise ConfigError(f"{reason}: `{variant}` needs some that have a target; `npd` needs none.")
        return target[target != labels].unique()

    # --- the state of theta

    def state(self) -> State:
        """A copy of the polarizer's parameters and statistics."""
        return {name: value.detach().clone() for name, value in self.polarizer.state_dict().items()}

    @contextmanager
    def as_left_behind(self) -> Iterator[None]:
        """The polarizer as it would be left behind now, its running average in place of theta; afterwards it is as it
        was, and what was measured in between has not moved its statistics."""
        now = self.state()
        if self.average is not None:
            with torch.no_grad():
                for param, mean in zip(self.params, self.average, strict=True):
                    param.copy_(mean)
        try:
            yield
        finally:
            self.polarizer.load_state_dict(now)

    def keep(self, epoch: int) -> None:
        self.kept, self.kept_epoch = self.state(), epoch
        if self.average is not None:
            names = [name for name, _ in self.polarizer.named_parameters()]
            self.kept |= {name: mean.clone() for name, mean in zip(names, self.average, strict=True)}
        self.earlier = [*self.earlier[-COLLAPSE_EPOCHS:], (epoch, self.kept)]

    def fall_back(self, least: float) -> None:
        """After a failure, keep the last state whose clean accuracy is at least `least`. What is counted during an
        epoch may still be good when its end is not."""
        for epoch, state in reversed(self.earlier):
            self.kept, self.kept_epoch = state, epoch
            self.polarizer.load_state_dict(state)
            if float(self.clean_accuracy()) >= least:
                return
        self.kept, self.kept_epoch = self.start, -1

    def failed(self, reason: str, least: float, seconds: float, start: float) -> Failed:
        """The end of a training that went wrong, as `fall_back` leaves it. `start`: what came after `seconds` began."""
        self.fall_back(least)
        return Failed(reason, self.kept_epoch, seconds + time.perf_counter() - start)

    def ends_well(self, least: float) -> bool:
        """Whether the last state, which no later batch has counted, has a clean accuracy of at least `least`."""
        with self.as_left_behind():
            return float(self.clean_accuracy()) >= least

    # --- one step

    def suffix(self, h: Tensor) -> Tensor:
        with autocast(self.device, self.cfg.precision):
            return self.net.suffix(h)

    def logits(self, x: Tensor) -> Tensor:
        with autocast(self.device, self.cfg.precision):
            return self.net(x)

    def shared(self, count: int, target: Tensor | None, kept: Tensor | None) -> Shared | None:
        """The universal perturbations, and which of the `count` images gets which: that of its target, none when it is
        left out; without a target all get the same. None where each image has its own."""
        if not self.variant.universal:
            return None
        if target is None or kept is None:
            return Shared(self.universal, self.universal.new_ones(count, 1))
        member = target[:, None].eq(self.wanted) & kept[:, None]
        return Shared(self.universal, member.to(self.universal.dtype))

    @property
    def adversarial(self) -> bool:
        """Whether any term of the objective looks at perturbed images."""
        return any(weight for name, weight in self.weights.items() if name != "bn")

    @property
    def attacks_base(self) -> bool:
        """Whether the inner level has one answer per image, whatever theta is."""
        return self.cfg.attack_on == "base" and not self.variant.universal and self.adversarial

    def attack_base(self, x: Tensor, h: Tensor, y: Tensor) -> Fixed:
        """The inner level on f_w: y' is its runner-up and delta* its perturbation. The batch has no say in it, so the
        early stop, which asks a whole batch, does not apply. Arguments as for `losses`."""
        cfg, variant = self.cfg, self.variant
        seen = h

        def logits(x_adv: Tensor) -> Tensor:
            nonlocal seen
            seen = self.clean.prefix(x_adv)
            return self.suffix(seen)

        with self.net.removed():
            if variant.target == "surrogate":
                with torch.no_grad():
                    target = runner_up(self.suffix(h).float(), y)
            else:
                target = y if self.known is None or variant.target == "none" else self.known(y)
            pgd(
                logits, x, target, ball=self.ball, steps=cfg.inner_steps, step_size=cfg.inner_lr,
                step=cfg.inner_step, away=variant.target == "none",
            )  # fmt: skip
        return Fixed(seen.detach(), target)

    def fixed_of(self, chosen: Tensor, x: Tensor, h: Tensor, y: Tensor) -> Fixed:
        """`attack_base` of the clean images with these indices: looked up, or found out and remembered for the epochs
        to come. Without the cache it is found out every time."""
        if self.clean.cached is None:
            return self.attack_base(x, h, y)
        where = chosen.to(self.device)
        if self.fixed is None:
            count = len(self.clean.labels)
            features = torch.empty((count, *h.shape[1:]), dtype=h.dtype, device=self.device)
            self.fixed = Fixed(features, torch.empty(count, dtype=torch.int64, device=self.device))
        if not self.unknown.isdisjoint(chosen.tolist()):
            found = self.attack_base(x, h, y)
            self.fixed.features[where], self.fixed.target[where] = found
            self.unknown.difference_update(chosen.tolist())
        features = self.fixed.features[where].contiguous(memory_format=torch.channels_last)
        return Fixed(features, self.fixed.target[where])

    def losses(
        self, x: Tensor, h: Tensor, y: Tensor, stop_early: bool = True, fixed: Fixed | None = None
    ) -> _Step:
        """Both levels of Eq. 5 for one batch: the loss terms, as functions of theta.

        Args:
            x: images, (B, 3, H, W) in [0, 1].
            h: their features in front of the polarizer.
            y: labels, (B,) int64.
            stop_early: whether the early stop of the config applies.
            fixed: what the inner level found, where it attacks f_w; None: it is solved here.
        Returns:
            the terms, and the universal perturbations that they were measured with; `self` stays as it is.
        """
        cfg, variant = self.cfg, self.variant
        if fixed is None and self.attacks_base:
            fixed = self.attack_base(x, h, y)
        target = None
        if variant.target == "known" and self.known is not None:
            target = self.known(y)
        elif variant.target == "surrogate" and fixed is not None:
            target = fixed.target
        batch_statistics = cfg.bn_mode == "train_clean_stats"
        if batch_statistics:
            if variant.target == "surrogate" and target is None:
                with torch.no_grad():
                    target = runner_up(self.suffix(h).float(), y)
            self.polarizer.train()
            z = self.suffix(h).float()
            self.polarizer.eval()
        else:
            z = self.suffix(h).float()
            if variant.target == "surrogate" and target is None:
                target = runner_up(z.detach(), y)
        terms = {"bn": objective.loss_bn(z, y)}
        correct = z.detach().argmax(1).eq(y).sum()
        if not self.adversarial:
            return _Step(terms, correct)
        kept = target.ne(y) if variant.target == "known" and target is not None else None
        universal, h_adv = None, fixed.features if fixed is not None else None
        if h_adv is None:
            with self.net.removed() if cfg.attack_on == "base" else nullcontext():
                perturbed = pgd(
                    self.logits, x, y if target is None else target, ball=self.ball, steps=cfg.inner_steps,
                    step_size=cfg.inner_lr, step=cfg.inner_step, early_stop=cfg.early_stop if stop_early else None,
                    away=target is None, kept=kept, shared=self.shared(len(y), target, kept),
                )  # fmt: skip
            z_adv = perturbed.logits
            universal = perturbed.delta if variant.universal else None
            if batch_statistics or cfg.attack_on == "base":
                with torch.no_grad():
                    h_adv = self.clean.prefix(perturbed.x)
        if h_adv is not None:
            z_adv = self.on_batch_statistics(h_adv) if batch_statistics else self.suffix(h_adv).float()
        label = y if cfg.bce1_label == "true" else z.detach().argmax(1)
        hit = runner_up(z_adv.detach(), y) if target is None else target
        terms["asr"] = objective.loss_asr(z_adv, hit, cfg.log_form, kept)
        terms["bce1"] = objective.loss_bce1(z_adv, label, kept)
        terms["bce2"] = objective.loss_bce2(z_adv, y, cfg.log_form, kept)
        return _Step(terms, correct, universal)

    def on_batch_statistics(self, h: Tensor) -> Tensor:
        """Logits with the batch's own BatchNorm statistics, the running ones untouched."""
        self.polarizer.train()
        momentum, self.polarizer.bn.momentum = self.polarizer.bn.momentum, 0.0
        z = self.suffix(h).float()
        self.polarizer.bn.momentum = momentum
        self.polarizer.eval()
        return z

    def update(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One SGD step on theta alone: no gradient is computed for a frozen weight or for an image."""
        for param, gradient in zip(self.params, torch.autograd.grad(loss, self.params), strict=True):
            param.grad = gradient
        if self.cfg.decay_to_identity and self.identity is not None:
            for param, start in zip(self.params, self.identity, strict=True):
                assert param.grad is not None
                param.grad.add_(param.detach() - start, alpha=self.cfg.weight_decay)
        if self.cfg.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.params, self.cfg.clip_grad)
        optimizer.step()
        if self.average is not None and self.cfg.ema is not None:
            torch._foreach_lerp_(self.average, [p.detach() for p in self.params], 1 - self.cfg.ema)

    # --- the whole

    identity: list[Tensor] | None = None

    def start_statistics(self) -> None:
        """Put the BatchNorm into the state that `bn_mode` asks for before the first step."""
        if self.cfg.bn_mode == "stats_fold":
            order = torch.arange(len(self.clean.labels)).split(256)
            with torch.no_grad(), autocast(self.device, self.cfg.precision):
                batches = [self.net.features(self.clean.features(chosen)) for chosen in order]
            self.polarizer.fold_statistics(batches)
        self.identity = [p.detach().clone() for p in self.params]

    def warm_up(self, epoch: int) -> Iterator[Event]:
        """One epoch of L_bn alone (line 4 of Algorithm 1); `epoch` is negative."""
        cfg = self.cfg
        self.polarizer.train(cfg.bn_mode in ("warmup_frozen", "train_clean_stats"))
        optimizer = torch.optim.SGD(self.params, lr=cfg.warmup_lr)
        for step, chosen in enumerate(self.clean.shuffled()):
            loss = objective.loss_bn(
                self.suffix(self.clean.features(chosen)).float(), self.clean.labels[chosen.to(self.device)]
            )
            self.update(optimizer, loss)
            yield StepEnd(epoch, step, {"bn": loss.detach(), "total": loss.detach()})
        self.polarizer.eval()

    def events(self) -> Generator[Event, None, None]:
        """Run Algorithm 1. Whatever way it ends, `net.polarizer` then holds the kept state."""
        cfg = self.cfg
        seconds = 0.0
        try:
            images, device = len(self.clean.labels), str(self.device)
            yield Started(cfg.epochs, cfg.warmup_epochs, self.clean.steps, images, device, self.net.layer)
            start = time.perf_counter()
            self.start_statistics()
            self.keep(-1)
            self.start = self.kept
            base = float(self.clean_accuracy())
            optimizer = torch.optim.SGD(
                self.params, lr=cfg.lr, momentum=cfg.momentum,
                weight_decay=0.0 if cfg.decay_to_identity else cfg.weight_decay,
            )  # fmt: skip
            seconds += time.perf_counter() - start
            best, low = math.inf, 0
            for epoch in range(-cfg.warmup_epochs, cfg.epochs):
                start = time.perf_counter()
                if epoch == 0 and cfg.ema is not None:
                    self.average = [p.detach().clone() for p in self.params]
                if cfg.schedule == "cosine" and epoch >= 0:
                    optimizer.param_groups[0]["lr"] = (
                        cfg.lr * (1 + math.cos(math.pi * epoch / cfg.epochs)) / 2
                    )
                means: dict[str, Tensor] = {}
                correct = torch.zeros((), device=self.device)
                steps = self.warm_up(epoch) if epoch < 0 else self.epoch(epoch, optimizer, correct)
                for event in steps:
                    assert isinstance(event, StepEnd)
                    for name, value in event.losses.items():
                        assert isinstance(value, Tensor)
                        means[name] = means.get(name, torch.zeros_like(value)) + value / self.clean.steps
                    yield event
                losses = {name: float(value) for name, value in means.items()}
                seen = self.clean.passes * len(self.clean.labels)
                accuracy = float(correct) / seen if epoch >= 0 else base
                if not all(math.isfinite(value) for value in losses.values()):
                    reason = "The loss is no longer a number: lower the learning rate or clip the gradient."
                    yield self.failed(reason, base / 2, seconds, start)
                    return
                low = low + 1 if accuracy < base / 2 else 0
                if low == COLLAPSE_EPOCHS:
                    reason = f"The accuracy on the clean images stayed below half of its start for {low} epochs: {REMEDY}"
                    yield self.failed(reason, base / 2, seconds, start)
                    return
                objective_value = None
                if self.held_out is not None and epoch >= 0:
                    objective_value = self.held_out_objective()
                good = low == 0 and (objective_value is None or objective_value < best)
                if good:
                    self.keep(epoch)
                    best = objective_value if objective_value is not None else best
                seconds += time.perf_counter() - start
                with self.as_left_behind():  # whoever measures now, measures what would be the result
                    yield EpochEnd(epoch, losses, seconds, good, objective_value)
            start = time.perf_counter()
            if low or (self.kept_epoch == epoch and not self.ends_well(base / 2)):
                reason = f"Clean accuracy ended below half of its start: {REMEDY}"
                yield self.failed(reason, base / 2, seconds, start)
                return
            seconds += time.perf_counter() - start
            yield Finished(self.kept_epoch, seconds)
        finally:
            self.polarizer.load_state_dict(self.kept)
            self.polarizer.eval().requires_grad_(True)
            for param in self.params:
                param.grad = None

    def epoch(self, epoch: int, optimizer: torch.optim.Optimizer, correct: Tensor) -> Iterator[Event]:
        """The bi-level problem over the batches of one epoch; adds to `correct` the clean images classified right."""
        if self.cfg.refresh == "epoch":
            self.universal = torch.zeros_like(self.universal)
        for step, chosen in enumerate(self.clean.shuffled()):
            where = chosen.to(self.device)
            y = self.clean.labels[where]
            x, h = self.clean.x(chosen), self.clean.features(chosen)
            result = self.losses(x, h, y, fixed=self.fixed_of(chosen, x, h, y) if self.attacks_base else None)
            if result.universal is not None:
                self.universal = result.universal
            loss = objective.total(result.losses, self.weights)
            self.update(optimizer, loss)
            correct += result.correct
            losses = {name: value.detach() for name, value in result.losses.items()}
            yield StepEnd(epoch, step, losses | {"total": loss.detach()})

    @torch.no_grad()
    def clean_accuracy(self) -> Tensor:
        """Accuracy on D_bn, a scalar on the device."""
        order = torch.arange(len(self.clean.labels)).split(256)
        right = [
            self.suffix(self.clean.features(c)).argmax(1).eq(self.clean.labels[c.to(self.device)])
            for c in order
        ]
        return torch.cat(right).float().mean()

    def held_out_objective(self) -> float:
        """Training objective on the clean images that were held out of D_bn."""
        assert self.held_out is not None
        sums = torch.zeros((), device=self.device)
        count = len(self.held_out.labels)
        with self.as_left_behind():
            for chosen in torch.arange(count).split(256):
                x = self.held_out.images[chosen].to(self.device).float() / 255
                x = x.contiguous(memory_format=torch.channels_last)
                with torch.no_grad():
                    h = self.clean.prefix(x)
                result = self.losses(x, h, self.held_out.labels[chosen].to(self.device), stop_early=False)
                sums += objective.total(result.losses, self.weights).detach() * len(chosen)
        return float(sums) / count


def _split(clean: ImageSet, cfg: NPDConfig) -> tuple[ImageSet, ImageSet | None]:
    """Hold out a share of every class, for choosing the epoch."""
    if cfg.holdout == 0:
        return clean, None
    rest, held = hold_out(clean, cfg.holdout, cfg.seed + 1)
    if held.size == 0:
        raise ConfigError(
            f"A holdout needs a class with 2 of the {clean.size} clean images: use more, or none."
        )
    if rest.size < 2:
        raise ConfigError(f"A holdout of {cfg.holdout:g} leaves fewer than 2 of {clean.size} clean images.")
    return rest, held


def train_polarizer(
    net: PolarizedNet,
    clean: ImageSet,
    cfg: NPDConfig,
    device: torch.device | None = None,
    *,
    variant: str = "npd",
    known: Rule | None = None,
) -> Generator[Event, None, None]:
    """Algorithm 1. Changes only `net.polarizer`, which holds the kept state when the generator ends or is closed.

    Args:
        net: moved to `device`; in eval mode afterwards.
        clean: D_bn, the defender's clean images.
        device: where to train; None: where `net` is.
        variant: what stands in for the trigger: a name in VARIANTS.
        known: which class the attacker wants of an image, for the variants that know; the others do not ask. Images
            that already have it are left out of the inner level, L_asr and L_bce, and stay in L_bn.
    Raises:
        UnknownNameError: no such variant.
        ConfigError: fewer than 2 clean images, or no target where one has to be known.
    """
    return Trainer(net, clean, cfg, device or next(net.parameters()).device, variant, known).events()

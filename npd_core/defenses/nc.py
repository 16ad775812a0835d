"""Neural cleanse: the smallest patch that turns every image into a class is unusually small for the target
class. Such patches are searched for every class, outliers are stamped on clean images, and the network
unlearns them. Wang et al., "Neural Cleanse", S&P 2019."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from npd_core.config.baselines import NCConfig
from npd_core.data.clean import hold_out
from npd_core.data.load import ImageSet
from npd_core.defenses.common import Repair, augmented, fine_tune, last_linear
from npd_core.device import autocast
from npd_core.errors import ConfigError
from npd_core.events import EpochEnd, Event, Started, StepEnd
from npd_core.models.normalized import Normalized
from npd_core.training.batches import Batches
from npd_core.training.steps import LossMeans, set_gradients

# --- one class


class Patch(NamedTuple):
    """A trigger x' = (1 - m) x + m q."""

    mask: Tensor
    """m, (..., 1, H, W) in [0, 1]."""
    pattern: Tensor
    """q, (..., 3, H, W) in [0, 1]."""

    def stamp(self, x: Tensor) -> Tensor:
        """Stamp x, (B, 3, H, W) in [0, 1]. Returns the same shape, or (G, B, 3, H, W) for G patches."""
        return torch.lerp(x, self.pattern, self.mask)


@dataclass
class CostSchedule:
    """The weight of the mask's norm, adapted after every epoch so that the mask gets as small as success
    allows."""

    cfg: NCConfig
    cost: float = 0.0
    successes: int = 0
    """Successful epochs in a row since the cost was last moved up."""
    failures: int = 0
    moved_up: bool = False
    moved_down: bool = False
    best: float = math.inf
    """Smallest norm of a successful epoch."""
    anchor: float = math.inf
    """The best norm when it last fell by more than `cfg.gain`."""
    stale: int = 0
    """Epochs since then."""

    def __post_init__(self) -> None:
        self.cost = self.cfg.cost

    @property
    def done(self) -> bool:
        """Whether the search has converged."""
        return self.moved_up and self.moved_down and self.stale >= self.cfg.early_stop

    def update(self, share: float, norm: float) -> bool:
        """Record an epoch by the share of images that reached the class and the norm of the mask. Returns
        whether this mask is the best so far."""
        success = share >= self.cfg.success
        better = success and norm < self.best
        if better:
            self.best = norm
        if self.best < (1 - self.cfg.gain) * self.anchor:
            self.anchor, self.stale = self.best, 0
        elif self.best < math.inf:
            self.stale += 1
        self.successes = self.successes + 1 if success else 0
        self.failures = 0 if success else self.failures + 1
        if self.successes == self.cfg.patience:
            self.cost *= self.cfg.cost_up
            self.successes, self.moved_up = 0, True
        elif self.failures == self.cfg.patience:
            self.cost /= self.cfg.cost_down
            self.failures, self.moved_down = 0, True
        return better


class Candidate:
    """The search for the patch of one class.

    Args:
        label: the class.
        size: height and width of the images.
    """

    def __init__(self, label: int, size: tuple[int, int], cfg: NCConfig, device: torch.device):
        self.label = label
        self.raw_mask = torch.ones(1, *size, device=device, requires_grad=True)
        self.raw_pattern = torch.ones(3, *size, device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam(
            [self.raw_mask, self.raw_pattern], cfg.trigger_lr, cfg.trigger_betas
        )
        self.schedule = CostSchedule(cfg)
        self.epochs = 0
        self.norm = math.inf
        """Norm of the kept patch: the best, or that of the first epoch while none was successful."""
        self.patch: Patch | None = None

    def note(self, share: float, norm: float) -> None:
        """End an epoch: keep the patch if it is the best, or the first."""
        if self.schedule.update(share, norm) or self.epochs == 0:
            mask, pattern = squashed(self.raw_mask.detach()), squashed(self.raw_pattern.detach())
            self.norm, self.patch = norm, Patch(mask, pattern)
        self.epochs += 1


def squashed(raw: Tensor) -> Tensor:
    """Return tanh(raw) / 2 + 0.5, which lies in [0, 1]."""
    return raw.tanh() / 2 + 0.5


# --- several classes at once


def search_epoch(
    net: Normalized, running: Sequence[Candidate], batches: Batches, cfg: NCConfig, number: int
) -> Generator[Event, None, dict[str, float]]:
    """Search for several classes side by side in one pass over the clean images: every image goes through the
    network once for each class, in one batch. The classes do not influence each other, and the order of the
    images depends on the epoch alone, so the result is that of one class at a time.

    Args:
        net: in eval mode and frozen.
        running: classes with the same number of epochs behind them.
        number: of the epoch, in the events.
    Returns:
        the means of the losses.
    """
    device = batches.device
    batches.generator.manual_seed(cfg.seed * 100_003 + running[0].epochs)
    labels = torch.tensor([c.label for c in running], device=device)
    cost = torch.tensor([c.schedule.cost for c in running], device=device)
    params = [c.raw_mask for c in running] + [c.raw_pattern for c in running]
    hits = torch.zeros(len(running), device=device)
    means = LossMeans()
    for step, (x, _) in enumerate(batches.shuffled()):
        masks = squashed(torch.stack(params[: len(running)]))
        patterns = squashed(torch.stack(params[len(running) :]))
        stamped = Patch(masks[:, None], patterns[:, None]).stamp(x).flatten(0, 1)
        with autocast(device, cfg.precision):
            z = net(stamped.contiguous(memory_format=torch.channels_last)).float()
        target = labels.repeat_interleave(len(x))
        miss = F.cross_entropy(z, target, reduction="none").view(len(running), -1).mean(1)
        norms = masks.sum(dim=(1, 2, 3))
        loss = miss + cost * norms
        set_gradients(params, torch.autograd.grad(loss.sum(), params))
        for candidate in running:
            candidate.optimizer.step()
        hits += z.detach().argmax(1).eq(target).view(len(running), -1).sum(1)
        losses = zip(LOSSES, torch.stack([miss, norms, loss]).detach().mean(1), strict=True)
        yield StepEnd(number, step, means.add(dict(losses)))
    with torch.no_grad():
        norms = squashed(torch.stack(params[: len(running)])).sum(dim=(1, 2, 3))
    shares = hits / len(batches)
    for candidate, share, norm in zip(running, shares.tolist(), norms.tolist(), strict=True):
        candidate.note(share, norm)
    return means.read()


LOSSES = ("target", "norm", "total")
"""Means over the classes: cross entropy toward the class, norm of the mask, their weighted sum."""


def search(
    repair: Repair, candidates: Sequence[Candidate], batches: Batches, cfg: NCConfig, *, span: int, first: int
) -> Iterator[Event]:
    """Continue the search of every class for `span` epochs, or until it has converged and leaves its batch.

    Args:
        candidates: classes with the same number of epochs behind them, or converged ones.
        first: number of the first epoch in the events; every group of classes has its full span of numbers,
            even if it converges before.
    """
    for group in range(0, len(candidates), cfg.classes_at_once):
        running = list(candidates[group : group + cfg.classes_at_once])
        start = first + group // cfg.classes_at_once * span
        for number in range(start, start + span):
            running = [c for c in running if not c.schedule.done]
            if not running:
                break
            with repair.clock:
                means = yield from search_epoch(repair.net, running, batches, cfg, number)
            yield EpochEnd(number, means, repair.clock.seconds, False)


# --- all classes


class Outliers(NamedTuple):
    """Statistics of the norms of all classes."""

    median: float
    mad: float
    """1.4826 times the median absolute deviation, which estimates the standard deviation of normal values."""
    anomaly: list[float]
    """Distance from the median in MAD, one a class."""
    flagged: list[bool]


def outliers(norms: Sequence[float], threshold: float) -> Outliers:
    """Flag the classes with a norm more than `threshold` MAD below the median.

    The MAD is at least a millionth of the median: it is zero where more than half of the norms are equal.
    """
    values = torch.tensor(norms, dtype=torch.float64)
    median = values.quantile(0.5)
    gap = (values - median).abs()
    mad = 1.4826 * gap.quantile(0.5)
    anomaly = gap / torch.maximum(mad, 1e-6 * median).clamp(min=1e-12)
    flagged = (values < median) & (anomaly > threshold)
    return Outliers(float(median), float(mad), anomaly.tolist(), flagged.tolist())


def unlearning_set(clean: ImageSet, patches: Sequence[Patch], share: float, seed: int) -> ImageSet:
    """Return the clean images with a share of every class replaced by stamped copies, one for each patch,
    with true labels. Stamped images are rounded to 8 bits like all stored images.

    Args:
        patches: on the CPU.
    """
    rest, taken = hold_out(clean, share, seed)
    x = taken.images.float() / 255
    stamped = [patch.stamp(x).mul(255).round().to(torch.uint8) for patch in patches]
    labels = [taken.labels] * len(patches)
    return ImageSet(torch.cat([rest.images, *stamped]), torch.cat([rest.labels, *labels]))


def neural_cleanse(
    net: Normalized, clean: ImageSet, cfg: NCConfig, device: torch.device
) -> Generator[Event, None, None]:
    """Search a patch for every class, flag the classes with an unusually small one, and fine-tune all weights
    on clean images, some of them stamped with it. When no class is flagged the network stays as it is.

    Args:
        net: changed in place; in eval mode and frozen afterwards.
        clean: D_bn, all of it for the search.
    Yields:
        the search as warm-up, which may end early: classes come in groups of `cfg.classes_at_once`, each
        group with epoch numbers of its own; then `cfg.epochs` of fine-tuning, none when no class is flagged.
        `steps_per_epoch` counts one patch; a second one makes an epoch of fine-tuning longer.
        `Finished.details` holds, by class, `norms` and `anomaly` (distance from the median in MAD), further
        `median`, `mad`, `flagged`, and `screened_out`, the classes dropped after the screening.
    Raises:
        ConfigError: fewer than 2 clean images, a class that the network does not have, or fewer than 3
            classes.
    """
    classes = _classes(net, cfg)
    batches = augmented(clean, cfg, device)
    height, width = clean.images.shape[-2:]
    screening = cfg.screening_epochs < cfg.trigger_epochs and cfg.screening_keep < len(classes)
    screened = cfg.screening_epochs if screening else 0
    groups, left = (
        math.ceil(count / cfg.classes_at_once)
        for count in (len(classes), cfg.screening_keep if screened else len(classes))
    )
    warm_up = groups * screened + left * (cfg.trigger_epochs - screened)
    with Repair(net, device) as repair:
        yield Started(cfg.epochs, warm_up, batches.steps, clean.size, str(device))
        candidates = [Candidate(label, (height, width), cfg, device) for label in classes]
        first = -warm_up
        if screened:
            yield from search(repair, candidates, batches, cfg, span=screened, first=first)
            candidates = sorted(candidates, key=lambda c: (c.schedule.best, c.norm))[: cfg.screening_keep]
            candidates.sort(key=lambda c: classes.index(c.label))
            first += groups * screened
        yield from search(repair, candidates, batches, cfg, span=cfg.trigger_epochs - screened, first=first)
        found = outliers([c.norm for c in candidates], cfg.outlier)
        flagged = [c for c, flag in zip(candidates, found.flagged, strict=True) if flag]
        details = {
            "norms": {str(c.label): c.norm for c in candidates},
            "anomaly": {str(c.label): value for c, value in zip(candidates, found.anomaly, strict=True)},
            "median": found.median,
            "mad": found.mad,
            "flagged": [c.label for c in flagged],
            "screened_out": sorted(set(classes) - {c.label for c in candidates}),
        }
        if flagged:
            patches = [Patch(*(t.cpu() for t in c.patch)) for c in flagged if c.patch is not None]
            stamped = augmented(unlearning_set(clean, patches, cfg.unlearn, cfg.seed), cfg, device)
            reason = yield from fine_tune(repair, stamped, cfg, epochs=cfg.epochs)
            if reason:
                yield repair.failed(reason)
                return
        yield repair.finished(**details)


def _classes(net: Normalized, cfg: NCConfig) -> list[int]:
    count = last_linear(net).out_features
    classes = list(range(count)) if cfg.classes is None else list(cfg.classes)
    if max(classes) >= count:
        raise ConfigError(f"`classes` names class {max(classes)}, but the network has 0 to {count - 1}.")
    if len(classes) < 3:
        raise ConfigError(
            f"Neural cleanse compares classes and needs at least 3, but the network has {count}."
        )
    return classes

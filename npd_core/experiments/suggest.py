"""Choose the insertion layer and the loss weights by clean images alone, as a defender has to.

Earlier layers keep more of a triggered image's true class, but a polarizer there costs more clean accuracy.
The rule is therefore: the earliest layer that clean accuracy allows. Clean accuracy is cross-validated on the
defender's own images; neither triggers nor test images are used. A perturbation budget is chosen by the share
of clean images that it moves to their surrogate target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from npd_core.config.npd import NPDConfig
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError
from npd_core.evaluation import predict
from npd_core.events import Event, Failed
from npd_core.models.normalized import Normalized
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.perturbation import BALLS, pgd, runner_up
from npd_core.polarizer.training import train_polarizer

BATCH = 250
SAME = 0.02
"""Shares of images that differ by no more count as equal."""


class Candidate(NamedTuple):
    """A layer and a weight, with the clean accuracy on held-out images."""

    layer: str
    weight: float
    """lambda 2 = lambda 3."""
    before: float
    """Clean accuracy of the backdoored network on the same images, in [0, 1]."""
    after: float
    seconds: float

    @property
    def loss(self) -> float:
        """Clean accuracy lost, as a fraction; negative when it rose."""
        return self.before - self.after


def fold_of(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Return the fold of each image, (N,) in [0, folds), each class spread as evenly as possible.

    Args:
        labels: (N,) int64.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    fold, given = torch.empty_like(labels), 0
    for label in labels.unique():
        members = order[labels[order] == label]
        fold[members] = (torch.arange(len(members)) + given) % folds
        given += len(members)
    return fold


def candidates(
    backdoored: Normalized,
    clean: ImageSet,
    layers: Sequence[str],
    weights: Sequence[float],
    config: NPDConfig,
    size: int,
    device: torch.device,
    folds: int = 5,
    held: int | None = None,
) -> Iterator[Event | Candidate]:
    """Train a polarizer per layer, weight and fold. Yields the events of each training, then its Candidate.

    Args:
        backdoored: classifier of [0, 1] pixels on `device`; not changed.
        clean: D_bn.
        layers: names of insertion layers.
        weights: values of lambda 2 = lambda 3.
        config: everything else.
        size: height and width of the images.
        folds: number of parts, each held out once.
        held: hold out only this many parts, which is faster and less certain; None: all.
    Raises:
        ConfigError: fewer than 2 folds, or more than images of the smallest class.
        UnknownNameError: no such layer.
    """
    smallest = int(clean.labels.unique(return_counts=True)[1].min())
    if not 2 <= folds <= smallest:
        raise ConfigError(
            f"`folds` must be from 2 to {smallest}, the number of images of the smallest class, got {folds}."
        )
    fold = fold_of(clean.labels, folds, config.seed)
    rounds = range(min(folds, held or folds))
    for layer in layers:
        for weight in weights:
            cfg = replace(config, lambda2=weight, lambda3=weight)
            right_before = right_after = total = 0
            seconds = 0.0
            for number in rounds:
                out = fold == number
                rest = ImageSet(clean.images[~out], clean.labels[~out])
                kept = ImageSet(clean.images[out], clean.labels[out])
                net = PolarizedNet(backdoored, layer, size)
                last: Event | None = None
                for event in train_polarizer(net, rest, cfg, device):
                    last = event
                    yield event
                assert last is not None
                seconds += getattr(last, "seconds", 0.0)
                total += len(kept.labels)
                right_before += _right(backdoored, kept, device)
                right_after += 0 if isinstance(last, Failed) else _right(net, kept, device)
            yield Candidate(layer, weight, right_before / total, right_after / total, seconds)


def _right(net: nn.Module, images: ImageSet, device: torch.device) -> int:
    return int(predict(net, images.images, device).argmax(1).eq(images.labels.to(device)).sum())


@torch.no_grad()
def reached(
    backdoored: Normalized, clean: ImageSet, budgets: Sequence[float], config: NPDConfig, device: torch.device
) -> dict[float, float]:
    """Return, per budget rho, the share of clean images that the inner level (Eq. 4) moves to their surrogate
    target.

    Args:
        backdoored: classifier of [0, 1] pixels on `device`; attacked without a polarizer.
        clean: D_bn.
        config: norm, number, size and kind of the inner steps; all of them are taken.
    Raises:
        ConfigError: an invalid budget.
    """
    balls = {rho: BALLS[config.norm](replace(config, rho=rho).rho) for rho in budgets}
    hits = dict.fromkeys(budgets, 0)
    for images, labels in zip(clean.images.split(BATCH), clean.labels.split(BATCH), strict=True):
        x, y = images.to(device).float() / 255, labels.to(device)
        target = runner_up(backdoored(x), y)
        for rho, ball in balls.items():
            with torch.enable_grad():
                found = pgd(
                    backdoored, x, target, ball=ball, steps=config.inner_steps, step_size=config.inner_lr,
                    step=config.inner_step,
                )  # fmt: skip
            hits[rho] += int(found.logits.argmax(1).eq(target).sum())
    return {rho: hit / len(clean.labels) for rho, hit in hits.items()}


def choose_budget(shares: Mapping[float, float]) -> float:
    """Return the smallest budget whose share is within SAME of the largest."""
    most = max(shares.values())
    return min(rho for rho, share in shares.items() if share >= most - SAME)


def choose(found: Sequence[Candidate], max_loss: float) -> Candidate | None:
    """Return the earliest layer that loses at most `max_loss` with some weight, and the largest such weight.

    Args:
        found: candidates in the order of the forward pass.
        max_loss: clean accuracy that may be lost, as a fraction.
    Returns:
        None: no layer keeps within the limit.
    """
    layers = list(dict.fromkeys(candidate.layer for candidate in found))
    for layer in layers:
        fitting = [c for c in found if c.layer == layer and c.loss <= max_loss]
        if fitting:
            return max(fitting, key=lambda c: c.weight)
    return None

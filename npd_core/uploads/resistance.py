"""What can be measured without the trigger: held-out images that keep their class under an adversarial
perturbation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from npd_core.config.npd import NPDConfig
from npd_core.data.load import ImageSet
from npd_core.polarizer.perturbation import BALLS, pgd, runner_up

MOST = 200
"""Images that are perturbed, at most."""


class Resistance(NamedTuple):
    """Shares, in [0, 1], of images that are predicted as their true class although they are perturbed."""

    images: int
    before: float
    """Of the uploaded network, on perturbations made for it."""
    transferred: float
    """Of the repaired network, on the same perturbed images."""
    after: float
    """Of the repaired network, on perturbations made for it: the harder test."""


def resistance(backdoored: nn.Module, repaired: nn.Module, data: ImageSet, cfg: NPDConfig) -> Resistance:
    """Measure the resistance of a network before and after its defense.

    Args:
        backdoored, repaired: classifiers of [0, 1] pixels, in eval mode.
        data: images that the defense did not use.
        cfg: gives budget, norm and steps of the perturbation.
    """
    order = torch.randperm(data.size, generator=torch.Generator().manual_seed(0))[:MOST]
    chosen = data.subset(order)
    kept = [0, 0, 0]
    for x, y in chosen.batches(max(1, min(100, 100 * 64**2 // data.images[0, 0].numel()))):
        one = perturbed(backdoored, x, y, cfg)
        other = perturbed(repaired, x, y, cfg)
        with torch.no_grad():
            for k, (net, images) in enumerate(((backdoored, one), (repaired, one), (repaired, other))):
                kept[k] += int(net(images).argmax(1).eq(y).sum())
    return Resistance(chosen.size, *(count / max(1, chosen.size) for count in kept))


def perturbed(net: nn.Module, x: Tensor, y: Tensor, cfg: NPDConfig) -> Tensor:
    """Return x + delta, (B, 3, H, W) in [0, 1], with delta of Eq. 4 toward the runner-up class of each
    image."""
    with torch.no_grad():
        target = runner_up(net(x), y)
    with torch.enable_grad():
        found = pgd(
            net, x, target, ball=BALLS[cfg.norm](cfg.rho), steps=cfg.inner_steps, step_size=cfg.inner_lr,
            step=cfg.inner_step,
        )  # fmt: skip
    return found.x

"""What can be known of a backdoor without its trigger: how many held-out images keep their class under the perturbation
that NPD imagines in the trigger's place (Eq. 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from npd_core.config.npd import NPDConfig
from npd_core.data.load import ImageSet
from npd_core.polarizer.perturbation import BALLS, pgd, runner_up

MOST = 200
"""Images that are perturbed, at most; the first of the held-out ones, which are in no order of classes."""


class Resistance(NamedTuple):
    """Shares, in [0, 1], of images that keep their true class. An image that is wrong without any change counts as not
    resisting."""

    images: int
    before: float
    """The network as it was brought, perturbed against itself."""
    transferred: float
    """The repaired network, given the same perturbed images."""
    after: float
    """The repaired network, perturbed against itself anew: the harder test."""


def resistance(backdoored: nn.Module, repaired: nn.Module, data: ImageSet, cfg: NPDConfig) -> Resistance:
    """Perturb the images toward the strongest wrong class, as the training does (budget, norm and steps of `cfg`), and
    count.

    Args:
        backdoored, repaired: classifiers of [0, 1] pixels, in eval mode.
        data: images that the defense never saw.
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
    """x + delta, (B, 3, H, W) in [0, 1]: delta within the budget pulls each image toward its strongest wrong class."""
    with torch.no_grad():
        target = runner_up(net(x), y)
    with torch.enable_grad():
        found = pgd(
            net, x, target, ball=BALLS[cfg.norm](cfg.rho), steps=cfg.inner_steps, step_size=cfg.inner_lr,
            step=cfg.inner_step,
        )  # fmt: skip
    return found.x

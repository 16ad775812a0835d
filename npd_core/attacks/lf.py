"""LF: one low-frequency pattern, added to every image. Zeng et al., ICCV 2021."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npd_core.attacks.assets import asset
from npd_core.attacks.base import AllToOne, Attack, Making
from npd_core.data.load import ImageSet
from npd_core.data.spec import DatasetSpec
from npd_core.events import EpochEnd, Started, StepEnd

STRENGTH = 0.2
"""Largest value of the pattern, in [0, 1] pixel units; its smallest is 0."""
FREQUENCIES = 4
"""Cosines along each side: the pattern is a sum of 4 x 4 of them per channel."""
COMPARE_EVERY = 20
"""Steps between two measurements of the pattern."""
LR = 0.05


@dataclass(frozen=True, eq=False)
class Added:
    """x' = clip(x + pattern)."""

    pattern: Tensor
    """(3, H, W) in [0, 1]."""

    def __call__(self, x: Tensor) -> Tensor:
        return (x + self.pattern.to(x)).clamp(0, 1)


def cosines(size: int) -> Tensor:
    """Return the lowest rows of the inverse DCT-II matrix, orthonormal: (FREQUENCIES, size)."""
    place = (torch.arange(size) + 0.5) * (math.pi / size)
    rows = torch.cos(torch.arange(FREQUENCIES)[:, None] * place) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def smooth_pattern(coefficients: Tensor, size: int) -> Tensor:
    """DCT coefficients (3, FREQUENCIES, FREQUENCIES) -> pattern (3, size, size) with minimum 0 and maximum
    STRENGTH."""
    rows = cosines(size).to(coefficients)
    u = torch.einsum("cij,ih,jw->chw", coefficients, rows, rows)
    return STRENGTH * (u - u.min()) / (u.max() - u.min())


def lf(dataset: DatasetSpec, assets: Mapping[str, Tensor], *, target: int = 0) -> Attack:
    """A smooth pattern added to the image, all classes to `target`.

    Args:
        assets: `pattern`, (3, H, W).
    """
    pattern = asset(assets, "pattern", (3, dataset.size, dataset.size))
    return Attack(
        "lf", Added(pattern), AllToOne(target), params={"target": target}, assets={"pattern": pattern}
    )


def make_lf(
    dataset: DatasetSpec,
    data: ImageSet,
    clean_net: nn.Module | None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    target: int = 0,
    steps: int = 300,
    batch_size: int = 128,
) -> Making:
    """Optimize a smooth pattern that moves the predictions of a clean model towards the target.

    It need not succeed: poisoning does the rest. The pattern with the smallest cross entropy on one fixed
    batch is kept, measured every COMPARE_EVERY steps and at the end.

    Args:
        data: training images.
        clean_net: classifier of [0, 1] pixels on `device`, in eval mode; None: a random smooth pattern.
    """
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(3, FREQUENCIES, FREQUENCIES, generator=generator).to(device)
    best = smooth_pattern(coefficients, dataset.size)
    if clean_net is not None:
        began = time.perf_counter()
        yield Started(1, 0, steps, data.size, str(device))

        def pull(pattern: Tensor, chosen: Tensor) -> Tensor:
            x = data.images[chosen].to(device).float() / 255
            logits = clean_net(Added(pattern)(x))
            return F.cross_entropy(logits, torch.full((len(x),), target, device=device))

        fixed = torch.randperm(data.size, generator=generator)[: 2 * batch_size]
        coefficients.requires_grad_(True)
        optimizer = torch.optim.Adam([coefficients], lr=LR)
        with torch.no_grad():
            smallest = pull(best, fixed)
        for step in range(steps):
            chosen = torch.randint(data.size, (batch_size,), generator=generator)
            loss = pull(smooth_pattern(coefficients, dataset.size), chosen)
            (coefficients.grad,) = torch.autograd.grad(loss, [coefficients])
            optimizer.step()
            if (step + 1) % COMPARE_EVERY == 0 or step == steps - 1:
                with torch.no_grad():
                    candidate = smooth_pattern(coefficients, dataset.size)
                    reached = pull(candidate, fixed)
                    best = torch.where(reached < smallest, candidate, best)
                    smallest = torch.minimum(reached, smallest)
            yield StepEnd(0, step, {"total": loss.detach()})
        yield EpochEnd(0, {"total": float(smallest)}, time.perf_counter() - began)
    return lf(dataset, {"pattern": best.detach().cpu()}, target=target)

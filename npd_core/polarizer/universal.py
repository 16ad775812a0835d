"""Universal perturbations toward every class, found on clean images.

One small perturbation that moves most images to one class is hard to find in a clean network, and easy toward
the target of a backdoor: the trigger has prepared the way. So they are stand-ins for an unknown trigger that
changes every image alike, and how well each succeeds says which class a backdoor may lead to.
Moosavi-Dezfooli et al., CVPR 2017.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from npd_core.data.load import ImageSet
from npd_core.polarizer.perturbation import BALLS, LogitsFn
from npd_core.training.batches import as_input

BUDGETS = (1.5, 3.0)
"""L2 norms of the perturbations of a 32 x 32 image; they grow with its side."""
STEPS = 6
STEP = 0.4
"""Length of the first step as a share of the budget; the last ones are shorter, linearly."""
IMAGES = 40
"""Images in each step of one class; fewer where there are many classes."""
IMAGES_OF_ALL = 240
"""Images in a step of all classes, about; never fewer than LEAST for a class."""
LEAST = 8
AT_ONCE = 256
"""Images in one pass."""
FLOOR = 0.02
"""Success from which a class is drawn at all: below, it counts as this much."""
SCALE = (0.5, 1.0)
"""Range of the factor that each copy's perturbation is drawn with."""


class Universal(NamedTuple):
    """Perturbations toward every class."""

    deltas: Tensor
    """(budgets, K, 3, H, W), in [0, 1] pixel units; not clipped."""
    success: Tensor
    """(budgets, K) in [0, 1]: share of other classes' images that each moves to its class."""


def find_universal(
    logits: LogitsFn, clean: ImageSet, classes: int, seed: int, device: torch.device
) -> Universal:
    """Minimize CE(f(clip(x + delta_k)), k) over delta_k in an l2 ball, for every class k and budget: STEPS
    steps along the normalized gradient, on new images of other classes in each.

    Args:
        logits: the network, which is not changed.
        clean: N images of at least 2 classes.
        classes: K.
        seed: of the images in each step.
    """
    generator = torch.Generator().manual_seed(seed)
    others = [(clean.labels != k).nonzero()[:, 0] for k in range(classes)]
    count = min(min(len(rows) for rows in others), max(LEAST, min(IMAGES, IMAGES_OF_ALL // classes)))
    images = clean.images.to(device)
    found = []
    for budget in BUDGETS:
        ball = BALLS["l2"](budget * images.shape[-1] / 32)
        delta = torch.zeros(classes, *images.shape[1:], device=device)
        for step in range(STEPS + 1):
            gradient, success = _gradient(logits, images, delta, others, count, generator)
            if step < STEPS:
                length = STEP * ball.rho * (1 - step / STEPS)
                norm = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
                delta = ball.project(delta - length * gradient / norm)
        found.append((delta, success))
    return Universal(torch.stack([d for d, _ in found]), torch.stack([s for _, s in found]))


def _gradient(
    logits: LogitsFn, images: Tensor, delta: Tensor, others: list[Tensor], count: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the summed loss for each perturbation, as `delta`, and the success of each,
    (K,); on `count` random images per class."""
    gradient, success = [], []
    for group in torch.arange(len(delta)).split(max(1, AT_ONCE // count)):
        chosen = [others[k][torch.randperm(len(others[k]), generator=generator)[:count]] for k in group]
        x = as_input(images[torch.cat(chosen).to(images.device)])
        goal = group.to(images.device).repeat_interleave(count)
        part = delta[group[0] : group[-1] + 1].detach().requires_grad_(True)
        with torch.enable_grad():
            z = logits((x + part.repeat_interleave(count, 0)).clamp(0, 1)).float()
            (found,) = torch.autograd.grad(F.cross_entropy(z, goal, reduction="sum"), [part])
        gradient.append(found)
        success.append(z.detach().argmax(1).eq(goal).float().view(len(group), count).mean(1))
    return torch.cat(gradient), torch.cat(success)


def perturb(x: Tensor, y: Tensor, found: Universal, generator: Generator) -> Tensor:
    """Add to each image the perturbation of another class, drawn by the square of its success, of a random
    budget, times a factor uniform in SCALE.

    Args:
        x: (B, 3, H, W) float32 in [0, 1], on the CPU.
        y: labels, (B,) int64.
        generator: on the CPU; the only source of random numbers.
    Returns:
        the same shape and range.
    """
    deltas, success = found.deltas.cpu(), found.success.cpu()
    weight = success.amax(0).clamp(min=FLOOR).square().repeat(len(x), 1)
    weight.scatter_(1, y[:, None], 0.0)
    toward = torch.multinomial(weight, 1, generator=generator)[:, 0]
    budget = torch.randint(len(deltas), (len(x),), generator=generator)
    low, high = SCALE
    scale = low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=generator)
    return (x + scale * deltas[budget, toward]).clamp(0, 1)

"""Planted backdoors: the defender's own, to judge settings by when the real trigger is unknown.

A copy of the network is fine-tuned on clean images, half of them with a random trigger and its target label.
A setting is then judged by how well it defends the copy, on clean images that neither the planting nor the
defense has seen. Neither a test image nor the real trigger takes part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError, unknown_name
from npd_core.evaluation import predict
from npd_core.metrics import Metrics
from npd_core.training.batches import Batches, as_input

PLANTS = ("patch", "optimized", "blend", "field")
"""Families of planted triggers. `optimized` is a patch that the network itself is most sensitive to."""
TAKES = 0.9
"""Attack success on held-out clean images from which a planted backdoor has taken."""
ACC_LOSS = 0.05
"""Largest loss of clean accuracy on held-out images by planting."""
EPOCHS = 30
"""Largest number of epochs of planting."""
TRIGGERED = 0.5
"""Triggered images added to every batch, as a share of it."""
BATCH = 64
CLIP = 1.0
"""Bound on the norm of the gradient while planting."""
LR = 5e-4
"""Of Adam."""
OPTIMIZE_STEPS = 30

Trigger = Callable[[Tensor], Tensor]
"""(B, 3, H, W) float32 in [0, 1] -> triggered images, the same shape and range."""


class Plant(NamedTuple):
    """A copy of a network with a planted backdoor."""

    family: str
    target: int
    net: nn.Module
    """Classifier of [0, 1] pixels, in eval mode."""
    trigger: Trigger
    metrics: Metrics
    """On the held-out clean images: clean accuracy, attack success and robust accuracy."""
    epochs: int
    """Epochs of planting."""

    @property
    def took(self) -> bool:
        return self.metrics.asr >= TAKES


def random_trigger(family: str, data: ImageSet, net: nn.Module, target: int, generator: Generator) -> Trigger:
    """Draw a trigger.

    Args:
        family: a name in PLANTS.
        data: clean images, which `blend` takes one of and `optimized` is optimized on.
        net: classifier of [0, 1] pixels, which `optimized` attacks.
    """
    shape = data.images.shape[1:]
    height = shape[1]
    scale = height / 32
    if family in ("patch", "optimized"):
        side = int(torch.randint(3, 6, (), generator=generator)) if family == "patch" else 6
        side = max(1, round(side * scale))
        row, column = (int(v) for v in torch.randint(0, height - side + 1, (2,), generator=generator))
        mask = torch.zeros(1, *shape[1:])
        mask[:, row : row + side, column : column + side] = 1
        pixels = torch.rand(shape, generator=generator)
        if family == "optimized":
            pixels = _optimized(pixels, mask, data, net, target)
        return lambda x: torch.where(mask.to(x.device) > 0, pixels.to(x), x)
    if family == "blend":
        pixels = torch.rand(shape, generator=generator)
        weight = 0.35 + 0.15 * float(torch.rand((), generator=generator))
        return lambda x: torch.lerp(x, pixels.to(x), weight)
    if family == "field":
        knots = 0.15 * torch.randn(1, 3, 4, 4, generator=generator)
        smooth = F.interpolate(knots, size=shape[1:], mode="bilinear", align_corners=True)
        return lambda x: (x + smooth.to(x)).clamp(0, 1)
    raise unknown_name("plant", family, PLANTS)


def _optimized(pixels: Tensor, mask: Tensor, data: ImageSet, net: nn.Module, target: int) -> Tensor:
    """Optimize the pixels under the mask until they lead most images to the target."""
    device = next(net.parameters()).device
    x = as_input(data.images[:64].to(device))
    mask, pixels = mask.to(device), pixels.to(device)
    goal = torch.full((len(x),), target, device=device)
    for _ in range(OPTIMIZE_STEPS):
        pixels = pixels.detach().requires_grad_(True)
        loss = F.cross_entropy(net(torch.where(mask > 0, pixels, x)), goal)
        (gradient,) = torch.autograd.grad(loss, [pixels])
        pixels = (pixels.detach() - 0.05 * gradient.sign()).clamp(0, 1)
    return pixels.detach().cpu()


def plant(
    net: nn.Module, data: ImageSet, held_out: ImageSet, family: str, seed: int, device: torch.device
) -> Plant:
    """Plant a random backdoor into a copy of a network. BatchNorm keeps its statistics.

    Args:
        net: classifier of [0, 1] pixels; not changed.
        data: clean images to plant with.
        held_out: clean images that decide whether it has taken.
        family: a name in PLANTS.
        seed: of the trigger, its target and the order.
    """
    generator = torch.Generator().manual_seed(seed)
    planted = copy.deepcopy(net).to(device).eval().requires_grad_(True)
    target = int(torch.randint(int(data.labels.max()) + 1, (), generator=generator))
    trigger = random_trigger(family, data, planted, target, generator)
    batches = Batches(data, BATCH, device, seed)
    optimizer = torch.optim.Adam(planted.parameters(), lr=LR)
    start = judge(planted, held_out, trigger, target, device)
    found, epoch = start, 0
    while epoch < EPOCHS and not (found.asr >= TAKES and found.acc >= start.acc - ACC_LOSS):
        epoch += 1
        for x, y in batches.shuffled():
            count = max(1, round(TRIGGERED * len(x)))
            chosen = torch.randperm(len(x), generator=generator)[:count].to(device)
            inputs = torch.cat([x, trigger(x[chosen])])
            labels = torch.cat([y, torch.full((count,), target, device=device)])
            optimizer.zero_grad()
            F.cross_entropy(planted(inputs), labels).backward()
            torch.nn.utils.clip_grad_norm_(planted.parameters(), CLIP)
            optimizer.step()
        found = judge(planted, held_out, trigger, target, device)
    planted.requires_grad_(False)
    return Plant(family, target, planted, trigger, found, epoch)


@torch.no_grad()
def judge(net: nn.Module, data: ImageSet, trigger: Trigger, target: int, device: torch.device) -> Metrics:
    """Measure clean accuracy, attack success and robust accuracy with a planted trigger; the latter two on
    images of other classes than the target."""
    labels = data.labels.to(device)
    correct = predict(net, data.images, device).argmax(1).eq(labels).float().mean()
    others = data.labels != target
    images = torch.cat([trigger(as_input(part)) for part in data.images[others].split(500)])
    called = predict(net, images, device).argmax(1)
    return Metrics(
        float(correct), float(called.eq(target).float().mean()),
        float(called.eq(labels[others.to(device)]).float().mean()),
    )  # fmt: skip


def halves(clean: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split clean images by halves of every class: to plant and defend with, and to judge with.

    Raises:
        ConfigError: a class with a single image.
    """
    order = torch.randperm(len(clean.labels), generator=torch.Generator().manual_seed(seed))
    first: list[Tensor] = []
    second: list[Tensor] = []
    for label in clean.labels.unique():
        members = order[clean.labels[order] == label]
        if len(members) < 2:
            raise ConfigError(
                "Planted backdoors need at least 2 clean images of every class: use more images."
            )
        first.append(members[: len(members) // 2])
        second.append(members[len(members) // 2 :])
    a, b = torch.cat(first).sort().values, torch.cat(second).sort().values
    return ImageSet(clean.images[a], clean.labels[a]), ImageSet(clean.images[b], clean.labels[b])

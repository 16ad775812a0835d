"""How much of the true class a polarizer can bring back at a layer: one trained on what no defender has.

It is given really triggered training images with their true labels, beside the same images clean. Its RA is
the ceiling of that network and layer, to be read beside the RA of a defense. It never chooses a setting.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from npd_core.attacks import Attack
from npd_core.data.load import ImageSet
from npd_core.device import autocast
from npd_core.evaluation import some
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.training.batches import as_input

IMAGES = 2500
"""Training images, each clean and triggered."""
EPOCHS = 12
BATCH = 32
LR = 0.01
MOMENTUM = 0.9
CLIP = 10.0


def train_ceiling(
    net: PolarizedNet, train: ImageSet, attack: Attack, device: torch.device, seed: int = 0
) -> PolarizedNet:
    """Train `net.polarizer` by cross-entropy on clean and triggered images with their true labels.

    Args:
        net: moved to `device` and changed; its polarizer must be new.
        train: the training split; IMAGES of them are used.
        attack: the real attack of the network.
        seed: of the order.
    Returns:
        `net`, in eval mode.
    """
    if len(train.labels) > IMAGES:
        train = train.subset(some(len(train.labels), IMAGES))
    net = net.to(device).to(memory_format=net.memory_format)
    labels = train.labels.to(device)
    with torch.no_grad(), autocast(device):
        clean, triggered = (
            torch.cat([net.prefix(as_input(part.to(device))) for part in images.split(250)])
            for images in (train.images, attack.apply(train.images))
        )
        net.polarizer.fold_statistics(net.features(h) for h in clean.split(250))
    params = list(net.polarizer.parameters())
    optimizer = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for chosen in _batches(len(labels), generator, device):
            h = torch.cat([clean[chosen], triggered[chosen]])
            with autocast(device):
                logits = net.suffix(h.contiguous(memory_format=net.memory_format)).float()
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[chosen].repeat(2)).backward()
            torch.nn.utils.clip_grad_norm_(params, CLIP)
            optimizer.step()
        schedule.step()
    return net.eval()


def _batches(count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
    return torch.randperm(count, generator=generator).to(device).split(BATCH)

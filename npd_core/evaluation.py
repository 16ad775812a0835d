"""Measure ACC, ASR and RA of a network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from npd_core.attacks import Attack
from npd_core.attacks.poison import PoisonedTest, poison_test_set
from npd_core.data.load import ImageSet, load_dataset
from npd_core.device import autocast
from npd_core.metrics import Metrics


class TestSets(NamedTuple):
    """Test images for the three metrics."""

    clean: ImageSet
    poisoned: PoisonedTest


def test_sets(dataset: str, attack: Attack, limit: int | None = None) -> TestSets:
    """Return the test split of `dataset`, clean and triggered.

    Args:
        limit: at most this many images, always the same random ones; None: all.
    """
    clean = load_dataset(dataset, "test")
    if limit is not None and limit < len(clean.labels):
        clean = clean.subset(some(len(clean.labels), limit))
    return TestSets(clean, poison_test_set(clean, attack))


def some(total: int, count: int) -> Tensor:
    """Return the same random `count` indices below `total` every time, ascending."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort().values


@torch.inference_mode()
def predict(
    net: nn.Module, images: Tensor, device: torch.device, precision: str = "fp32", batch_size: int = 500
) -> Tensor:
    """Return logits, (N, K) float32 on `device`.

    Args:
        net: classifier of [0, 1] pixels, on `device`, in eval mode.
        images: (N, C, H, W), uint8 or float in [0, 1].
        batch_size: images of 32 x 32 pixels in one batch; fewer larger ones.
    """
    logits = []
    memory_format = getattr(net, "memory_format", torch.contiguous_format)
    pixels = images.shape[-2] * images.shape[-1]
    for batch in images.split(max(1, min(batch_size, batch_size * 32**2 // pixels))):
        x = batch.to(device)
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        with autocast(device, precision):
            logits.append(net(x.contiguous(memory_format=memory_format)).float())
    return torch.cat(logits)


def predict_proba(net: nn.Module, images: Tensor) -> Tensor:
    """Return class probabilities, (N, K) float32 on the CPU; images as for `predict`."""
    return predict(net, images, next(net.parameters()).device).softmax(1).cpu()


def evaluate(
    net: nn.Module, sets: TestSets, device: torch.device | None = None, precision: str = "fp32"
) -> Metrics:
    """Measure ACC, ASR and RA in one pass over the clean and the triggered images; the counts are read back
    once.

    Args:
        device: where to measure; the network is moved there. None: where it is.
        precision: fp32 (default, what is reported), bf16 or auto.
    """
    device = device or next(net.parameters()).device
    net.to(device)
    training = net.training
    net.eval()
    on_clean = predict(net, sets.clean.images, device, precision).argmax(1)
    correct = on_clean.eq(sets.clean.labels.to(device)).sum()
    counts = [correct, correct.new_zeros(()), correct.new_zeros(())]
    if len(sets.poisoned.labels):
        on_poisoned = predict(net, sets.poisoned.images, device, precision).argmax(1)
        counts[1] = on_poisoned.eq(sets.poisoned.targets.to(device)).sum()
        counts[2] = on_poisoned.eq(sets.poisoned.labels.to(device)).sum()
    net.train(training)
    acc, asr, ra = torch.stack(counts).tolist()
    total, poisoned = max(1, len(sets.clean.labels)), max(1, len(sets.poisoned.labels))
    return Metrics(acc / total, asr / poisoned, ra / poisoned)


def named(metrics: Metrics, sets: TestSets) -> dict[str, float | None]:
    """Return the metrics by name; ASR and RA are None where there are no triggered images."""
    values: dict[str, float | None] = dict(metrics._asdict())
    return values if len(sets.poisoned.labels) else values | {"asr": None, "ra": None}


def cross_accuracy(net: nn.Module, clean: ImageSet, attack: Attack, device: torch.device) -> float | None:
    """Return the share of images predicted as their true class under `Attack.cross`; None for an attack
    without it.

    Args:
        net: on `device`, in eval mode.
    """
    if attack.cross is None:
        return None
    predicted = predict(net, attack.apply_cross(clean.images), device).argmax(1)
    return float(predicted.eq(clean.labels.to(device)).float().mean())

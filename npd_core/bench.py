"""Measure the speed of training, inference and evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from npd_core.config.npd import NPDConfig
from npd_core.config.presets import preset
from npd_core.data.clean import load_clean
from npd_core.data.load import ImageSet
from npd_core.device import environment, resolve_device
from npd_core.evaluation import evaluate, test_sets
from npd_core.events import EpochEnd
from npd_core.polarizer import objective
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.training import Trainer
from npd_core.zoo import Zoo
from npd_core.zoo.weights import Backdoored


def forward_equivalents(
    backdoored: Backdoored, layer: str, cfg: NPDConfig, clean: ImageSet, device: torch.device
) -> tuple[float, float]:
    """Return the cost of one training step, in forward passes of its batch through the backdoored network.

    Every convolution and matrix product is counted, those of backward passes included. The early stop is off,
    so this is the full cost of S inner steps.

    Returns:
        a step of the first epoch, and one of a later epoch. They differ where the inner level attacks f_w, as
        its results are cached.
    """
    net = PolarizedNet(backdoored.net, layer, backdoored.card.image_size)
    trainer = Trainer(net, clean, replace(cfg, early_stop=None, precision="fp32"), device)
    trainer.clean.prepare()
    chosen = torch.arange(min(cfg.batch_size, len(clean.labels)))
    x, h, y = trainer.clean.x(chosen), trainer.clean.features(chosen), trainer.clean.labels[chosen.to(device)]
    optimizer = torch.optim.SGD(trainer.params, lr=cfg.lr)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        backdoored.net(x)
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as step:
            inner = trainer.inner_result(chosen, x, h, y) if trainer.attacks_base else None
            trainer.update(
                optimizer, objective.total(trainer.losses(x, h, y, inner=inner).losses, trainer.weights)
            )
        counts.append(step.get_total_flops() / forward.get_total_flops())
    return counts[0], counts[1]


def bench_model(
    model: str,
    layer: str | None = None,
    clean: float | int = 0.05,
    device: str = "auto",
    attack_on: str | None = None,
) -> dict[str, Any]:
    """Measure one model at one layer, with the preset of its data set: see `run_bench`."""
    where = resolve_device(device)
    backdoored = Zoo().load(model)
    card = backdoored.card
    backdoored.net.to(where)
    layer = layer or card.layer
    config = preset(card.dataset, size=card.image_size)
    if attack_on is not None:
        config = replace(config, attack_on=attack_on)
    cfg = replace(config, epochs=3, warmup_epochs=0)
    subset = load_clean(card.dataset, clean, cfg.seed)
    data = ImageSet(subset.images, subset.labels)
    first, later = forward_equivalents(backdoored, layer, cfg, data, where)
    net = PolarizedNet(backdoored.net, layer, card.image_size)
    ends = [event.seconds for event in Trainer(net, data, cfg, where).events() if isinstance(event, EpochEnd)]
    seconds = min(b - a for a, b in pairwise(ends))  # the first epoch warms up
    sets = test_sets(card.dataset, backdoored.attack, 2000)
    images = len(sets.clean.labels) + len(sets.poisoned.labels)
    evaluate(net, sets, where, "auto")
    start = time.perf_counter()
    evaluate(net, sets, where, "auto")
    return {
        "model": model,
        "layer": net.layer,
        "clean_images": len(data.labels),
        "batch_size": cfg.batch_size,
        "inner_steps": cfg.inner_steps,
        "forward_equivalents_per_step": round((first + (config.epochs - 1) * later) / config.epochs, 3),
        "forward_equivalents_first_epoch": round(first, 3),
        "attack_on": cfg.attack_on,
        "train_images_per_second": round(len(data.labels) / seconds, 1),
        "eval_images_per_second": round(images / (time.perf_counter() - start), 1),
        "seconds_per_epoch": round(seconds, 3),
    }


def run_bench(
    models: Sequence[str] = (),
    layers: Sequence[str] = (),
    device: str = "auto",
    clean: float | int = 0.05,
    attack_on: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure models one by one.

    Args:
        models: zoo ids; empty: every model with its data set on this machine.
        layers: insertion layers; empty: the default of the architecture.
        attack_on: network that the inner level attacks, `polarized` as in Algorithm 1 or `base`; None: the
            preset's.
    Yields:
        per model and layer: `forward_equivalents_per_step` (early stop off; the mean over the preset's
            epochs),
        `forward_equivalents_first_epoch` (a step of the first epoch alone), `train_images_per_second`,
        `seconds_per_epoch` (the faster of two epochs, after one to warm up), `eval_images_per_second` (clean
        and triggered test images).
    """
    from npd_core.data.load import availability

    chosen = list(models) or [card.id for card in Zoo().cards() if availability(card.dataset).available]
    for model in chosen:
        for layer in layers or (None,):
            yield bench_model(model, layer, clean, device, attack_on)


def bench_report(rows: Sequence[dict[str, Any]], device: str = "auto") -> dict[str, Any]:
    """Return what `npd bench --json` prints."""
    return {"results": list(rows), "environment": environment(resolve_device(device))}

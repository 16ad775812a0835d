"""A whole run of a defense, from a request to a measured result: what the command line and the job queue both call."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from npd_core.data.clean import load_clean
from npd_core.data.load import ImageSet
from npd_core.device import environment, resolve_device
from npd_core.errors import unknown_name
from npd_core.evaluation import Metrics, der, evaluate, test_sets
from npd_core.events import EpochEnd, Event, Failed, Finished, Measured, StepEnd
from npd_core.polarizer.artifact import save_polarizer, write_text
from npd_core.polarizer.config import VARIANTS, default_layer
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.training import train_polarizer
from npd_core.request import DefenseRequest
from npd_core.zoo.weights import load_backdoored

DEFENSES = tuple(VARIANTS)


def run_defense(
    request: DefenseRequest, out: Path | None = None, stop: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Train, measure, save. Ends with Finished or Failed, whose `result` holds the measured numbers.

    Args:
        request: what to do.
        out: folder for polarizer.safetensors, polarizer.json and result.json; None: nothing is written.
        stop: asked after every step; once true, the training ends, its last good state is measured and saved.
    Raises:
        UnknownNameError, ConfigError, DataMissingError, CheckpointError, StorageError: before or between the events.
    """
    if request.defense not in DEFENSES:
        raise unknown_name("defense", request.defense, DEFENSES)
    device = resolve_device(request.device)
    backdoored = load_backdoored(request.model)
    card = backdoored.card
    cfg = request.config
    backdoored.net.to(device)
    net = PolarizedNet(backdoored.net, request.layer or default_layer(card.arch), card.image_size)
    clean = load_clean(card.dataset, request.clean, cfg.seed)
    sets = test_sets(card.dataset, backdoored.attack)
    watched = test_sets(card.dataset, backdoored.attack, request.watch) if request.watch else None

    # A variant that knows the target is told the attack's rule, labels to labels: no trigger and no test image.
    training = train_polarizer(
        net, ImageSet(clean.images, clean.labels), cfg, device,
        variant=request.defense, known=backdoored.attack.rule.target,
    )  # fmt: skip
    end: Finished | Failed | None = None
    last = EpochEnd(-1, {}, 0.0)
    try:
        for event in training:
            if isinstance(event, Finished | Failed):
                end = event
                break
            yield event
            if isinstance(event, EpochEnd):
                last = event if event.kept else last
                if watched is not None and event.epoch >= 0:
                    seen = evaluate(net, watched, device, "auto")
                    yield Measured(event.epoch, seen.acc, seen.asr, seen.ra, len(watched.clean.labels))
            if isinstance(event, StepEnd | EpochEnd) and stop():
                end = Finished(last.epoch, last.seconds, stopped=True)
                break
    finally:
        training.close()
    assert end is not None
    start = time.perf_counter()
    before = evaluate(backdoored.net, sets, device)
    after = evaluate(net, sets, device)
    result: dict[str, Any] = {
        "model": card.id,
        "defense": request.defense,
        "layer": net.layer,
        "before": _named(before),
        "after": _named(after),
        "der": der(before, after),
        "seconds": {"train": end.seconds, "evaluate": time.perf_counter() - start},
        "config": request.to_dict(),
        "clean_indices": clean.indices.tolist(),
        "environment": environment(device),
    }
    if out is not None:
        meta = {
            "model": card.id, "model_sha256": card.files["model.safetensors"], "arch": card.arch, "width": card.width,
            "num_classes": card.num_classes, "mean": card.mean, "std": card.std, "config": request.to_dict(),
            "clean_indices": result["clean_indices"], "torch": torch.__version__,
        }  # fmt: skip
        save_polarizer(net, out, meta)
        write_text(out / "result.json", json.dumps(result, indent=2) + "\n")
    yield replace(end, result=result)


def _named(metrics: Metrics) -> dict[str, float]:
    return metrics._asdict()

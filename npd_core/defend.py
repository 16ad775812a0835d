"""A run of a defense, from a request to a measured result. The command line and the run worker call it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from npd_core.attacks import DYNAMIC
from npd_core.attacks.poison import poison_training_set
from npd_core.config.baselines import ANPConfig, EPConfig
from npd_core.config.npd import NPDConfig
from npd_core.config.request import DefenseRequest
from npd_core.data.clean import load_clean
from npd_core.data.load import ImageSet, load_dataset
from npd_core.defenses import get_defense
from npd_core.defenses.artifact import round_as_stored, save_repaired
from npd_core.device import environment, resolve_device
from npd_core.errors import ConfigError
from npd_core.evaluation import TestSets, evaluate, named, test_sets
from npd_core.events import EpochEnd, Event, Failed, Finished, Measured, StepEnd
from npd_core.fileio import write_json
from npd_core.metrics import Metrics, der
from npd_core.models import Normalized
from npd_core.polarizer.artifact import forget_snapshots, save_polarizer, save_snapshot
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.snapshots import epoch_of
from npd_core.zoo import Zoo
from npd_core.zoo.card import Card
from npd_core.zoo.weights import Backdoored


def run_defense(
    request: DefenseRequest,
    out: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    *,
    before: Metrics | None = None,
    images: int | None = None,
    zoo: Zoo = Zoo(),
) -> Generator[Event, None, None]:
    """Train, measure, save. Ends with Finished or Failed, with the measured numbers as its `result`.

    Args:
        request: what to do.
        out: folder for result.json and what was made: polarizer.safetensors and polarizer.json, or of a
            baseline model.safetensors and repaired.json; None: nothing is written. The polarizer of every
            epoch is written before the event of that epoch, see `npd_core.polarizer.snapshots`.
        stop: called after every step and epoch; once it returns True, the training ends, and its last good
            state is measured and saved.
        before: metrics of the backdoored network, where they are known; None: measured.
        images: test images that the numbers are measured on, chosen by `test_sets`; None: all.
        zoo: holds the model.
    Raises:
        UnknownNameError, ConfigError, DataMissingError, CheckpointError, StorageError: before or between the
            events.
    """
    defense = get_defense(request.defense)
    device = resolve_device(request.device)
    backdoored = zoo.load(request.model)
    card = backdoored.card
    backdoored.net.to(device)
    net = _network(request, backdoored)
    clean = load_clean(card.dataset, request.clean, request.config.seed)
    sets = test_sets(card.dataset, backdoored.attack, images)
    data, more = ImageSet(clean.images, clean.labels), _more(request, backdoored, sets, device)
    training = defense.run(net, data, request.config, device, **more)
    if out is not None:
        forget_snapshots(out)
    end = yield from _followed(training, request, net, backdoored, device, out, stop)
    if isinstance(net, Normalized):
        round_as_stored(net)
    start = time.perf_counter()
    before = before or evaluate(backdoored.net, sets, device)
    after = evaluate(net, sets, device)
    result = {
        "model": card.id,
        "defense": request.defense,
        "layer": net.layer if isinstance(net, PolarizedNet) else None,
        "before": named(before, sets),
        "after": named(after, sets),
        "der": der(before, after) if len(sets.poisoned.labels) else None,
        "seconds": {"train": end.seconds, "evaluate": time.perf_counter() - start},
        "config": request.to_dict(),
        "clean_indices": clean.indices.tolist(),
        "environment": environment(device),
    } | ({"details": dict(end.details)} if isinstance(end, Finished) and end.details else {})
    if out is not None:
        _save(net, out, request, card)
        write_json(out / "result.json", result)
    yield replace(end, result=result)


def _network(request: DefenseRequest, backdoored: Backdoored) -> PolarizedNet | Normalized:
    """Return a copy of the network for the defense to change, with a polarizer unless it is a baseline."""
    if isinstance(request.config, NPDConfig):
        card = backdoored.card
        return PolarizedNet(backdoored.net, request.layer or card.layer, card.image_size)
    return copy.deepcopy(backdoored.net)


def _followed(
    training: Generator[Event, None, None],
    request: DefenseRequest,
    net: PolarizedNet | Normalized,
    backdoored: Backdoored,
    device: torch.device,
    out: Path | None,
    stop: Callable[[], bool],
) -> Generator[Event, None, Finished | Failed]:
    """Yield the events of `training` with measurements, save snapshots, and return how it ended."""
    card = backdoored.card
    curve = test_sets(card.dataset, backdoored.attack, request.eval_images) if request.eval_images else None
    epoch, seconds = -1, 0.0
    with closing(training):
        for event in training:
            if isinstance(event, Finished | Failed):
                return event
            if out is not None and isinstance(net, PolarizedNet):
                due = epoch_of(event, getattr(request.config, "warmup_epochs", 0))
                if due is not None:
                    save_snapshot(net, out, due, card)
            yield event
            if isinstance(event, EpochEnd):
                seconds = event.seconds
                if event.kept and (isinstance(net, PolarizedNet) or event.epoch >= 0):
                    epoch = event.epoch
                if curve is not None and event.epoch >= 0:
                    measured: dict[str, Any] = {**named(evaluate(net, curve, device, "auto"), curve)}
                    yield Measured(event.epoch, images=len(curve.clean.labels), **measured)
            if isinstance(event, StepEnd | EpochEnd) and stop():
                return Finished(epoch, seconds, stopped=True)
    raise ConfigError(f"The defense `{request.defense}` must end with the event Finished or Failed.")


def _more(
    request: DefenseRequest, backdoored: Backdoored, sets: TestSets, device: torch.device
) -> dict[str, Any]:
    """Return what a defense gets besides the clean images.

    NPD gets the target rule of the attack, labels to labels: no trigger and no test image. Two baselines get
    the poisoned training set, or an oracle on test images, if their config requests it.
    """
    cfg, card, attack = request.config, backdoored.card, backdoored.attack
    if isinstance(cfg, NPDConfig):
        return {"variant": request.defense, "target_rule": attack.rule.target}
    if isinstance(cfg, EPConfig) and cfg.batch == "mixture":
        if not card.poison_ratio:
            raise ConfigError(f"{card.id} has no known poisoned training set: use EP with `batch`=clean.")
        data = load_dataset(card.dataset, "train")
        cross_ratio = DYNAMIC[attack.name].cross_ratio if attack.name in DYNAMIC else 0
        poisoned = poison_training_set(data, attack, card.poison_ratio, card.seed, cross_ratio)
        return {"mixture": ImageSet(poisoned.images, poisoned.labels)}
    if isinstance(cfg, ANPConfig) and cfg.select == "oracle":
        return {"oracle": lambda pruned: evaluate(pruned, sets, device)}
    return {}


def _save(net: PolarizedNet | Normalized, out: Path, request: DefenseRequest, card: Card) -> None:
    meta = {
        "model": card.id, "model_sha256": card.files["model.safetensors"], "arch": card.arch,
        "width": card.width, "num_classes": card.num_classes, "mean": card.mean, "std": card.std,
        "config": request.to_dict(), "torch": torch.__version__,
    }  # fmt: skip
    if isinstance(net, PolarizedNet):
        save_polarizer(net, out, meta)
    else:
        save_repaired(net, out, {"defense": request.defense, **meta})

"""How long a training takes on this machine, before it starts.

The parts of a training are timed once, with a few random images, for a network, a layer and the settings
that change what a step costs; the seconds per image are kept in the folder of the runs. Epochs, clean images,
batch size and test images enter by arithmetic. Importing this module needs no torch.
"""

from __future__ import annotations

import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from npd_core import paths
from npd_core.config.npd import NPDConfig, get_variant
from npd_core.config.request import DefenseRequest
from npd_core.data.spec import get_dataset
from npd_core.errors import NPDError
from npd_core.fileio import write_json
from npd_core.zoo.card import Card

FILE = ".timings.json"
BATCH, BATCHES = 32, 3
"""Images of a timed step, and steps of a timed epoch; the first step of each warms up."""


FRESH = 3600.0
"""Seconds after which `prepare` times the parts again: the machine may have been busy."""


class Timing(NamedTuple):
    """Seconds per image."""

    prepare: float
    """Features in front of the polarizer."""
    warmup: float
    first: float
    """A step of the first epoch, the inner level included."""
    later: float
    """A step of a later epoch; less than `first` where the inner level is solved only once."""
    predict: float
    at: float = 0.0
    """Unix time of the timing."""


def seconds(request: DefenseRequest, card: Card) -> float | None:
    """Return how long a training of NPD takes, with all its measurements; None where nothing is timed yet."""
    timing = _known().get(_key(request, card))
    if timing is None or not isinstance(request.config, NPDConfig):
        return None
    cfg, data = request.config, get_dataset(card.dataset)
    clean = request.clean if isinstance(request.clean, int) else round(request.clean * data.train_images)
    images = max(1, round(clean * (1 - cfg.holdout)))
    passes = math.ceil(cfg.epoch_steps / math.ceil(images / cfg.batch_size))
    steps = cfg.warmup_epochs * timing.warmup + cfg.epochs * timing.later
    once = timing.prepare + (max(0.0, timing.first - timing.later) if _solved_once(request) else 0.0)
    predicted = 2 * request.eval_images * cfg.epochs + 4 * data.test_images  # clean and triggered images
    return images * (once + passes * steps) + predicted * timing.predict


def epochs_within(request: DefenseRequest, card: Card, limit: float) -> int:
    """Return the most epochs, fewer than requested, that end within `limit` seconds; 0 when none do."""
    config = request.config
    if not isinstance(config, NPDConfig):
        return 0
    for epochs in range(config.epochs - 1, 0, -1):
        found = seconds(replace(request, config=replace(config, epochs=epochs)), card)
        if found is not None and found <= limit:
            return epochs
    return 0


def is_settled(request: DefenseRequest, card: Card) -> bool:
    """Return whether nothing needs to be waited for: the parts are timed, or cannot be."""
    key = _key(request, card)
    return not isinstance(request.config, NPDConfig) or key in _known() or key in _failed


def prepare(request: DefenseRequest, card: Card) -> None:
    """Time what is not known, or was timed long ago, in a thread; returns at once.

    Call it while no training goes on.
    """
    key = _key(request, card)
    with _lock:
        found = _known().get(key)
        is_fresh = found is not None and time.time() - found.at < FRESH
        if not isinstance(request.config, NPDConfig) or key in _pending or key in _failed or is_fresh:
            return
        _pending.add(key)
    _executor.submit(_time_and_keep, request, key)


def measure(request: DefenseRequest) -> Timing:
    """Time the parts of a training. Raises as the loading of the model."""
    import torch

    from npd_core.data.load import ImageSet
    from npd_core.device import resolve_device
    from npd_core.evaluation import predict
    from npd_core.events import StepEnd
    from npd_core.polarizer.insertion import PolarizedNet
    from npd_core.polarizer.training import Trainer
    from npd_core.zoo import Zoo

    assert isinstance(request.config, NPDConfig)
    device = resolve_device(request.device)
    backdoored = Zoo().load(request.model)
    card, original = backdoored.card, backdoored.net.to(device)
    pixels = torch.Generator().manual_seed(0)
    shape = (BATCH * BATCHES, 3, card.image_size, card.image_size)
    images = torch.randint(0, 256, shape, generator=pixels, dtype=torch.uint8)
    labels = predict(original, images, device).argmax(1).cpu()  # its own, so that it starts out accurate

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    short: dict[str, Any] = {"epochs": 2, "warmup_epochs": 1, "epoch_steps": 1, "batch_size": BATCH}
    cfg = replace(request.config, **short, holdout=0.0, early_stop=None)
    net = PolarizedNet(original, request.layer or card.layer, card.image_size)
    start = now()
    rule = backdoored.attack.rule.target
    trainer = Trainer(net, ImageSet(images, labels), cfg, device, request.defense, rule)
    prepared = (now() - start) / len(images)
    steps: dict[int, list[float]] = {-1: [], 0: [], 1: []}
    for event in trainer.events():
        if isinstance(event, StepEnd):
            at = now()
            if event.step:  # the first one of an epoch warms up
                steps[event.epoch].append((at - start) / BATCH)
            start = at
    warmup, first, later = (min(found, default=0.0) for found in steps.values())
    predict(net, images[:BATCH], device)
    start = now()
    predict(net, images, device)
    return Timing(prepared, warmup, first, later or first, (now() - start) / len(images))


def _solved_once(request: DefenseRequest) -> bool:
    """Whether the inner level has one result per image for the whole training."""
    config = request.config
    return (
        isinstance(config, NPDConfig)
        and config.attack_on == "base"
        and not get_variant(request.defense).universal
    )


def _key(request: DefenseRequest, card: Card) -> str:
    """Return what the cost of a step depends on."""
    config = request.config
    if not isinstance(config, NPDConfig):
        return ""
    adversarial = bool(config.lambda2 or config.lambda3)
    parts = (
        card.arch, card.width, card.image_size, card.num_classes, request.layer, request.defense,
        request.device, config.attack_on, config.inner_steps, config.inner_step, config.norm, config.bn_mode,
        config.precision, adversarial,
    )  # fmt: skip
    return " ".join(map(str, parts))


def _path() -> Path:
    return paths.runs() / FILE


def _known() -> dict[str, Timing]:
    """Return what was timed on this machine, by key; nothing where the file is another machine's."""
    path = _path()
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        stamp = path.stat().st_mtime_ns
        with _lock:
            if _read.get(path, (0, {}))[0] != stamp:
                found = json.loads(path.read_text(encoding="utf-8"))
                timings = {key: Timing(*map(float, row)) for key, row in found["timings"].items()}
                _read[path] = (stamp, timings if found["machine"] == _machine() else {})
            return _read[path][1]
    return {}


def _machine() -> dict[str, str]:
    """Return the names and versions by which a machine is told from another."""
    import os
    import platform
    from importlib.metadata import version

    return {
        "name": platform.node(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "torch": version("torch"),
    }


def _time_and_keep(request: DefenseRequest, key: str) -> None:
    try:
        timing = measure(request)._replace(at=time.time())
        timings = _known() | {key: timing}
        rows = {name: list(found) for name, found in timings.items()}
        _path().parent.mkdir(parents=True, exist_ok=True)
        write_json(_path(), {"machine": _machine(), "timings": rows})
    except (NPDError, OSError, RuntimeError):  # an estimate is not worth an error on a page
        _failed.add(key)
    finally:
        with _lock:
            _pending.discard(key)


_lock = threading.RLock()
_pending: set[str] = set()
_failed: set[str] = set()
_read: dict[Path, tuple[int, dict[str, Timing]]] = {}
_executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="npd-estimate")

"""`npd evaluate`: measure a model, with or without a saved defense."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npd_core.cli.common import Answer, Commands, add_device, add_model, read_positive
from npd_core.cli.settings import CHOICES
from npd_core.cli.show import before_after
from npd_core.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from torch.nn import Module

    from npd_core.evaluation import TestSets
    from npd_core.zoo.weights import Backdoored


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add(
        "evaluate", run, "measure ACC, ASR and RA of a model, with or without a saved defense"
    )
    add_model(parser)
    parser.add_argument("--polarizer", metavar="DIR", type=Path, help="folder that `npd defend --save` wrote")
    parser.add_argument(
        "--ceiling",
        action="store_true",
        help="also train a polarizer at the same layer on really triggered images with their true labels, "
        "which no defender has: its RA is the most to be expected of that layer",
    )
    parser.add_argument("--layer", metavar="L", help="layer of the ceiling (that of the saved polarizer)")
    parser.add_argument(
        "--images",
        metavar="N",
        type=read_positive,
        help="measure on N test images only, drawn at random but always the same",
    )
    parser.add_argument(
        "--precision", choices=CHOICES["precision"], default="fp32", help="fp32 (default), as in all reports"
    )
    add_device(parser)


def run(args: argparse.Namespace) -> Answer:
    """Measure before and, with a saved defense, after."""
    from npd_core.zoo import Zoo

    card = Zoo().card(args.model)
    if args.polarizer is not None and not args.polarizer.is_dir():
        raise StorageError(f"There is no folder {args.polarizer}: name one that `npd defend --save` wrote.")

    import npd_core.evaluation as evaluation
    from npd_core.device import environment, resolve_device
    from npd_core.metrics import der

    device = resolve_device(args.device)
    backdoored = Zoo().load(args.model)
    defended = None if args.polarizer is None else _load_defended(args.polarizer, backdoored)
    sets = evaluation.test_sets(card.dataset, backdoored.attack, limit=args.images)
    began = time.perf_counter()
    before = evaluation.evaluate(backdoored.net, sets, device, args.precision)
    after = None if defended is None else evaluation.evaluate(defended, sets, device, args.precision)
    seconds = time.perf_counter() - began
    ceiling = _ceiling(args, backdoored, defended, sets) if args.ceiling else None
    value: dict[str, Any] = {
        "model": card.id,
        "defense": None if args.polarizer is None else _defense_of(args.polarizer),
        "layer": getattr(defended, "layer", None),
        "before": evaluation.named(before, sets),
        "after": None if after is None else evaluation.named(after, sets),
        "der": None if after is None or not len(sets.poisoned.labels) else der(before, after),
        "ceiling": ceiling,
        "seconds": {"train": 0.0, "evaluate": seconds},
        "config": {
            "polarizer": None if args.polarizer is None else str(args.polarizer),
            "images": args.images,
            "precision": args.precision,
            "device": str(device),
        },
        "environment": environment(device),
    }
    text = before_after(value, value["defense"] or "no defense")
    if ceiling is not None:
        text += (
            f"\nCeiling at {ceiling['layer']}, from a polarizer trained with the real trigger, which no "
            f"defender has: ACC {ceiling['acc']:.1%}, ASR {ceiling['asr']:.1%}, RA {ceiling['ra']:.1%}."
        )
    return Answer(value, text)


def _ceiling(
    args: argparse.Namespace, backdoored: Backdoored, defended: Module | None, sets: TestSets
) -> dict[str, Any]:
    """Train with the real trigger and measure. Raises ConfigError for a clean model."""
    from npd_core import evaluation
    from npd_core.config.presets import default_layer
    from npd_core.data.load import load_dataset
    from npd_core.device import resolve_device
    from npd_core.polarizer.ceiling import train_ceiling
    from npd_core.polarizer.insertion import PolarizedNet

    card = backdoored.card
    if not len(sets.poisoned.labels):
        raise ConfigError(f"{card.id} has no trigger, so there is no ceiling: leave out --ceiling.")
    layer = args.layer or getattr(defended, "layer", None) or default_layer(card.arch, card.dataset)
    net = PolarizedNet(backdoored.net, layer, card.image_size)
    device = resolve_device(args.device)
    train_ceiling(net, load_dataset(card.dataset, "train"), backdoored.attack, device)
    found = evaluation.evaluate(net, sets, device, args.precision)
    return {"layer": net.layer, **found._asdict()}


def _load_defended(folder: Path, backdoored: Backdoored) -> Module:
    """Return the network that `npd defend --save` saved."""
    from npd_core.defenses.artifact import is_repaired, load_repaired
    from npd_core.polarizer.artifact import load_polarizer

    if is_repaired(folder):
        return load_repaired(folder, backdoored.card)
    return load_polarizer(folder, backdoored.net, backdoored.card)


def _defense_of(folder: Path) -> str:
    """Return the defense that made the saved network; `npd` where its description does not name one."""
    from npd_core.defenses import artifact as repaired
    from npd_core.polarizer import artifact as polarizer

    read = repaired.read_description if repaired.is_repaired(folder) else polarizer.read_description
    config = read(folder).get("config")
    return str(config.get("defense", "npd")) if isinstance(config, dict) else "npd"

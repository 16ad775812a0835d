"""Measure `npd inspect` on models of the zoo: does Neural Cleanse flag the target class, and how well does
the polarizer of the recorded run tell triggered from clean test images?

    python -m benchmarks.inspect_zoo --width 16 --datasets signs,cifar10 --out inspect.json
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from npd_core import paths
from npd_core.config.baselines import NCConfig
from npd_core.config.presets import defense_config
from npd_core.data.clean import load_clean
from npd_core.data.load import ImageSet
from npd_core.evaluation import test_sets
from npd_core.fileio import write_json
from npd_core.polarizer.artifact import load_polarizer
from npd_core.uploads.inspection import auroc, changes, search_masks
from npd_core.zoo import Zoo

CPU = torch.device("cpu")


def measure(model: str, images: int, clean_images: int, masks: bool) -> dict[str, Any]:
    """Return the figures of one model.

    Args:
        images: clean test images; those outside the target class are triggered too.
        clean_images: for the search of the masks.
        masks: whether to search them.
    """
    card, net, attack = Zoo().load(model)
    row: dict[str, Any] = {"model": model, "target": card.attack_params.get("target")}
    began = time.perf_counter()
    folder = paths.recorded() / model
    if (folder / "polarizer.safetensors").is_file():
        sets = test_sets(card.dataset, attack, images)
        polarized = load_polarizer(folder, net, card)
        clean = changes(net, polarized, sets.clean.images, CPU)
        triggered = changes(net, polarized, sets.poisoned.images, CPU)
        row |= {
            "auroc": auroc(torch.tensor(triggered.scores), torch.tensor(clean.scores)),
            "clean_changed": len(clean.changed) / len(clean.before),
            "triggered_changed": len(triggered.changed) / len(triggered.before),
        }
    if masks:
        loaded = load_clean(card.dataset, clean_images, seed=0)
        config = defense_config("nc", card)
        assert isinstance(config, NCConfig)
        search = search_masks(net, ImageSet(loaded.images, loaded.labels), config, CPU)
        while True:
            try:
                next(search)
            except StopIteration as end:
                found = end.value
                break
        row |= {"norms": found.norms, "anomaly": found.anomaly, "flagged": found.flagged}
    return row | {"seconds": time.perf_counter() - began}


def main() -> None:
    """Measure all models and write a list, after every model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", default="signs,cifar10")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--clean", type=int, default=240)
    parser.add_argument("--no-masks", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("inspect.json"))
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for card in Zoo().cards(clean=True):
        if card.dataset in args.datasets.split(",") and card.width == args.width:
            rows.append(measure(card.id, args.images, args.clean, not args.no_masks))
            print(rows[-1], flush=True)
            write_json(args.out, rows, indent=2)


if __name__ == "__main__":
    main()

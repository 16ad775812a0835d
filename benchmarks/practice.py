"""What decides whether NPD works on a small network: one table of runs on one model, for
docs/lab-notes.md.

    python benchmarks/practice.py signs-badnets_a2o-preact_resnet18-w16 [--images 480] [--rows paper,default]

Each row trains a polarizer with one thing changed and measures it on test images, a fixed random draw.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from npd_core import evaluation
from npd_core.config.presets import PAPER_LAYERS, default_layer, preset
from npd_core.data.clean import load_clean
from npd_core.data.load import ImageSet
from npd_core.device import resolve_device
from npd_core.events import EpochEnd, Failed
from npd_core.metrics import der
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.training import train_polarizer
from npd_core.zoo import Zoo


def rows(arch: str, dataset: str) -> dict[str, tuple[str, dict[str, object]]]:
    """Name of a row -> insertion point and what differs from the preset."""
    default, paper = default_layer(arch, dataset), PAPER_LAYERS[arch]
    follows = {"attack_on": "polarized", "lambda2": 0.4, "lambda3": 0.4}
    reference = follows | {"bn_mode": "warmup_frozen", "schedule": "constant"}
    return {
        "default": (default, {}),
        "inner level on f_hat": (default, follows),
        "lambdas 0.4": (default, {"lambda2": 0.4, "lambda3": 0.4}),
        "warm-up BN": (default, {"bn_mode": "warmup_frozen"}),
        "paper's point": (paper, {}),
        "paper": (paper, reference),
        **{f"before {block}": (f"stream:{block}", {}) for block in ("layer3.0", "layer4.0", "layer4.1")},
    }


def main() -> None:
    """Train and measure each row, and print it as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--rows", default="", help="names, separated by commas; default: all")
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    device = resolve_device()
    backdoored = Zoo().load(args.model)
    card = backdoored.card
    sets = evaluation.test_sets(card.dataset, backdoored.attack, args.images)
    before = evaluation.evaluate(backdoored.net, sets, device)
    clean = load_clean(card.dataset, 0.05, 0)
    print(f"{args.model}, before: ACC {before.acc:.1%}, ASR {before.asr:.1%}, RA {before.ra:.1%}\n")
    print(
        "| row | layer | epochs | ACC / ASR / RA in % by epoch | DER | s |\n| --- | --- | --- | --- | --- "
        "| --- |"
    )
    table = rows(card.arch, card.dataset)
    for name in args.rows.split(",") if args.rows else table:
        layer, changes = table[name]
        cfg = replace(preset(card.dataset), **changes)  # type: ignore[arg-type]
        cfg = replace(cfg, epochs=args.epochs) if args.epochs else cfg
        net = PolarizedNet(backdoored.net, layer, card.image_size)
        seen, seconds, note = [], 0.0, ""
        for event in train_polarizer(net, ImageSet(clean.images, clean.labels), cfg, device):
            note = " failed" if isinstance(event, Failed) else ""
            if isinstance(event, EpochEnd):
                seconds = event.seconds
                if (event.epoch + 1) % max(1, cfg.epochs // 4) == 0 and event.epoch >= 0:
                    m = evaluation.evaluate(net, sets, device, "auto")
                    seen.append(
                        f"{event.epoch + 1}: {100 * m.acc:.1f} / {100 * m.asr:.1f} / {100 * m.ra:.1f}"
                    )
        after = evaluation.evaluate(net, sets, device)
        rating = der(before, after)
        print(
            f"| {name}{note} | {layer} | {cfg.epochs} | {', '.join(seen)} | {rating:.3f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""`npd bench`: measure the speed of training and evaluation on this machine."""

from __future__ import annotations

import argparse
import sys

from npd_core.cli.common import Answer, Commands, add_clean, add_device, text_table
from npd_core.cli.settings import CHOICES
from npd_core.errors import ConfigError, DataMissingError


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add("bench", run, "measure the speed of training and evaluation on this machine")
    parser.add_argument(
        "models", metavar="MODEL", nargs="*", help="default: every backdoored model whose images are here"
    )
    parser.add_argument(
        "--layer", action="append", default=[], help="insertion layer; may be repeated (default: the model's)"
    )
    add_clean(parser)
    add_device(parser)
    parser.add_argument(
        "--attack-on",
        choices=CHOICES["attack_on"],
        help="network attacked in the inner level (default: that of the preset)",
    )


def run(args: argparse.Namespace) -> Answer:
    """Measure each model and report the environment."""
    from npd_core.zoo import Zoo

    names = [Zoo().card(name).id for name in args.models]
    if not names and not Zoo().cards():
        raise ConfigError("The zoo has no backdoored model: `npd zoo train ID` makes one.")

    from npd_core.bench import bench_report, run_bench

    rows = []
    for row in run_bench(names, args.layer, args.device, args.clean, args.attack_on):
        rows.append(row)
        print(f"{row['model']} at {row['layer']}: measured", file=sys.stderr, flush=True)
    if not rows:
        raise DataMissingError("The images of no model of the zoo are here: `npd data` says what is missing.")
    report = bench_report(rows, args.device)
    lines = [
        (
            row["model"],
            row["layer"],
            f"{row['forward_equivalents_per_step']:.2f}",
            f"{row['train_images_per_second']:.0f}",
            f"{row['seconds_per_epoch']:.2f}",
            f"{row['eval_images_per_second']:.0f}",
        )
        for row in rows
    ]
    head = ("model", "layer", "forwards/step", "train img/s", "s/epoch", "eval img/s")
    facts = report["environment"]
    where = (
        f"{facts['device_name']} · {facts['threads']} threads · torch {facts['torch']} · bf16 {facts['bf16']}"
    )
    return Answer(report, f"{text_table(head, lines)}\n{where}")

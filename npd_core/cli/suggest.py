"""`npd suggest`: choose the insertion layer by clean images alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from npd_core.cli.common import (
    Answer,
    Commands,
    add_device,
    add_model,
    progress_bar,
    progress_line,
    read_positive,
    read_share_or_count,
    read_value,
    read_whole,
    read_words,
    text_table,
)  # fmt: skip
from npd_core.cli.runs_common import list_of

if TYPE_CHECKING:
    import torch

    from npd_core.config.npd import NPDConfig
    from npd_core.data.load import ImageSet
    from npd_core.experiments.suggest import Candidate
    from npd_core.models.normalized import Normalized
    from npd_core.zoo.card import Card
    from npd_core.zoo.weights import Backdoored


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add(
        "suggest",
        run,
        "choose the insertion layer by clean images alone: the earliest that accuracy allows",
    )
    add_model(parser)
    parser.add_argument(
        "--layers",
        metavar="L,L",
        type=read_words,
        help="insertion layers to try (those on the residual stream)",
    )
    parser.add_argument(
        "--lambdas",
        metavar="X,X",
        dest="weights",
        type=list_of(partial(read_value, "float")),
        help="values of lambda 2 = lambda 3 to try (that of the preset)",
    )
    parser.add_argument(
        "--rhos",
        metavar="X,X",
        type=list_of(partial(read_value, "float")),
        help="budgets to try; the smallest that moves most clean images to their surrogate target is used "
        "(that of the preset)",
    )
    parser.add_argument(
        "--max-loss",
        metavar="X",
        type=partial(read_value, "float"),
        default=0.02,
        help="clean accuracy that may be lost, as a fraction (0.02)",
    )
    parser.add_argument(
        "--folds", metavar="N", type=read_positive, default=5, help="parts, each held out once (5)"
    )
    parser.add_argument(
        "--held", metavar="N", type=read_positive, help="hold out only N of them: faster, less certain"
    )
    parser.add_argument(
        "--clean", metavar="C", type=read_share_or_count, default=0.05, help="share or number (0.05)"
    )
    parser.add_argument("--epochs", metavar="N", type=read_positive, help="default: that of the preset")
    parser.add_argument("--inner-steps", metavar="N", type=read_positive, help="default: that of the preset")
    parser.add_argument("--seed", metavar="N", type=read_whole, default=0)
    add_device(parser)


def run(args: argparse.Namespace) -> Answer:
    """Train at each layer, measure on held-out clean images, and choose."""
    from npd_core.data.clean import load_clean
    from npd_core.data.load import ImageSet
    from npd_core.device import environment, resolve_device
    from npd_core.experiments.suggest import choose, choose_budget, reached
    from npd_core.zoo import Zoo

    device, backdoored = resolve_device(args.device), Zoo().load(args.model)
    card, net = backdoored.card, backdoored.net.to(device)
    layers = _layers(net, card.image_size, args.layers)
    config = _config(card, args)
    loaded = load_clean(card.dataset, args.clean, args.seed)
    clean = ImageSet(loaded.images, loaded.labels)
    shares: dict[float, float] = {}
    if args.rhos:
        shares = reached(net, clean, sorted(args.rhos), config, device)
        config = replace(config, rho=choose_budget(shares))
    found = _candidates(backdoored, clean, layers, config, device, args)
    best = choose(found, args.max_loss)
    value = {
        "model": card.id, "max_loss": args.max_loss, "folds": args.folds, "held": args.held or args.folds,
        "reached": {f"{rho:g}": share for rho, share in shares.items()},
        "candidates": [{**c._asdict(), "loss": c.loss} for c in found],
        "chosen": best and best._asdict(), "config": config.to_dict(), "environment": environment(device),
    }  # fmt: skip
    text = [f"{card.id}, cross-validated on {len(clean.labels)} clean images", _table(found)]
    if shares:
        moved = ", ".join(f"{100 * share:.0f} % at rho {rho:g}" for rho, share in shares.items())
        text.insert(
            0, f"Clean images that reach their surrogate target: {moved}; rho {config.rho:g} is used."
        )
    options = f" --rho {config.rho:g}" if shares else ""
    options += f" --inner-steps {config.inner_steps}" if args.inner_steps else ""
    return Answer(value, "\n".join([*text, _advice(card.id, best, args.max_loss, options)]))


def _layers(net: Normalized, size: int, names: Sequence[str] | None) -> list[str]:
    """Return the layers to try, in forward order. Args: names: None: the residual stream, or every
    convolution."""
    from npd_core.polarizer.insertion import find_layer, insertion_layers

    known = [str(info.layer) for info in insertion_layers(net, size)]
    streams = [name for name in known if name.startswith("stream:")]
    default = streams or [name for name in known if ":" not in name]
    layers = [str(find_layer(net, name, size).layer) for name in names or default]
    return sorted(layers, key=known.index)


def _config(card: Card, args: argparse.Namespace) -> NPDConfig:
    from npd_core.config.presets import preset

    config = preset(card.dataset, size=card.image_size)
    epochs, steps = args.epochs or config.epochs, args.inner_steps or config.inner_steps
    return replace(config, seed=args.seed, epochs=epochs, inner_steps=steps)


def _candidates(
    backdoored: Backdoored,
    clean: ImageSet,
    layers: Sequence[str],
    config: NPDConfig,
    device: torch.device,
    args: argparse.Namespace,
) -> list[Candidate]:
    """Train at every layer with every weight, under a progress bar."""
    from npd_core.experiments.suggest import Candidate, candidates

    weights = args.weights or (config.lambda2,)
    net, size, total = backdoored.net, backdoored.card.image_size, len(layers) * len(weights)
    found: list[Candidate] = []
    with progress_bar("{task.completed:.0f}/{task.total:.0f} settings · {task.fields[note]}") as bar:
        task = bar.add_task(f"suggest for {backdoored.card.id}", total=total, note="")
        for event in candidates(net, clean, layers, weights, config, size, device, args.folds, args.held):
            if isinstance(event, Candidate):
                found.append(event)
                bar.update(task, completed=len(found), note=event.layer)
                progress_line(f"{len(found)}/{total} {event.layer}, lambda {event.weight:g}")
    return found


def _table(found: Sequence[Candidate]) -> str:
    head = ["layer", "lambda 2, 3", "clean acc. before %", "after %", "lost, points", "s"]
    rows = [
        [
            c.layer,
            f"{c.weight:g}",
            *(f"{100 * x:.1f}" for x in (c.before, c.after, c.loss)),
            f"{c.seconds:.0f}",
        ]
        for c in found
    ]
    return text_table(head, rows)


def _advice(model: str, best: Candidate | None, max_loss: float, options: str) -> str:
    """Return the command to run next, or the remedy where no layer keeps within the limit."""
    allowed = f"{100 * max_loss:g} points of clean accuracy"
    if best is None:
        return (
            f"No layer keeps the loss within {allowed}: try smaller --lambdas, or allow more with --max-loss."
        )
    options = f"--layer {best.layer} --lambda2 {best.weight:g} --lambda3 {best.weight:g}{options}"
    return f"Earliest layer that costs at most {allowed}: npd defend {model} {options}"

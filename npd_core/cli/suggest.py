"""`npd suggest`: choose the insertion layer by clean images alone."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

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
    from npd_core.config.presets import preset
    from npd_core.data.clean import load_clean
    from npd_core.data.load import ImageSet
    from npd_core.device import environment, resolve_device
    from npd_core.experiments.suggest import Candidate, candidates, choose, choose_budget, reached
    from npd_core.polarizer.insertion import find_layer, insertion_layers
    from npd_core.zoo import Zoo

    device, backdoored = resolve_device(args.device), Zoo().load(args.model)
    card, net = backdoored.card, backdoored.net.to(device)
    names = [str(info.layer) for info in insertion_layers(net, card.image_size)]
    streams = [name for name in names if name.startswith("stream:")] or [
        name for name in names if ":" not in name
    ]
    layers = [str(find_layer(net, name, card.image_size).layer) for name in args.layers or streams]
    layers.sort(key=names.index)
    config = preset(card.dataset, size=card.image_size)
    config = replace(
        config,
        seed=args.seed,
        epochs=args.epochs or config.epochs,
        inner_steps=args.inner_steps or config.inner_steps,
    )
    weights = args.weights or (config.lambda2,)
    loaded = load_clean(card.dataset, args.clean, args.seed)
    clean = ImageSet(loaded.images, loaded.labels)
    shares: dict[float, float] = {}
    if args.rhos:
        shares = reached(net, clean, sorted(args.rhos), config, device)
        config = replace(config, rho=choose_budget(shares))
    found: list[Candidate] = []
    with progress_bar("{task.completed:.0f}/{task.total:.0f} settings · {task.fields[note]}") as bar:
        task = bar.add_task(f"suggest for {card.id}", total=len(layers) * len(weights), note="")
        for event in candidates(
            net, clean, layers, weights, config, card.image_size, device, args.folds, args.held
        ):
            if isinstance(event, Candidate):
                found.append(event)
                bar.update(task, completed=len(found), note=event.layer)
                progress_line(
                    f"{len(found)}/{len(layers) * len(weights)} {event.layer}, lambda {event.weight:g}"
                )
    best = choose(found, args.max_loss)
    head = ["layer", "lambda 2, 3", "clean acc. before %", "after %", "lost, points", "s"]
    rows = [
        [
            c.layer,
            f"{c.weight:g}",
            *(f"{100 * share:.1f}" for share in (c.before, c.after, c.loss)),
            f"{c.seconds:.0f}",
        ]
        for c in found
    ]
    allowed = f"{100 * args.max_loss:g} points of clean accuracy"
    if best is None:
        said = (
            f"No layer keeps the loss within {allowed}: try smaller --lambdas, or allow more with --max-loss."
        )
    else:
        weight = f"--lambda2 {best.weight:g} --lambda3 {best.weight:g}"
        weight += f" --rho {config.rho:g}" if shares else ""
        weight += f" --inner-steps {config.inner_steps}" if args.inner_steps else ""
        said = (
            f"Earliest layer that costs at most {allowed}: npd defend {card.id} --layer {best.layer} {weight}"
        )
    value = {
        "model": card.id, "max_loss": args.max_loss, "folds": args.folds, "held": args.held or args.folds,
        "reached": {f"{rho:g}": share for rho, share in shares.items()},
        "candidates": [{**c._asdict(), "loss": c.loss} for c in found],
        "chosen": best and best._asdict(), "config": config.to_dict(), "environment": environment(device),
    }  # fmt: skip
    title = f"{card.id}, images held out of {len(clean.labels)} clean ones"
    if shares:
        moved = ", ".join(f"{100 * share:.0f} % at rho {rho:g}" for rho, share in shares.items())
        title = (
            f"Clean images that reach their surrogate target: {moved}; rho {config.rho:g} is used.\n{title}"
        )
    return Answer(value, "\n".join([title, text_table(head, rows), said]))

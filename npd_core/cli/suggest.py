"""`npd suggest`: choose settings by planted backdoors, with neither the real trigger nor a test image."""

from __future__ import annotations

import argparse
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

    from npd_core.experiments.plants import Plant
    from npd_core.experiments.suggest import Candidate, Judged, Score
    from npd_core.zoo.weights import Backdoored


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add(
        "suggest",
        run,
        "choose settings by backdoors planted into copies of the model, on clean images alone",
    )
    add_model(parser)
    parser.add_argument(
        "--layers",
        metavar="L,L",
        type=read_words,
        default=(),
        help="further insertion layers to try; the default one is always tried",
    )
    parser.add_argument(
        "--rhos",
        metavar="X,X",
        type=list_of(partial(read_value, "float")),
        default=(),
        help="further budgets of the inner perturbation to try",
    )
    parser.add_argument(
        "--plants",
        metavar="NAME,NAME",
        type=read_words,
        help="families of planted triggers: patch, optimized, blend, field (all)",
    )
    parser.add_argument(
        "--clean", metavar="C", type=read_share_or_count, default=0.05, help="share or number (0.05)"
    )
    parser.add_argument("--epochs", metavar="N", type=read_positive, help="default: that of the preset")
    parser.add_argument("--seed", metavar="N", type=read_whole, default=0)
    add_device(parser)


def run(args: argparse.Namespace) -> Answer:
    """Plant, defend with each candidate, and choose."""
    from dataclasses import replace

    from npd_core.config.presets import default_layer, preset
    from npd_core.device import environment, resolve_device
    from npd_core.experiments.suggest import choose, default_candidates, scores
    from npd_core.polarizer.insertion import find_layer
    from npd_core.zoo import Zoo
    from npd_core.zoo.card import WEIGHTS

    device, backdoored = resolve_device(args.device), Zoo().load(args.model)
    card, net = backdoored.card, backdoored.net.to(device)
    config = preset(card.dataset, size=card.image_size)
    config = replace(config, seed=args.seed, epochs=args.epochs or config.epochs)
    layer = default_layer(card.arch, card.dataset)
    further = [find_layer(net, name, card.image_size).name for name in args.layers]
    candidates = default_candidates(config, layer, further, args.rhos)
    plants, judged = _judged(backdoored, candidates, device, args)
    found = scores(judged)
    best = choose(found)
    value = {
        "model": card.id,
        "sha256": card.files[WEIGHTS],
        "plants": [
            {"family": p.family, "target": p.target, "took": p.took, **p.metrics._asdict()} for p in plants
        ],
        "candidates": [
            {"name": s.candidate.name, "layer": s.candidate.layer, "config": s.candidate.config.to_dict(),
             **s.metrics._asdict(), "mean": s.mean, "worst": s.worst, "seconds": s.seconds}
            for s in found
        ],
        "chosen": best.candidate.name,
        "environment": environment(device),
    }  # fmt: skip
    took = ", ".join(f"{p.family} {'took' if p.took else 'did not take'}" for p in plants)
    return Answer(value, f"{card.id}: planted backdoors: {took}\n{_table(found)}\n{_advice(card.id, best)}")


def _judged(
    backdoored: Backdoored, candidates: list[Candidate], device: torch.device, args: argparse.Namespace
) -> tuple[list[Plant], list[Judged]]:
    """Judge every candidate on every plant, under a progress bar."""
    from npd_core.data.clean import load_clean
    from npd_core.data.load import ImageSet
    from npd_core.experiments.plants import PLANTS, Plant
    from npd_core.experiments.suggest import Judged, planted_scores

    card = backdoored.card
    families = args.plants or PLANTS
    loaded = load_clean(card.dataset, args.clean, args.seed)
    clean = ImageSet(loaded.images, loaded.labels)
    plants: list[Plant] = []
    judged: list[Judged] = []
    total = len(families) * (len(candidates) + 1)
    with progress_bar("{task.completed:.0f}/{task.total:.0f} · {task.fields[note]}") as bar:
        task = bar.add_task(f"suggest for {card.id}", total=total, note="planting")
        for event in planted_scores(
            backdoored.net, clean, candidates, card.image_size, device, families, args.seed
        ):
            if isinstance(event, Plant):
                plants.append(event)
                note = f"planted {event.family}: ASR {event.metrics.asr:.0%}"
            elif isinstance(event, Judged):
                judged.append(event)
                note = f"{event.plant}, {event.candidate.name}"
            else:
                continue
            bar.update(task, completed=len(plants) + len(judged), note=note)
            progress_line(note)
    return plants, judged


def _table(found: list[Score]) -> str:
    head = ["setting", "layer", "ACC %", "ASR %", "RA %", "score", "worst", "s"]
    rows = [
        [
            s.candidate.name, s.candidate.layer,
            *(f"{100 * x:.1f}" for x in (s.metrics.acc, s.metrics.asr, s.metrics.ra)),
            f"{s.mean:.3f}", f"{s.worst:.3f}", f"{s.seconds:.0f}",
        ]
        for s in found
    ]  # fmt: skip
    return text_table(head, rows)


def _advice(model: str, best: Score) -> str:
    """Return the command to run next."""
    config, families = best.candidate.config, best.candidate.config.to_dict()["families"]
    options = f"--layer {best.candidate.layer} --rho {config.rho:g}"
    options += f" --families {families} --copies {config.copies}"
    return (
        "ACC, ASR and RA are those of the planted triggers on held-out clean images; the score is "
        f"ACC + RA - ASR.\nBest by the mean and the worst plant: npd defend {model} {options}"
    )

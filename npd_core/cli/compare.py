"""`npd compare`: run several defenses of one model, one after the other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from npd_core.cli.common import (
    Answer,
    Commands,
    add_clean,
    add_device,
    add_model,
    percent,
    read_whole,
    text_table,
)  # fmt: skip
from npd_core.cli.settings import add_preset
from npd_core.cli.show import notes, shown
from npd_core.config.presets import DEFAULT, defense_config, preset_layer
from npd_core.config.request import DefenseRequest
from npd_core.defenses import DEFENSES
from npd_core.errors import NPDError, unknown_name
from npd_core.events import Failed, Finished
from npd_core.zoo.card import Card


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add("compare", run, "run several defenses of one model, one after the other")
    add_model(parser)
    parser.add_argument(
        "--defenses", metavar="A,B,C", default="all", help=f"all (default), or some of {', '.join(DEFENSES)}"
    )
    add_preset(parser)
    add_clean(parser)
    parser.add_argument(
        "--seed", metavar="N", type=read_whole, help="of every defense, and of the clean images (0)"
    )
    add_device(parser)


def run(args: argparse.Namespace) -> Answer:
    """Train and measure each defense; a failure does not stop the others."""
    from npd_core.zoo import Zoo

    names = tuple(DEFENSES) if args.defenses == "all" else tuple(dict.fromkeys(args.defenses.split(",")))
    for name in names:
        if name not in DEFENSES:
            raise unknown_name("defense", name, ("all", *DEFENSES))
    card = Zoo().card(args.model)
    requests = [_request(name, card, args) for name in names]

    import npd_core.evaluation as evaluation
    from npd_core.data.clean import load_clean
    from npd_core.defend import run_defense
    from npd_core.device import environment, resolve_device

    device = resolve_device(args.device)
    backdoored = Zoo().load(card.id)
    # An error that concerns all of them is raised once, and now.
    load_clean(card.dataset, args.clean, requests[0].config.seed)
    sets = evaluation.test_sets(card.dataset, backdoored.attack)
    before = evaluation.evaluate(backdoored.net, sets, device)
    rows: list[dict[str, Any]] = []
    for request in requests:
        row: dict[str, Any] = {"model": card.id, "defense": request.defense}
        try:
            *_, last = shown(run_defense(request, before=before), f"{request.defense} on {card.id}")
        except (NPDError, MemoryError, RuntimeError) as error:  # torch says RuntimeError when memory runs out
            row |= {
                "config": request.to_dict(),
                "failed": " ".join(str(error).split()) or type(error).__name__,
            }
        else:
            assert isinstance(last, Finished | Failed)
            row |= {name: part for name, part in last.result.items() if name != "clean_indices"}
            if isinstance(last, Failed):
                row["failed"] = last.reason
        rows.append(row)
        print(f"{request.defense}: {row.get('failed') or 'done'}", file=sys.stderr, flush=True)
    named = evaluation.named(before, sets)
    value = {"model": card.id, "before": named, "defenses": rows, "environment": environment(device)}
    code = 1 if any("failed" in row for row in rows) else 0
    return Answer(value, _table(value), code)


def _request(defense: str, card: Card, args: argparse.Namespace) -> DefenseRequest:
    """Return the request of one defense; another preset than the default is for NPD and its variants."""
    name, layer = DEFAULT, None
    if DEFENSES[defense].polarizes and args.preset != DEFAULT:
        name, layer = args.preset, preset_layer(args.preset, card.arch, card.dataset)
    seed = {} if args.seed is None else {"seed": args.seed}
    config = defense_config(defense, card, name, **seed)
    return DefenseRequest(
        model=card.id, defense=defense, layer=layer, clean=args.clean, config=config, device=args.device
    )


def _table(value: Mapping[str, Any]) -> str:
    """Return one row per defense in percent and seconds, then notes on failures and unfair advantages."""
    lines = [("before", *(percent(value["before"][name]) for name in ("acc", "asr", "ra")), "-", "-")]
    remarks = []
    for row in value["defenses"]:
        after, seconds = row.get("after") or {}, row.get("seconds")
        shares = [percent(after.get(name)) for name in ("acc", "asr", "ra")]
        time_taken = "-" if seconds is None else f"{seconds['train']:.1f}"
        lines.append((row["defense"], *shares, percent(row.get("der")), time_taken))
        remarks += [f"{row['defense']} failed: {row['failed']}"] if "failed" in row else []
        remarks += notes(row)
    table = text_table(("", "ACC %", "ASR %", "RA %", "DER %", "seconds"), lines)
    return "\n".join([str(value["model"]), table, *remarks])

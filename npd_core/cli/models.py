"""`npd models`: list the pretrained models."""

from __future__ import annotations

import argparse
from typing import Any

from npd_core.cli.common import Answer, Commands, complain, percent, text_table


def add(commands: Commands) -> None:
    """Register the command."""
    commands.add("models", run, "list the pretrained models; those without an ASR are clean models")


def run(args: argparse.Namespace) -> Answer:
    """List the models of the zoo."""
    from npd_core.data.load import availability
    from npd_core.zoo import Zoo

    unreadable = Zoo().unreadable()
    for sentence in unreadable:
        complain(sentence)
    rows: list[dict[str, Any]] = [
        {
            "id": card.id,
            "dataset": card.dataset,
            "attack": card.attack,
            "arch": card.arch,
            "width": card.width,
            "acc": card.acc,
            "asr": card.asr,
            "ra": card.ra,
            "bytes": card.bytes,
            "data_available": availability(card.dataset).available,
        }
        for card in Zoo().cards(clean=True)
    ]
    if not rows and unreadable:
        return Answer(rows, "No model of the zoo can be read.")
    if not rows:
        return Answer(rows, "The zoo is empty: `npd zoo train ID` makes a model.")
    lines = [
        (
            r["id"],
            percent(r["acc"]),
            percent(r["asr"]),
            size(r["bytes"]),
            "yes" if r["data_available"] else "no",
        )
        for r in rows
    ]
    return Answer(rows, text_table(("model", "ACC %", "ASR %", "size", "data here"), lines))


def size(count: int) -> str:
    """Return a number of bytes as text."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"

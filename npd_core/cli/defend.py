"""`npd defend`: train a defense of one model and measure it before and after."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from npd_core.cli.common import Answer, Commands, add_clean, add_device, add_model, complain, read_whole
from npd_core.cli.interrupt import replacing
from npd_core.cli.settings import add_preset, add_settings, config_of
from npd_core.cli.show import before_after, notes, shown
from npd_core.config.presets import DEFAULT, preset_layer
from npd_core.defenses import DEFENSES
from npd_core.errors import ConfigError
from npd_core.events import Event, Failed, Finished, to_record
from npd_core.zoo.card import Card

SAVED = {
    "request.json", "state.json", "events.jsonl", "result.json", "stop", "polarizer.json",
    "polarizer.safetensors", "repaired.json", "model.safetensors", "epochs", "gallery.json", "gallery.png",
}  # fmt: skip
"""Names that a saved run may hold, and with it be replaced."""


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add("defend", run, "train a defense of one model and measure it before and after")
    add_model(parser)
    parser.add_argument("--defense", default="npd", help=f"{', '.join(DEFENSES)} (default: npd)")
    add_preset(parser)
    parser.add_argument(
        "--layer", help="insertion layer, such as layer4.1.conv1 (default: that of the preset)"
    )
    add_clean(parser)
    parser.add_argument(
        "--eval-images",
        metavar="N",
        type=read_whole,
        default=0,
        help="measure ACC, ASR and RA on N test images after every epoch; the training never uses them",
    )
    add_device(parser)
    parser.add_argument(
        "--save",
        metavar="DIR",
        type=Path,
        help="save the polarizer or the repaired network, its config and all numbers in DIR",
    )
    add_settings(parser)


def run(args: argparse.Namespace) -> Answer:
    """Train, measure and, where asked, save."""
    from npd_core.config.request import DefenseRequest
    from npd_core.zoo import Zoo

    card = Zoo().card(args.model)
    config = config_of(args, card)
    request = DefenseRequest(
        model=args.model,
        defense=args.defense,
        layer=args.layer or _preset_layer(args, card),
        clean=args.clean,
        config=config,
        eval_images=args.eval_images,
        device=args.device,
    )
    with _saving(args.save) as folder:
        from npd_core.defend import run_defense
        from npd_core.runs.event_log import Thinner
        from npd_core.runs.store import write_record

        thin, records = Thinner(), []
        last: Event | None = None
        for last in shown(run_defense(request, folder), f"{args.defense} on {args.model}"):
            records += [to_record(event) | {"time": round(time.time(), 3)} for event in thin(last)]
        if not isinstance(last, Finished | Failed):
            raise AssertionError("a training ends with Finished or Failed")
        result = dict(last.result)
        if folder is not None:
            write_record(folder, request, records)
    value = {name: part for name, part in result.items() if name != "clean_indices"}
    text = before_after(result, request.defense) if result else ""
    text += "".join(f"\n{note}" for note in notes(result))
    if args.save is not None:
        text += f"\nSaved in {args.save}"
    if isinstance(last, Failed):
        complain(f"the training failed: {last.reason}")
        return Answer(value | {"failed": last.reason}, text, code=1)
    return Answer(value, text)


def _preset_layer(args: argparse.Namespace, card: Card) -> str | None:
    """Return the insertion layer of a preset other than the default one."""
    polarizes = DEFENSES[args.defense].polarizes
    return (
        preset_layer(args.preset, card.arch, card.dataset) if polarizes and args.preset != DEFAULT else None
    )


@contextlib.contextmanager
def _saving(folder: Path | None) -> Iterator[Path | None]:
    """As `_replacing`, for a saved run.

    Raises:
        ConfigError: `folder` holds something that is no saved run.
        StorageError: the folder cannot be made.
    """
    if folder is None:
        yield None
        return
    folder = folder.resolve()
    if folder.exists() and not (
        folder.is_dir() and SAVED.issuperset(entry.name for entry in folder.iterdir())
    ):
        raise ConfigError(
            f"--save {folder} holds other files than those of a saved run: choose a new folder."
        )
    with replacing(folder) as stage:
        yield stage

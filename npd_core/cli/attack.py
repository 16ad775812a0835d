"""`npd attack`: write images of an attack."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from npd_core.cli.common import Answer, Commands, read_positive, text_table
from npd_core.cli.interrupt import replacing
from npd_core.errors import ConfigError, StorageError, unknown_name

KINDS = ("clean", "triggered", "difference")
"""Files that are written of each image."""


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add(
        "attack", run, "write images of an attack: clean, triggered, and ten times the difference"
    )
    parser.add_argument(
        "attack", metavar="ID", help="an attack whose trigger needs no model, or the id of a model"
    )
    parser.add_argument(
        "--dataset", metavar="D", help="data set of the images (default: signs, or that of the model)"
    )
    parser.add_argument(
        "--images", metavar="N", type=read_positive, default=8, help="how many test images (8)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder for the PNG files (attack-ID)")


def run(args: argparse.Namespace) -> Answer:
    """Apply the trigger to some test images and write them."""
    from npd_core.zoo import Zoo

    card = Zoo().card(args.attack) if args.attack in Zoo().ids() else None
    if card is not None and card.asr is None:
        raise ConfigError(
            f"{card.id} has no backdoor, hence no trigger to show: name a backdoored model or an attack."
        )
    dataset = args.dataset or (card.dataset if card else "signs")
    if card is not None and dataset != card.dataset:
        raise ConfigError(f"{card.id} is a model of {card.dataset}, not of {dataset}: leave --dataset out.")
    folder = (args.out or Path(f"attack-{args.attack}")).resolve()
    known = re.compile(rf"\d+-({'|'.join(KINDS)})\.png")
    if folder.exists() and not (
        folder.is_dir() and all(known.fullmatch(path.name) for path in folder.iterdir())
    ):
        raise ConfigError(f"--out {folder} holds other files than images of an attack: choose a new folder.")

    from PIL import Image

    from npd_core.attacks import ATTACKS, amplified_difference, get_attack
    from npd_core.data.load import class_names, load_dataset
    from npd_core.data.spec import get_dataset
    from npd_core.evaluation import some

    if card is not None:
        chosen = Zoo().load(card.id).attack
    elif args.attack in ATTACKS:
        chosen = get_attack(args.attack, get_dataset(dataset).id)
    else:
        raise unknown_name("attack or model", args.attack, (*ATTACKS, *(card.id for card in Zoo().cards())))
    data = load_dataset(dataset, "test")
    at = some(data.size, min(args.images, data.size))
    clean, labels = data.images[at], data.labels[at]
    triggered = chosen.apply(clean)
    sets = dict(zip(KINDS, (clean, triggered, amplified_difference(clean, triggered)), strict=True))
    names = class_names(dataset)
    rows = []
    with replacing(folder) as stage:
        for row, (index, label, target) in enumerate(
            zip(at.tolist(), labels.tolist(), chosen.rule.target(labels).tolist(), strict=True)
        ):
            files = {kind: f"{index:05d}-{kind}.png" for kind in KINDS}
            for kind, name in files.items():
                image = Image.fromarray(sets[kind][row].permute(1, 2, 0).numpy())
                try:
                    image.save(stage / name)
                except OSError as error:
                    remedy = "make room, or name another folder with --out"
                    raise StorageError(
                        f"Cannot write {folder} ({error.strerror or error}): {remedy}."
                    ) from error
            largest = int((triggered[row].int() - clean[row].int()).abs().max())
            rows.append(
                {"index": index, "label": names[label], "target": names[target], "largest_change": largest}
                | files
            )
    value = {
        "attack": chosen.name,
        "dataset": dataset,
        "model": card.id if card else None,
        "folder": str(folder),
    }
    lines = [(str(r["index"]), r["label"], r["target"], str(r["largest_change"])) for r in rows]
    text = text_table(("image", "true class", "target", "largest change of 255"), lines)
    return Answer(value | {"images": rows}, f"{text}\nImages in {folder}")

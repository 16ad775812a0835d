"""`npd attack`: write images of an attack."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from npd_core.cli.common import Answer, Commands, read_positive, text_table
from npd_core.cli.interrupt import replacing
from npd_core.errors import ConfigError, StorageError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from npd_core.attacks import Attack

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
    folder = _folder(args)
    dataset, chosen, model = _attack(args)

    from npd_core.attacks import amplified_difference
    from npd_core.data.load import class_names, load_dataset
    from npd_core.evaluation import some

    data = load_dataset(dataset, "test")
    at = some(data.size, min(args.images, data.size))
    clean, labels = data.images[at], data.labels[at]
    triggered = chosen.apply(clean)
    names, targets = class_names(dataset), chosen.rule.target(labels)
    kinds = (clean, triggered, amplified_difference(clean, triggered))
    rows = []
    with replacing(folder) as stage:
        for row, index in enumerate(at.tolist()):
            files = {kind: f"{index:05d}-{kind}.png" for kind in KINDS}
            for name, images in zip(files.values(), kinds, strict=True):
                _save(images[row], stage / name, folder)
            largest = int((triggered[row].int() - clean[row].int()).abs().max())
            facts = {"index": index, "label": names[labels[row]], "target": names[targets[row]]}
            rows.append(facts | {"largest_change": largest} | files)
    value = {"attack": chosen.name, "dataset": dataset, "model": model, "folder": str(folder)}
    lines = [(str(r["index"]), r["label"], r["target"], str(r["largest_change"])) for r in rows]
    text = text_table(("image", "true class", "target", "largest change of 255"), lines)
    return Answer(value | {"images": rows}, f"{text}\nImages in {folder}")


def _folder(args: argparse.Namespace) -> Path:
    """Return the folder to write; one that holds other files is refused. Raises ConfigError."""
    folder = (args.out or Path(f"attack-{args.attack}")).resolve()
    known = re.compile(rf"\d+-({'|'.join(KINDS)})\.png")
    if folder.is_file() or any(not known.fullmatch(path.name) for path in folder.glob("*")):
        raise ConfigError(f"--out {folder} holds other files than images of an attack: choose a new folder.")
    return folder


def _attack(args: argparse.Namespace) -> tuple[str, Attack, str | None]:
    """Return the data set, the attack, and its model, if any. Raises ConfigError, UnknownNameError."""
    from npd_core.zoo import Zoo

    if args.attack in Zoo().ids():
        card = Zoo().card(args.attack)
        if card.asr is None:
            raise ConfigError(f"{card.id} has no backdoor, hence no trigger: name a backdoored model.")
        if args.dataset not in (None, card.dataset):
            raise ConfigError(
                f"{card.id} is a model of {card.dataset}, not of {args.dataset}: leave --dataset out."
            )
        return card.dataset, Zoo().load(card.id).attack, card.id

    from npd_core.attacks import ATTACKS, get_attack
    from npd_core.data.spec import get_dataset

    if args.attack not in ATTACKS:
        raise unknown_name("attack or model", args.attack, (*ATTACKS, *(card.id for card in Zoo().cards())))
    dataset = get_dataset(args.dataset or "signs").id
    return dataset, get_attack(args.attack, dataset), None


def _save(image: Tensor, path: Path, folder: Path) -> None:
    from PIL import Image

    try:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    except OSError as error:
        remedy = "make room, or name another folder with --out"
        raise StorageError(f"Cannot write {folder} ({error.strerror or error}): {remedy}.") from error

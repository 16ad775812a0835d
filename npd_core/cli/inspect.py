"""`npd inspect`: is a network backdoored, and which images carry a trigger?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npd_core.cli.common import (
    Answer,
    Commands,
    add_clean,
    add_device,
    add_model,
    progress_line,
    read_positive,
    text_table,
)  # fmt: skip
from npd_core.errors import ConfigError, StorageError

if TYPE_CHECKING:
    import torch

    from npd_core.uploads.inspection import Changes, Masks
    from npd_core.zoo.weights import Backdoored


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add("inspect", run, "look for a backdoor, and for images that carry a trigger")
    add_model(parser)
    parser.add_argument(
        "--polarizer", metavar="DIR", type=Path,
        help="folder that `npd defend --save` wrote: show what its polarizer changes",
    )  # fmt: skip
    parser.add_argument(
        "--images", metavar="IMAGES", type=Path, help="images that you suspect: a zip, with --polarizer"
    )
    parser.add_argument(
        "--no-masks", action="store_true", help="leave out the search of Neural Cleanse, which takes minutes"
    )
    parser.add_argument(
        "--test-images", metavar="N", type=read_positive, default=500, help="clean images to compare (500)"
    )
    add_clean(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> Answer:
    """Search the masks, then compare with the polarizer."""
    from npd_core.zoo import Zoo

    card = Zoo().card(args.model)
    if args.images is not None and args.polarizer is None:
        raise ConfigError(
            f"--images needs --polarizer: train one with `npd defend {card.id} --save DIR`, then name DIR."
        )
    for path, fits in ((args.images, Path.is_file), (args.polarizer, Path.is_dir)):
        if path is not None and not fits(path):
            raise StorageError(
                f"There is no {path}: name a folder of `npd defend --save`, or a zip of images."
            )
    if args.no_masks and args.polarizer is None:
        raise ConfigError("With --no-masks there is nothing to look at: name --polarizer DIR.")

    from npd_core.device import environment, resolve_device
    from npd_core.uploads.inspection import BLIND_SPOTS

    device = resolve_device(args.device)
    backdoored = Zoo().load(args.model)
    masks = None if args.no_masks else _masks(backdoored, args, device)
    compared = None if args.polarizer is None else _compared(backdoored, args, device)
    value: dict[str, Any] = {
        "model": card.id,
        "masks": None if masks is None else masks._asdict(),
        **({"clean": None, "suspects": None} if compared is None else compared[0]),
        "cannot_see": BLIND_SPOTS,
        "environment": environment(device),
    }
    lines = [] if masks is None else [_mask_table(masks)]
    lines += [] if compared is None else compared[1]
    return Answer(value, "\n\n".join([*lines, BLIND_SPOTS]))


def _masks(backdoored: Backdoored, args: argparse.Namespace, device: torch.device) -> Masks:
    from npd_core.config.baselines import NCConfig
    from npd_core.config.presets import defense_config
    from npd_core.data.clean import load_clean
    from npd_core.data.load import ImageSet
    from npd_core.events import EpochEnd
    from npd_core.uploads.inspection import search_masks

    card = backdoored.card
    loaded = load_clean(card.dataset, args.clean, seed=0)
    config = defense_config("nc", card)
    assert isinstance(config, NCConfig)
    search = search_masks(backdoored.net, ImageSet(loaded.images, loaded.labels), config, device)
    while True:
        try:
            event = next(search)
        except StopIteration as end:
            found: Masks = end.value
            return found
        if isinstance(event, EpochEnd):
            progress_line(f"masks: {-event.epoch} epochs left at most")


def _compared(
    backdoored: Backdoored, args: argparse.Namespace, device: torch.device
) -> tuple[dict[str, Any], list[str]]:
    """Return what the polarizer changes, as values and as text."""
    from npd_core.data.load import class_names, load_dataset
    from npd_core.evaluation import some
    from npd_core.polarizer.artifact import load_polarizer
    from npd_core.uploads.images import read_unlabeled
    from npd_core.uploads.inspection import changes

    card = backdoored.card
    net = backdoored.net.to(device)
    polarized = load_polarizer(args.polarizer, net, card).to(device)
    names = class_names(card.dataset)
    test = load_dataset(card.dataset, "test")
    test = test.subset(some(test.size, min(args.test_images, test.size)))
    clean = changes(net, polarized, test.images, device)
    value: dict[str, Any] = {"clean": _clean(clean), "suspects": None}
    text = [_clean_table(clean, names)]
    if args.images is not None:
        import torch

        files, images = read_unlabeled(args.images, card.image_size)
        found = changes(net, polarized, torch.from_numpy(images), device)
        value["suspects"] = [
            {"file": file, "before": one, "after": other, "score": score, "changed": one != other}
            for file, one, other, score in zip(files, found.before, found.after, found.scores, strict=True)
        ]
        rows = [
            [files[k], names[found.before[k]], names[found.after[k]], f"{found.scores[k]:.3f}"]
            for k in found.changed
        ]
        head = f"{len(rows)} of {len(files)} suspected images change their class through the polarizer"
        text.append(head + (":\n" + text_table(["image", "before", "after", "score"], rows) if rows else "."))
    return value, text


def _clean(found: Changes) -> dict[str, Any]:
    by_class = {str(k): {"images": n, "changed": c} for k, (n, c) in found.by_class().items()}
    return {"images": len(found.before), "changed": len(found.changed), "by_class": by_class}


def _mask_table(masks: Masks) -> str:
    rows = [
        [f"class {k}", f"{norm:.1f}", f"{masks.anomaly[k]:.2f}", "flagged" if k in masks.flagged else ""]
        for k, norm in sorted(masks.norms.items(), key=lambda pair: pair[1])
    ]
    head = f"Smallest patch that reaches each class; flagged if {masks.threshold:g} MAD below the median:"
    return head + "\n" + text_table(["class", "norm, pixels", "anomaly index", ""], rows)


def _clean_table(found: Changes, names: tuple[str, ...]) -> str:
    rows = [[names[k], str(n), str(c)] for k, (n, c) in found.by_class().items()]
    head = f"The polarizer changes the class of {len(found.changed)} of {len(found.before)} clean images:"
    return head + "\n" + text_table(["predicted before", "images", "changed"], rows)

"""`npd import`: import a network and a few clean images, read safely, to be defended by its new id."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from npd_core.cli.common import Answer, Commands, text_table
from npd_core.errors import ConfigError, StorageError, unknown_name
from npd_core.names import EXPORT

if TYPE_CHECKING:
    from npd_core.uploads.preprocessing import Findings


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add("import", run, "import a network and a few clean images, to be defended")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "any network, as ONNX (install the extra `onnx`):\n  " + "\n  ".join(EXPORT)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="a .safetensors, .pt, .pth, .ckpt, .tar or .onnx file, or a folder of BackdoorBench's attack",
    )
    parser.add_argument(
        "images", metavar="IMAGES", type=Path, help="clean images: a zip of class folders, or parquet"
    )
    parser.add_argument(
        "--arch",
        default="auto",
        help="auto (default), a name such as preact_resnet18 or resnet20, a classifier of torchvision, "
        'timm:NAME, or a chain of layers: "chain: conv, bn, relu, maxpool 2, globalpool, linear"',
    )
    parser.add_argument(
        "--normalize", metavar="NAME|6 NUMBERS", default="none: pixels in [0, 1]",
        help='a name such as "CIFAR-10" or "ImageNet", or means and deviations: M,M,M,S,S,S (default: none)',
    )  # fmt: skip
    parser.add_argument(
        "--size", metavar="N", type=int, help="height and width of the images (as the file states, else 32)"
    )
    parser.add_argument(
        "--border", metavar="N", type=int, default=0, help="cut N 32nds of the height off each side (0)"
    )
    parser.add_argument("--bgr", action="store_true", help="the network takes blue, green, red")
    parser.add_argument(
        "--adapt", choices=("far", "best", "never"), default="far",
        help="prepare the images as the clean ones suggest: if far ahead (default), always the best, never",
    )  # fmt: skip
    parser.add_argument(
        "--triggered", metavar="IMAGES", type=Path, help="images that carry the trigger, by true class"
    )
    parser.add_argument(
        "--target", metavar="LABEL", type=int, help="target label of the attacker, with --triggered"
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=int,
        default=0,
        help="of the split into images to train on and held-out images (0)",
    )


def run(args: argparse.Namespace) -> Answer:
    """Import the network and show how to defend it."""
    if args.checkpoint.is_dir() and args.triggered is None:
        from npd_core.uploads.backdoorbench import record

        with record(args.checkpoint) as found:
            target = found.target if args.target is None else args.target
            if target is None:
                raise ConfigError("The target class does not follow from the folder: name it with --target.")
            parts = {"checkpoint": found.checkpoint, "triggered": found.triggered, "target": target}
            return run(argparse.Namespace(**vars(args) | parts))
    for path in (args.checkpoint, args.images, args.triggered):
        if path is not None and not path.is_file():
            raise StorageError(f"There is no file {path}: name the checkpoint and the images.")
    from npd_core.config.presets import preset
    from npd_core.data.spec import NORMALISATIONS, get_dataset
    from npd_core.uploads.preprocessing import read_findings
    from npd_core.uploads.store import Settings, import_model

    if args.normalize in NORMALISATIONS:
        mean, std = NORMALISATIONS[args.normalize]
    else:
        numbers = _numbers(args.normalize, list(NORMALISATIONS))
        mean, std = (numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5])
    settings = Settings(
        arch=args.arch, mean=mean, std=std, image_size=args.size, target=args.target, seed=args.seed,
        border=args.border, bgr=args.bgr, adapt=args.adapt,
    )  # fmt: skip
    card = import_model(args.checkpoint, args.images, settings, args.triggered)
    cfg, clean = preset(card.dataset, size=card.image_size), get_dataset(card.dataset).train_images
    command = (
        f"npd defend {card.id} --clean {clean} --rho {cfg.rho:g} --attack-on {cfg.attack_on} --batch-size 32"
    )
    findings = read_findings(card.folder)
    about = {} if findings is None else findings._asdict()
    value = card.to_dict() | {"folder": str(card.folder), "findings": about}
    width = f" of width {card.width}" if card.width else ""
    command += f" --lambda2 {cfg.lambda2:g} --lambda3 {cfg.lambda3:g}"
    known = f"{card.arch}{width}, {card.num_classes} classes, ACC {card.acc:.1%} on held-out images"
    text = f"{_table(findings)}\n{card.id}: {known}\nKept in {card.folder}\nPolarize it with: {command}"
    return Answer(value, text)


def _table(findings: Findings | None) -> str:
    """Return the best ways to prepare images, then the warnings."""
    if findings is None:
        return ""
    head = ["normalization", "channels", "size", "border", "acc. %", ""]
    rows = [
        [c["normalization"], c["channels"], str(c["size"]), f"{c['border']}/32", f"{100 * c['accuracy']:.1f}",
         "used" if c == findings.used else ""]
        for c in findings.candidates[:8] + [c for c in findings.candidates[8:] if c == findings.used]
    ]  # fmt: skip
    turned = [f"{findings.turned} images were rotated as their Exif blocks say."] if findings.turned else []
    return "\n".join([text_table(head, rows), *turned, *(f"Warning: {text}" for text in findings.warnings)])


def _numbers(text: str, names: list[str]) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise unknown_name("normalization", text, names) from None
    if len(numbers) != 6:
        raise ConfigError(
            f"--normalize takes a name or six numbers, three means and three deviations, got {text!r}."
        )
    return numbers

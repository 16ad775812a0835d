"""The commands that take a run home (`npd export`, `npd report`) and bring a network (`npd bring`)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from npd_core import paths
from npd_core.cli.common import Answer, Parser
from npd_core.errors import ConfigError, NPDError, StorageError, unknown_name
from npd_core.export import MODEL_FORMATS
from npd_core.export.run_archive import run_archive
from npd_core.fileio import write_bytes
from npd_core.runs.store import Run, RunStore, read_record

FORMATS = ("polarizer", *MODEL_FORMATS)


def export(args: argparse.Namespace) -> Answer:
    """`npd export RUN`"""
    if args.format not in FORMATS:
        raise unknown_name("format", args.format, FORMATS)
    run = _run(args.run)
    out = _target(args.out, f"{run.request.model}-{args.format}.zip")
    if args.format == "polarizer":
        content = run_archive(run.folder, run.request.model)
    else:
        from npd_core.export.model_archive import model_archive

        content = model_archive(run.folder, args.format)
    write_bytes(out, content)
    value = {
        "run": run.id,
        "model": run.request.model,
        "format": args.format,
        "file": str(out),
        "bytes": len(content),
    }
    return Answer(
        value,
        f"{run.request.model} as {args.format}: {out} ({len(content) / 1e6:.2f} MB); use.py in it uses it",
    )


def report(args: argparse.Namespace) -> Answer:
    """`npd report RUN`"""
    run = _run(args.run)
    out = _target(args.out, f"{run.request.model}-report.html")
    from npd_core.export.report import run_report

    text = run_report(run.folder)
    write_bytes(out, text.encode())
    value = {"run": run.id, "model": run.request.model, "file": str(out), "bytes": len(text.encode())}
    return Answer(value, f"Report of {run.request.model}: {out}")


def bring(args: argparse.Namespace) -> Answer:
    """`npd bring CHECKPOINT`"""
    for path in (args.checkpoint, args.images, args.triggered):
        if path is not None and not path.is_file():
            raise StorageError(f"There is no file {path}: name the checkpoint and the images.")
    from npd_core.config.presets import preset
    from npd_core.data.spec import NORMALISATIONS, get_dataset
    from npd_core.uploads.store import Settings, import_model

    if args.normalise in NORMALISATIONS:
        mean, std = NORMALISATIONS[args.normalise]
    else:
        numbers = _numbers(args.normalise, list(NORMALISATIONS))
        mean, std = (numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5])
    settings = Settings(
        arch=args.arch, mean=mean, std=std, image_size=args.size, target=args.target, seed=args.seed
    )
    card = import_model(args.checkpoint, args.images, settings, args.triggered)
    cfg, clean = preset(card.dataset, size=card.image_size), get_dataset(card.dataset).train_images
    command = (
        f"npd defend {card.id} --clean {clean} --rho {cfg.rho:g} --attack-on {cfg.attack_on} --batch-size 32"
    )
    value = card.to_dict() | {"folder": str(card.folder)}
    width = f" of width {card.width}" if card.width else ""
    text = (
        f"{card.id}: {card.arch}{width}, {card.num_classes} classes, ACC {card.acc:.1%} on the images held out\n"
        f"Kept in {card.folder}\nPolarize it with: {command} --lambda2 {cfg.lambda2:g} --lambda3 {cfg.lambda3:g}"
    )
    return Answer(value, text)


def _run(name: str) -> Run:
    """A run by its folder, or by its id among the live and the recorded ones."""
    folder = Path(name)
    if folder.is_dir():
        return read_record(folder.resolve())
    try:
        return RunStore(paths.runs()).get(name)
    except NPDError as error:
        shipped = RunStore(paths.recorded())
        if any(run.id == name for run in shipped.list()):
            return shipped.get(name)
        raise StorageError(
            f"There is no run {name!r}: name its folder, or its id as on the page Runs."
        ) from error


def _target(out: Path | None, name: str) -> Path:
    """The file to write, refused now where it could not be written later."""
    path = (out or Path(name)).resolve()
    if path.is_dir():
        raise StorageError(f"--out {path} is a folder: name a file.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise StorageError(f"--out {path}: the folder {path.parent} cannot be written in; name another file.")
    return path


def _numbers(text: str, names: list[str]) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise unknown_name("normalisation", text, names) from None
    if len(numbers) != 6:
        raise ConfigError(
            f"--normalise takes a name or six numbers, three means and three deviations, got {text!r}."
        )
    return numbers


def add_commands(add: Callable[[str, Callable[[argparse.Namespace], Answer], str], Parser]) -> None:
    """The commands of this module; `add` takes a command's word, its function and its help."""
    home = add("export", export, "write the polarizer or the repaired network of a run as a zip file")
    home.add_argument("run", metavar="RUN", help="folder that `npd defend --save` wrote, or the id of a run")
    home.add_argument("--format", default="safetensors", help=f"{', '.join(FORMATS)} (default: safetensors)")
    home.add_argument("--out", metavar="FILE", type=Path, help="zip file to write (MODEL-FORMAT.zip)")

    page = add("report", report, "write a run as one HTML file: settings, curves, pictures, numbers")
    page.add_argument("run", metavar="RUN", help="folder that `npd defend --save` wrote, or the id of a run")
    page.add_argument("--out", metavar="FILE", type=Path, help="HTML file to write (MODEL-report.html)")

    own = add("bring", bring, "bring a network of your own, with a few clean images, to be defended")
    own.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a .safetensors, .pt or .pth file")
    own.add_argument(
        "images", metavar="IMAGES", type=Path, help="clean images: a zip of class folders, or parquet"
    )
    own.add_argument(
        "--arch", default="auto", help="auto (default), preact_resnet18, vgg19_bn, or one of torchvision"
    )
    own.add_argument(
        "--normalise", metavar="NAME|6 NUMBERS", default="none: pixels in [0, 1]",
        help='a name such as "CIFAR-10" or "ImageNet", or means and deviations: M,M,M,S,S,S (default: none)',
    )  # fmt: skip
    own.add_argument("--size", metavar="N", type=int, default=32, help="height and width of the images (32)")
    own.add_argument(
        "--triggered", metavar="IMAGES", type=Path, help="images that carry the trigger, by true class"
    )
    own.add_argument(
        "--target", metavar="LABEL", type=int, help="label that the attacker wants, with --triggered"
    )
    own.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the split into used and held-out images (0)"
    )

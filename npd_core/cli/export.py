"""`npd export`: write the polarizer or the repaired network of a run as a zip file."""

from __future__ import annotations

import argparse
from pathlib import Path

from npd_core import paths
from npd_core.cli.common import Answer, Commands, check_file
from npd_core.errors import NPDError, StorageError, unknown_name
from npd_core.exports import MODEL_FORMATS
from npd_core.exports.run_archive import run_archive
from npd_core.fileio import write_bytes
from npd_core.runs.store import Run, RunStore, read_record

FORMATS = ("polarizer", *MODEL_FORMATS)


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add("export", run, "write the polarizer or the repaired network of a run as a zip file")
    add_run(parser)
    parser.add_argument(
        "--format", default="safetensors", help=f"{', '.join(FORMATS)} (default: safetensors)"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="zip file to write (MODEL-FORMAT.zip)")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument RUN."""
    parser.add_argument(
        "run", metavar="RUN", help="folder that `npd defend --save` wrote, or the id of a run"
    )


def run(args: argparse.Namespace) -> Answer:
    """Write the zip file."""
    if args.format not in FORMATS:
        raise unknown_name("format", args.format, FORMATS)
    found = find_run(args.run)
    out = target_file(args.out, f"{found.request.model}-{args.format}.zip")
    if args.format == "polarizer":
        content = run_archive(found.folder, found.request.model)
    else:
        from npd_core.exports.model_archive import model_archive

        content = model_archive(found.folder, args.format)
    write_bytes(out, content)
    value = {
        "run": found.id,
        "model": found.request.model,
        "format": args.format,
        "file": str(out),
        "bytes": len(content),
    }
    return Answer(
        value,
        f"{found.request.model} as {args.format}: {out} ({len(content) / 1e6:.2f} MB); use.py in it uses it",
    )


def find_run(name: str) -> Run:
    """Return a run by its folder, or by its id among the live and the recorded ones. Raises StorageError."""
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


def target_file(out: Path | None, name: str) -> Path:
    """Return the file to write; refuse it now if it could not be written later. Raises StorageError."""
    path = (out or Path(name)).resolve()
    check_file("--out", path)
    return path

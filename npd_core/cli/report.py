"""`npd report`: write a run as one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

from npd_core.cli.common import Answer, Commands
from npd_core.cli.export import add_run, find_run, target_file
from npd_core.fileio import write_bytes


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add("report", run, "write a run as one HTML file: settings, curves, images, numbers")
    add_run(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, help="HTML file to write (MODEL-report.html)")


def run(args: argparse.Namespace) -> Answer:
    """Write the report."""
    found = find_run(args.run)
    out = target_file(args.out, f"{found.request.model}-report.html")
    from npd_core.exports.report import run_report

    text = run_report(found.folder)
    write_bytes(out, text.encode())
    value = {"run": found.id, "model": found.request.model, "file": str(out), "bytes": len(text.encode())}
    return Answer(value, f"Report of {found.request.model}: {out}")

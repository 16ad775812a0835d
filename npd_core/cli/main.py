"""The command line: `npd`, also `python -m npd_core`. Each command has a file of its own in this folder.

Exit codes: 0 done; 1 the training diverged or a model does not verify; 2 the command cannot be carried out,
with one line that says why; 130 interrupted by Ctrl-C (143 by `kill`), with nothing half-written.

Torch is imported by the commands that need it, inside `run`: `npd models` and `npd --help` answer at once.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from npd_core.cli import (
    attack,
    bench,
    compare,
    data,
    defend,
    evaluate,
    export,
    import_,
    inspect,
    models,
    report,
    suggest,
    sweep,
    table,
    zoo,
)
from npd_core.cli.common import Answer, Commands, Parser, check_file, complain
from npd_core.cli.interrupt import MESSAGE, interrupt
from npd_core.errors import NPDError
from npd_core.fileio import write_json
from npd_core.plugins import load_plugins
from npd_core.version import __version__

COMMANDS = (
    models, data, defend, compare, evaluate, attack, export, report, import_, inspect,
    sweep, table, suggest, zoo, bench,
)  # fmt: skip
"""In the order in which `npd --help` lists them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: arguments without the program's name; None: those of the process.
    """
    try:
        if argv is None:
            interrupt.install(_run.__code__)
        return _run(sys.argv[1:] if argv is None else argv)
    except NPDError as error:
        if not interrupt.signal:  # otherwise it is a consequence of the interruption
            complain(str(error))
            return 2
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        pass
    gc.collect()  # trainings that were waiting for their next step clean up as they are deleted
    if interrupt.signal:
        interrupt.leave()
    complain(MESSAGE)  # where this function was called from Python, not from a shell
    return 130


def build_parser() -> Parser:
    """Return the parser of all commands. Imports configs and no torch."""
    parser = Parser(
        prog="npd", description="Neural Polarizer Lab: remove a backdoor with one thin learned layer."
    )
    parser.add_argument("--version", action="version", version=f"npd {__version__}")
    parser.set_defaults(parser=parser, json=None)
    commands = Commands(parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser))
    for command in COMMANDS:
        command.add(commands)
    return parser


def _run(argv: Sequence[str]) -> int:
    load_plugins()
    args = build_parser().parse(argv)
    if args.json not in (None, "-"):
        check_file("--json", Path(args.json))
    with contextlib.redirect_stdout(sys.stderr) if args.json == "-" else contextlib.nullcontext():
        answer: Answer = args.command(args)
    with interrupt.later():
        _print(answer, args.json)
    return answer.code


def _print(answer: Answer, json_to: str | None) -> None:
    if json_to == "-":
        print(json.dumps(answer.value, indent=2, ensure_ascii=False), flush=True)
        return
    if answer.text:
        print(answer.text, flush=True)
    if json_to is not None:
        write_json(Path(json_to), answer.value, indent=2)

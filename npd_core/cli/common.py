"""What all commands share: answers, the parser, readers of values, tables and progress bars."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from npd_core.errors import ConfigError, StorageError, unknown_name

if TYPE_CHECKING:
    from rich.progress import Progress

PAPER_SETTINGS = (
    "lambda1",
    "lambda2",
    "lambda3",
    "lambda4",
    "rho",
    "norm",
    "epochs",
    "lr",
    "batch_size",
    "seed",
)
"""The settings of NPD that the paper names."""


@dataclass(frozen=True)
class Answer:
    """Result of a command: `value` for `--json`, `text` for the terminal, and the exit code."""

    value: Any
    text: str
    code: int = 0


class Parser(argparse.ArgumentParser):
    """argparse whose errors are NPDErrors of one line that name the nearest valid choice."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Raises ConfigError, UnknownNameError; SystemExit(0) after `--help` and `--version`."""
        args, extra = self.parse_known_args(list(argv))
        parser: Parser = args.parser
        for word in extra:
            if word.startswith("-"):
                options = [option for option in parser._option_string_actions if option.startswith("--")]
                raise unknown_name("option", word.split("=")[0], options)
            raise ConfigError(f"`{parser.prog}` does not take {word!r}: see `{parser.prog} --help`.")
        return args

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}; see `{self.prog} --help`.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            kind = action.option_strings[0] if action.option_strings else "command"
            raise unknown_name(kind, value, action.choices)


class Commands:
    """Registers commands, or the actions of one command."""

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers

    def add(self, name: str, run: Callable[[argparse.Namespace], Answer] | None, help: str) -> Parser:
        """Return the parser of a new command. Without `run` it needs one of its actions."""
        parser: Parser = self._subparsers.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + "."
        )
        parser.set_defaults(parser=parser)
        if run is not None:
            parser.set_defaults(command=run)
            parser.add_argument(
                "--json",
                metavar="FILE",
                default=argparse.SUPPRESS,
                help="write the result as JSON; use - for stdout",
            )
        return parser

    @staticmethod
    def actions(parser: Parser, required: bool = False) -> Commands:
        """Return where the actions of a command are added."""
        return Commands(parser.add_subparsers(metavar="ACTION", required=required, parser_class=Parser))


def add_model(parser: Parser) -> None:
    """Add the argument MODEL."""
    parser.add_argument("model", metavar="MODEL", help="id of a model, see `npd models`")


def add_device(parser: Parser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")


def add_clean(parser: Parser) -> None:
    """Add `--clean`."""
    parser.add_argument(
        "--clean",
        metavar="SHARE|N",
        type=read_share_or_count,
        default=0.05,
        help="clean images of the defender: a share such as 0.05 (default), or a number of images",
    )


def complain(message: str) -> None:
    """Print one line on stderr."""
    print("npd: " + " ".join(message.split()), file=sys.stderr, flush=True)


def progress_line(text: str) -> None:
    """Print one line on stderr where no progress bar is drawn."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def check_file(option: str, path: Path | None) -> None:
    """Refuse now a file that could not be written after minutes of work. Raises StorageError."""
    if path is None:
        return
    if path.is_dir():
        raise StorageError(f"{option} {path} is a folder: name a file, or - for stdout.")
    if not path.parent.is_dir():
        raise StorageError(f"{option} {path}: the folder {path.parent} does not exist; name another file.")
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"{option} {path}: no permission to write in {path.parent}; name another file.")


def percent(share: float | None) -> str:
    """Return a fraction in percent with two decimals, - for None."""
    return "-" if share is None else f"{100 * share:.2f}"


def progress_bar(text: str) -> Progress:
    """Return a progress bar on stderr, with `text` at its end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(text),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    return Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    )


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return columns of text; those that hold numbers are aligned to the right."""
    lines = [tuple(head), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    numeric = [all(_is_number(cell) for cell in column[1:]) for column in zip(*lines, strict=True)]
    out = []
    for line in lines:
        cells = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True))
        out.append("  ".join(cells).rstrip())
    return "\n".join(out)


def _is_number(cell: str) -> bool:
    return cell.strip() in ("", "-") or cell.strip()[:1] in "+-0123456789"


def read_value(kind: str, text: str) -> Any:
    """Return the value of a setting.

    Args:
        kind: annotation of the field, such as `int`, `float | None` or `tuple[float, ...]`; the parts of a
            tuple are separated by commas.
    Raises:
        ArgumentTypeError: not of this kind.
    """
    if kind.endswith(" | None") and text.lower() == "none":
        return None
    kind = kind.removesuffix(" | None")
    readers: dict[str, Callable[[str], Any]] = {"int": read_whole, "float": read_number, "str": str}
    if kind.startswith("tuple["):
        return tuple(read_value(re.split(r"[\[,]", kind)[1], part) for part in text.split(","))
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
        return text.lower() == "true"
    return readers[kind](text)


def read_number(text: str) -> float:
    """Raises ArgumentTypeError, as do all that read."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def read_number_or_none(text: str) -> float | None:
    """A number, or the word `none`."""
    return None if text.lower() == "none" else read_number(text)


def read_whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def read_positive(text: str) -> int:
    """A whole number of at least 1."""
    if (count := read_whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return count


def read_words(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise argparse.ArgumentTypeError("names nothing")
    return words


def read_share_or_count(text: str) -> float | int:
    """`500` is a number of images, `0.05` and `1.0` are shares."""
    return int(text) if text.strip().lstrip("+-").isdecimal() else read_number(text)

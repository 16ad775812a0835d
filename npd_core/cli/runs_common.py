"""Options and messages that `npd sweep` and `npd table` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from npd_core.cli.common import Parser, add_device, read_positive
from npd_core.defenses import DEFENSES
from npd_core.errors import unknown_name
from npd_core.experiments.record import Cell

T = TypeVar("T")


def add_running(parser: Parser) -> None:
    """Add the options of how runs are carried out."""
    parser.add_argument(
        "--workers", metavar="N", type=read_positive, default=1, help="processes on this machine (1)"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="address of a Dask cluster, such as tcp://10.0.0.1:8786"
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write one line per run")
    add_device(parser)


def list_of(kind: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Return a reader of values separated by commas."""
    return lambda text: tuple(kind(part.strip()) for part in text.split(","))


def check_defenses(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return the defenses, `all` replaced by every one. Raises UnknownNameError."""
    for name in names or ():
        if name not in (*DEFENSES, "all"):
            raise unknown_name("defense", name, ("all", *DEFENSES))
    return tuple(DEFENSES) if names and "all" in names else names


def exit_code(cells: Sequence[Cell]) -> int:
    """Return 1 where a cell failed."""
    return 1 if any(cell.failed for cell in cells) else 0


def failures(cells: Sequence[Cell], axes: Sequence[str]) -> list[str]:
    """Return why cells failed, each reason once."""
    from npd_core.experiments.render import text_of

    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.failed:
            reasons.setdefault(cell.failed, []).append(" ".join(text_of(cell.row.get(axis)) for axis in axes))
    return [
        f"{where[0]}{f' and {len(where) - 1} more' * (len(where) > 1)}: {why}"
        for why, where in reasons.items()
    ]

"""A measured table of the paper as one JSON file, with the paper's published numbers. No torch.

    <paths.tables()>/<table>-<dataset>.json     `table1-signs.json`, `figure3-cifar10.json`

Fractions are in [0, 1], times in seconds, dates in ISO 8601. `npd table` writes these files; none is edited
by hand.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from npd_core import paths
from npd_core.errors import StorageError
from npd_core.fileio import write_json

TABLES = ("table1", "table2", "table3", "table4", "table5", "table6", "table7", "figure3")
AXES: dict[str, tuple[str, ...]] = {
    "table1": ("attack", "defense"),
    "table2": ("attack", "defense"),
    "table3": ("attack", "terms"),
    "table4": ("attack", "targeted", "defense"),
    "table5": ("attack", "poison_ratio", "defense"),
    "table6": ("attack", "clean", "defense"),
    "table7": ("defense",),
    "figure3": ("attack", "layer"),
}
"""The axes of each table: the keys of `Cell.row`, in display order. `terms` is such as `bn+bce1+asr`,
`targeted` true or false, `poison_ratio` a fraction, `clean` a number of images, `layer` the name of an
insertion layer."""


class Scores(NamedTuple):
    """ACC, ASR and RA, fractions."""

    acc: float
    asr: float
    ra: float


class Seconds(NamedTuple):
    """Running times."""

    train: float
    evaluate: float


class Published(NamedTuple):
    """The published numbers of a cell, fractions and seconds; None: not printed."""

    acc: float | None = None
    asr: float | None = None
    der: float | None = None
    seconds: float | None = None
    der_corrected: float | None = None
    """Eq. 6 on the printed ACC and ASR, where the printed DER differs."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run in a table. A failed cell gives the reason in `failed` and may have no numbers."""

    row: Mapping[str, Any]
    """Axis of the table (see AXES) -> value."""
    model: str
    """Id of the zoo model."""
    defense: str
    layer: str | None = None
    """Insertion layer in canonical spelling; None for a baseline, or when nothing was run."""
    before: Scores | None = None
    after: Scores | None = None
    der: float | None = None
    seconds: Seconds | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """The request as `DefenseRequest.to_dict` gives it; empty when there is none."""
    seed: int = 0
    device: str = ""
    date: str = ""
    published: Published | None = None
    """The paper's numbers, measured at width 64; None: the paper has no such cell."""
    failed: str | None = None
    """One sentence: why there are no numbers, or why the training counts as failed."""


@dataclass(frozen=True, kw_only=True)
class TableRecord:
    """A table of the paper, measured on one data set."""

    table: str
    """A name in TABLES."""
    title: str
    dataset: str
    quick: bool = False
    cut: tuple[str, ...] = ()
    """Sentences on the differences from the paper's table."""
    command: str
    """The command that makes this record."""
    date: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        return AXES[self.table]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        for cell, plain in zip(self.cells, values["cells"], strict=True):
            for name in ("before", "after", "seconds", "published"):
                part = getattr(cell, name)
                plain[name] = None if part is None else part._asdict()
        return values | {"cut": list(self.cut), "cells": list(values["cells"])}


def table_path(table: str, dataset: str, folder: Path | None = None) -> Path:
    """Return the path of a record. Args: folder: instead of `paths.tables()`."""
    return (folder or paths.tables()) / f"{table}-{dataset}.json"


def list_tables(folder: Path | None = None) -> list[Path]:
    """Return the paths of all records, in the paper's order, then by data set. They may be unreadable."""
    known = re.compile(rf"({'|'.join(TABLES)})-[a-z0-9_]+\.json")
    found = [path for path in (folder or paths.tables()).glob("*.json") if known.fullmatch(path.name)]
    return sorted(found, key=lambda path: (TABLES.index(path.name.split("-")[0]), path.name))


def find_table(table: str, dataset: str, folder: Path | None = None) -> TableRecord | None:
    """Return the record of a table on a data set; None when there is none. Raises as `read_table`."""
    path = table_path(table, dataset, folder)
    return read_table(path) if path.exists() else None


def write_table(record: TableRecord, path: Path) -> None:
    """Write a record atomically. Raises StorageError."""
    write_json(path, record.to_dict())


def read_table(path: Path) -> TableRecord:
    """Return the record in a file. Raises StorageError when it cannot be read or is not a table record."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        cells = tuple(_cell(plain, AXES[values["table"]]) for plain in values["cells"])
        return TableRecord(**{**values, "cut": tuple(values.get("cut", ())), "cells": cells})
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "Restore it from git, or measure it again with `npd table`."
        raise StorageError(
            f"{path}: not a readable table record ({type(error).__name__}: {error}). {remedy}"
        ) from error


def _cell(plain: Mapping[str, Any], axes: tuple[str, ...]) -> Cell:
    """Return a cell of the JSON. Raises TypeError, KeyError or ValueError on anything else."""
    kinds: dict[str, Any] = {"before": Scores, "after": Scores, "seconds": Seconds, "published": Published}
    parts = {name: None if plain.get(name) is None else kind(**plain[name]) for name, kind in kinds.items()}
    cell = Cell(**{**plain, **parts})
    if not isinstance(cell.row, dict) or set(cell.row) != set(axes):
        raise ValueError(f"a row must have the axes {', '.join(axes)}, got {cell.row}")
    if cell.failed is None and (cell.before is None or cell.after is None or cell.seconds is None):
        raise ValueError(f"neither numbers nor a reason at {cell.row}")
    printed = cell.published or Published()
    shares = [*(cell.before or ()), *(cell.after or ()), cell.der]
    shares += [printed.acc, printed.asr, printed.der, printed.der_corrected]
    times = [*(cell.seconds or ()), printed.seconds]
    for number in shares + times:
        if number is not None and not (0 <= number <= (1 if number in shares else math.inf)):
            raise ValueError(f"a number out of range at {cell.row}: {number}")
    return cell

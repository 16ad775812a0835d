"""The paper's published numbers, from `assets/paper_tables.json`, as fractions under our names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from npd_core import paths
from npd_core.errors import StorageError
from npd_core.experiments.record import Published
from npd_core.metrics import Metrics, der
from npd_core.names import DEFENSES as NAMES

ATTACKS = {
    "badnets_a2o": "BadNets-A2O",
    "badnets_a2a": "BadNets-A2A",
    "blended": "Blended",
    "input_aware": "Input-Aware",
    "lf": "LF",
    "ssba": "SSBA",
    "trojan": "Trojan",
    "wanet": "WaNet",
}
"""Our name -> the paper's."""
DEFENSES = {name: title for name, title in NAMES.items() if name != "none"}
ROUNDING = 0.005
"""DERs that differ by less count as equal."""
TERMS = {
    "bn": "L_bn",
    "bn+bce1": "L_bn+L_bce1",
    "bn+bce2": "L_bn+L_bce2",
    "bn+asr": "L_bn+L_asr",
    "bn+bce1+bce2": "L_bn+L_bce1+L_bce2",
    "bn+bce1+bce2+asr": "L_bn+L_bce1+L_bce2+L_asr",
}
"""Rows of Table 3: the loss terms with a weight."""


def published(
    table: str, dataset: str, attack: str, defense: str, row: Mapping[str, Any]
) -> Published | None:
    """Return the published numbers of a cell; None where the paper has none.

    Tables 1 and 2 are one table on two data sets.
    """
    before, attack, defense = undefended(dataset, attack), ATTACKS[attack], DEFENSES[defense]
    where: dict[str, tuple[str, ...]] = {"table4": (attack, defense), "table7": ("running_time_sec", defense)}
    if table == "table3":
        where["table3"] = (attack, TERMS[row["terms"]])
    if table == "table5":
        where["table5"] = (attack, f"poison_ratio={100 * row['poison_ratio']:g}%", defense)
    if table == "table6":
        where["table6"] = (attack, f"n_clean={row['clean']}", defense)
    if table in ("table1", "table2"):
        table = "table2" if dataset == "tiny_imagenet" else "table1"
        where[table] = (attack, defense)
    found: Any = paper().get(table, {}).get(dataset)
    for step in where.get(table, ("",)):
        found = found.get(step) if isinstance(found, dict) else None
    if found is None:
        return None
    if table == "table7":
        return Published(seconds=found)
    numbers = _fractions(found)
    if before is None or None in (*before[:2], *numbers[:3]):
        return numbers
    rating = der(Metrics(before.acc, before.asr), Metrics(numbers.acc, numbers.asr))  # type: ignore[arg-type]
    same = abs(rating - numbers.der) < ROUNDING  # type: ignore[operator]
    return numbers if same else numbers._replace(der_corrected=round(rating, 4))


def undefended(dataset: str, attack: str) -> Published | None:
    """Return the published numbers of the undefended network; None where the paper has none."""
    for table in ("table1", "table2"):
        found = paper()[table].get(dataset, {}).get(ATTACKS[attack], {}).get("Backdoored")
        if found is not None:
            return _fractions(found)
    return None


def _fractions(printed: Mapping[str, float | None]) -> Published:
    shares = (printed[name] for name in ("ACC", "ASR", "DER"))
    return Published(*(None if share is None else round(share / 100, 6) for share in shares))


@cache
def paper() -> dict[str, Any]:
    """Return the paper's tables as printed, in percent. Raises StorageError."""
    path = paths.assets() / "paper_tables.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: not readable ({error}). Restore it from git.") from error
    return values

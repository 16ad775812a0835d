"""DER of every row of Tables 1 and 2, computed from the ACC and ASR printed beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from npd_core.metrics import Metrics, der

ROOT = Path(__file__).resolve().parent.parent.parent
TABLES = json.loads((ROOT / "assets" / "paper_tables.json").read_text(encoding="utf-8"))

ROWS = [
    (table, dataset, attack, defense)
    for table in ("table1", "table2")
    for dataset, attacks in TABLES[table].items()
    for attack, defenses in attacks.items()
    for defense, row in defenses.items()
    if row["DER"] is not None  # not printed for the undefended model; the second half of the AVG rows is lost
]


def metrics(row: dict[str, float]) -> Metrics:
    return Metrics(row["ACC"] / 100, row["ASR"] / 100)


def test_every_printed_row_is_here():
    """2 tables x (8 attacks x 9 defenses + 4 defenses whose average survived)."""
    assert len(ROWS) == 152


@pytest.mark.parametrize(("table", "dataset", "attack", "defense"), ROWS)
def test_der_as_printed(table, dataset, attack, defense):
    rows = TABLES[table][dataset][attack]
    computed = der(metrics(rows["Backdoored"]), metrics(rows[defense]))
    assert computed == pytest.approx(
        rows[defense]["DER"] / 100, abs=1.51e-4
    )  # ACC, ASR and DER are each rounded


def test_average_row_is_not_the_mean_of_the_ders():
    """The AVG rows apply Eq. 6 to averaged ACC and ASR; that is what the test above has checked for them."""
    rows = TABLES["table1"]["cifar10"]
    ders = [cells["NC"]["DER"] for attack, cells in rows.items() if attack != "AVG"]
    assert abs(sum(ders) / len(ders) - rows["AVG"]["NC"]["DER"]) > 0.05

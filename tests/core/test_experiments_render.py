"""Cells as text: what stands in which column, and that nothing of a record becomes markup."""

from __future__ import annotations

from dataclasses import replace

from npd_core.experiments.record import Cell, Published, Scores, Seconds, TableRecord
from npd_core.experiments.render import shown, terminal_rows, to_csv, to_html

AXES = ("attack", "defense")
CELL = Cell(
    row={"attack": "blended", "defense": "npd"},
    model="m",
    defense="npd",
    before=Scores(0.99, 0.98, 0.01),
    after=Scores(0.95, 0.02, 0.9),
    der=0.96,
    seconds=Seconds(12.34, 3.0),
)
PRINTED = replace(CELL, published=Published(acc=0.9118, asr=0.0041))
FAILED = Cell(
    row={"attack": "lf", "defense": "npd"}, model="m", defense="npd", failed="No <model> & no luck."
)


def test_columns_of_the_paper_are_there_where_it_prints_something():
    head, rows = terminal_rows([CELL, FAILED], AXES)
    assert head == ["attack", "defense", "ACC, ASR before", "ACC %", "ASR %", "RA %", "DER %", "seconds"]
    assert rows[0] == ["blended", "npd", "99.00, 98.00", "95.00", "2.00", "90.00", "96.00", "12.3"]
    assert rows[1] == ["lf", "npd", "-", "-", "-", "-", "-", "-"]
    head, rows = terminal_rows([PRINTED, CELL], AXES)
    assert head[-2:] == ["paper ACC %", "paper ASR %"]
    assert [row[-2:] for row in rows] == [["91.18", "0.41"], ["-", "-"]]


def test_csv_has_fractions_and_empty_fields():
    head, first, second, end = to_csv([PRINTED, FAILED], AXES).split("\n")
    assert dict(zip(head.split(","), first.split(","), strict=True)) == {
        "attack": "blended", "defense": "npd", "model": "m", "defense_id": "npd", "insertion_layer": "",
        "acc_before": "0.99", "asr_before": "0.98", "ra_before": "0.01", "acc": "0.95", "asr": "0.02",
        "ra": "0.9",
        "der": "0.96", "seconds_train": "12.34", "seconds_evaluate": "3.0", "seed": "0", "device": "",
        "date": "",
        "published_acc": "0.9118", "published_asr": "0.0041", "published_der": "", "published_seconds": "",
        "published_der_corrected": "", "failed": "",
    }  # fmt: skip
    assert second.endswith("No <model> & no luck.")
    assert end == ""


def page(*cells: Cell) -> str:
    return to_html(
        TableRecord(
            table="table1", title="T", dataset="signs", command="npd", date="d", cells=cells, cut=("<cut>",)
        )
    )


def test_the_page_shows_numbers_and_reasons_as_text():
    text = page(PRINTED, FAILED, FAILED)
    assert "<td>95.00</td>" in text
    assert '<td class="published">91.18</td>' in text
    assert text.count("No &lt;model&gt; &amp; no luck.") == 1  # once for the rows below each other
    assert "<li>&lt;cut&gt;</li>" in text
    assert "in this color" in text
    assert "in this color" not in page(CELL)


def test_tables_1_and_2_end_with_the_means_of_several_attacks():
    other = replace(CELL, row={"attack": "lf", "defense": "npd"}, after=Scores(0.85, 0.04, 0.8))
    record = TableRecord(
        table="table2", title="T", dataset="signs", command="npd", date="d", cells=(CELL, other)
    )
    cells, notes = shown(record)
    assert [cell.row["attack"] for cell in cells] == ["blended", "lf", "AVG"]
    assert notes == [
        "AVG: means over blended, lf; DER is Eq. 6 of the mean ACC and ASR, not the mean of the DERs."
    ]
    assert terminal_rows(cells, AXES)[1][2][:5] == ["AVG", "npd", "99.00, 98.00", "90.00", "3.00"]
    assert f"<li>{notes[0]}</li>" in to_html(record)
    for same in (replace(record, table="table3"), replace(record, cells=(CELL, FAILED))):
        assert shown(same) == (list(same.cells), [])

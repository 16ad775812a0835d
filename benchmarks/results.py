"""Write the numbers of docs/npd-in-practice.md from the recorded files, so that they cannot go stale.

    python -m benchmarks.results            show the two tables
    python -m benchmarks.results --write    put them between the markers of the page

Between the markers `results:runs` stands every recorded run, between `results:defenses` the means of the
recorded Table 1.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from npd_core import paths
from npd_core.experiments.record import Cell, TableRecord, find_table
from npd_core.metrics import Metrics, der, mean
from npd_core.names import DATASET_TITLES, architecture_name, attack_name, dataset_name, defense_name
from npd_core.runs.store import Run, RunStore
from npd_core.zoo.train import parse_id

PAGE = paths.ROOT / "docs" / "npd-in-practice.md"
Row = Sequence[object]


def runs_table() -> str:
    """Return one row per recorded run, and the mean of each kind of network, its DER by Eq. 6."""
    groups: dict[tuple[str, str, int], list[Run]] = defaultdict(list)
    for run in RunStore(paths.recorded()).list():
        name = parse_id(run.request.model)
        groups[name.dataset, name.arch, name.width].append(run)
    rows: list[Row] = []
    order = list(DATASET_TITLES)
    for (dataset, arch, width), runs in sorted(
        groups.items(), key=lambda g: (order.index(g[0][0]), g[0][1:])
    ):
        where = f"{dataset_name(dataset)}, {architecture_name(arch)}, width {width}"
        for run in sorted(runs, key=lambda run: run.id):
            result = run.result or {}
            before, after = (Metrics(**result[name]) for name in ("before", "after"))
            attack = attack_name(parse_id(run.request.model).attack)
            numbers = (*_percent(before), *_percent(after), f"{result['der']:.3f}", _seconds(run))
            rows.append((where, attack, *numbers))
        results = [run.result or {} for run in runs]
        befores, afters = ([Metrics(**result[name]) for result in results] for name in ("before", "after"))
        rating = der(mean(befores), mean(afters))
        means = _percent(mean(befores)), _percent(mean(afters))
        rows.append((f"**{where}**", "**mean**", *means[0], *means[1], f"**{rating:.3f}**", ""))
    head = (
        "network",
        "attack",
        "ACC",
        "ASR",
        "RA",
        "ACC after",
        "ASR after",
        "RA after",
        "DER",
        "training, s",
    )
    return _markdown(head, rows)


def defenses_table() -> str:
    """Return the mean of each defense over the attacks for which every defense of Table 1 has a number."""
    rows: list[Row] = []
    notes = []
    for dataset in DATASET_TITLES:
        record = find_table("table1", dataset)
        if record is None:
            continue
        cells = _complete(record)
        seeds = sorted({cell.seed for cell in cells.values()})
        attacks = sorted({attack for attack, _ in cells})
        for defense in sorted({name for _, name in cells}, key=lambda name: -_rating(cells, attacks, name)):
            found = [cells[attack, defense] for attack in attacks]
            after = mean([Metrics(*cell.after) for cell in found if cell.after])
            seconds = sum(cell.seconds.train for cell in found if cell.seconds) / len(found)
            rating = _rating(cells, attacks, defense)
            numbers = (*_percent(after), f"{rating:.3f}", f"{seconds:.0f}")
            rows.append((dataset_name(dataset), defense_name(defense), *numbers))
        quick = ", smaller budgets (`--quick`)" if record.quick else ""
        notes.append(
            f"- {dataset_name(dataset)}: `{record.command}`, seed {', '.join(map(str, seeds))}{quick}."
        )
    table = _markdown(("data set", "defense", "ACC", "ASR", "RA", "DER", "training, s"), rows)
    return "\n".join([table, "", *notes])


def page_with_tables(text: str) -> str:
    """Return the page with both tables between their markers."""
    for name, table in (("runs", runs_table()), ("defenses", defenses_table())):
        pattern = rf"(<!-- results:{name} -->\n).*?(<!-- /results:{name} -->)"
        text = re.sub(pattern, lambda found, t=table: f"{found[1]}{t}\n{found[2]}", text, flags=re.DOTALL)  # type: ignore[misc]
    return text


def _complete(record: TableRecord) -> dict[tuple[str, str], Cell]:
    """Return the cells by attack and defense, for the attacks that have a number for every defense."""
    cells = {(c.row["attack"], c.defense): c for c in record.cells if c.before and c.after}
    defenses = {defense for _, defense in cells}
    return {key: cell for key, cell in cells.items() if all((key[0], name) in cells for name in defenses)}


def _rating(cells: dict[tuple[str, str], Cell], attacks: Iterable[str], defense: str) -> float:
    """Return DER as Eq. 6 of the mean ACC and ASR, as in the paper's AVG rows."""
    found = [cells[attack, defense] for attack in attacks]
    before = mean([Metrics(*cell.before) for cell in found if cell.before])
    return der(before, mean([Metrics(*cell.after) for cell in found if cell.after]))


def _percent(metrics: Metrics) -> tuple[str, ...]:
    return tuple(f"{100 * value:.1f}" for value in metrics)


def _seconds(run: Run) -> str:
    return f"{(run.result or {})['seconds']['train']:.0f}"


def _markdown(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    """Show the tables, or write them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help=f"write them into {PAGE.relative_to(paths.ROOT)}"
    )
    if parser.parse_args().write:
        page = Path(PAGE)
        page.write_text(page_with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(runs_table(), defenses_table(), sep="\n\n")


if __name__ == "__main__":
    main()

"""Recorded tables of the paper on the pages Layers, Defenses and Ablations.

A number is recorded (in a file that `npd table` wrote), published (printed in the paper) or live (of a run on
this machine). Data set and attack are those of the chosen model. Numbers of other models are labeled as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
import streamlit as st

from npd_core.data.spec import get_dataset
from npd_core.experiments.record import Cell, TableRecord
from npd_core.figures import tables
from npd_core.figures.curves import MetricCurves
from npd_core.figures.network import Tint, tint
from npd_core.figures.tables import SOURCES, Outcome, percent
from npd_core.names import DEFENSES, METRICS, attack_name, defense_name
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, choice, describe, selectors, tiles
from pages.shared.components.chart import chart
from pages.shared.text import message

SAW_POISON = "EP saw a batch of the poisoned training set, which a defender may not have."
CHOSEN_ATTACK = "Chosen attack"
SHARE = st.column_config.NumberColumn(format="percent")
COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("ACC", "ASR", "RA", "DER"), SHARE),
    "seconds": st.column_config.NumberColumn(format="%.1f", help="Training time."),
}


class View(NamedTuple):
    """What a page shows of a record."""

    record: TableRecord | None
    attack: str
    """Id of the attack; "" for all of them."""
    cells: list[Cell]
    """Of this attack."""
    comparable: bool
    """Whether runs of the chosen model belong beside these cells: same data set and attack."""


def choose(names: Sequence[str], card: Card, mean: str = "") -> View:
    """Return the recorded table for the data set and the attack of the chosen model.

    Where there is none, a sentence says so and offers the choices for which there is one.

    Args:
        names: table files that show the same by data set, as "table1" and "table2". The first one is named in
            the command that creates a missing record.
        mean: offer all attacks together, under this title.
    """
    found = _record(names, card)
    if found is None or not found.cells:
        return View(found, card.attack, [], True)
    if mean:
        options = [CHOSEN_ATTACK, mean]
        if selectors.switch("Attacks", options, "over", label_visibility="collapsed") == mean:
            return View(found, "", list(found.cells), False)
    cells = [cell for cell in found.cells if cell.row["attack"] == card.attack]
    if not cells:
        attacks = dict.fromkeys(cell.row["attack"] for cell in found.cells)
        st.info(
            f"There is no record for {attack_name(card.attack)} on {get_dataset(card.dataset).title}. "
            "You can start a run below.",
            icon=":material/info:",
        )
        _offer({attack: attack_name(attack) for attack in attacks}, card, "attack", dataset=card.dataset)
    return View(found, card.attack, cells, True)


def _record(names: Sequence[str], card: Card) -> TableRecord | None:
    there = {dataset: name for name in reversed(names) for dataset in cache.runs.table_datasets(name)}
    if card.dataset in there:
        with selectors.working():
            return cache.runs.table(there[card.dataset], card.dataset)
    number = names[0].removeprefix("table")
    st.info(
        f"There is no record for {get_dataset(card.dataset).title}. `npd table {number} --quick --dataset "
        f"{card.dataset}` creates it. You can start a run below.",
        icon=":material/info:",
    )
    _offer({dataset: get_dataset(dataset).title for dataset in there}, card, "dataset")
    return None


def _offer(options: Mapping[str, str], card: Card, fact: str, **same: str) -> None:
    """Offer the models with another data set or attack, for which there is a record."""
    models = {option: choice.nearest(cache.zoo.cards(), card, **{fact: option}, **same) for option in options}
    with st.container(horizontal=True, gap="small"):
        for option, model in models.items():
            if model is not None:
                st.button(
                    f"Recorded: {options[option]}",
                    key=f"recorded-{option}",
                    on_click=choice.choose_model,
                    args=(model.id,),
                    help="Choose this model for the whole app.",
                )


def is_of(cell: Cell, card: Card) -> bool:
    """Whether a cell was measured on this model; a model of another poison ratio has the same id."""
    return cell.model == card.id and cell.row.get("poison_ratio", card.poison_ratio) == card.poison_ratio


def origin(found: TableRecord | None, cells: Sequence[Cell], card: Card) -> None:
    """Show where recorded numbers come from, and whether they are of the chosen model."""
    if found is None:
        return
    if measured := [cell for cell in cells if cell.after is not None]:
        st.caption(f"{_provenance(measured)} · command `{found.command}`")
    _name_other_models(cells, card)
    for reason in dict.fromkeys(cell.failed for cell in cells if cell.failed):
        st.caption(f":material/error: {message(reason)}")
    if found.cut:
        with st.expander("Differences from the paper's table", icon=":material/content_cut:"):
            st.markdown("\n".join(f"- {sentence}" for sentence in found.cut))


def _provenance(cells: Sequence[Cell]) -> str:
    seeds, devices = (sorted({str(getattr(c, name)) for c in cells}) for name in ("seed", "device"))
    dates = sorted({describe.local_time(cell.date)[:10] for cell in cells})
    between = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"recorded · seed {', '.join(seeds)} · {', '.join(devices)} · {between}"


def _name_other_models(cells: Sequence[Cell], card: Card) -> None:
    others = [cell for cell in cells if not is_of(cell, card)]
    models = [f"`{name}`" for name in sorted({cell.model for cell in others})]
    if others and len(others) == len(cells):
        names = ", ".join(models[:3]) + (f" and {len(models) - 3} more" if models[3:] else "")
        st.info(f"These numbers are of other models: {names}.", icon=":material/compare_arrows:")
    elif others:
        count = len({(cell.model, cell.row.get("poison_ratio")) for cell in others})
        st.caption(
            f"Includes {count} other model{'s' * (count > 1)}; the table below names the model of each row."
        )


def layer_tint(card: Card, metric: str = "asr") -> Tint | None:
    """Return the colors of a network drawing by the Figure 3 of this model; None without a record."""
    found = None
    with selectors.working(stop=False):
        found = cache.runs.table("figure3", card.dataset)
    cells = [cell for cell in found.cells if is_of(cell, card)] if found is not None else []
    return tint(metric, {c.row["layer"]: getattr(c.after, metric) for c in cells if c.after is not None})


def recorded(cell: Cell, label: str) -> list[Outcome]:
    """Return the measured and the published numbers of a cell, each where it exists."""
    both = []
    if cell.after is not None:
        both.append(
            Outcome(label, "recorded", *cell.after, cell.der, cell.seconds.train if cell.seconds else None)
        )
    if cell.published is not None:
        paper = cell.published
        both.append(Outcome(label, "published", paper.acc, paper.asr, None, paper.der, paper.seconds))
    return both


def outcomes(cells: Sequence[Cell], label: Callable[[Cell], str]) -> list[Outcome]:
    """Return the numbers of the undefended model, if known, and of every cell."""
    bare = [Outcome(DEFENSES["none"], "recorded", *cell.before) for cell in cells if cell.before is not None]
    return bare[:1] + [outcome for cell in cells for outcome in recorded(cell, label(cell))]


def saw_poison(cells: Sequence[Cell], runs: Iterable[Run]) -> bool:
    """Whether one of the numbers is of a defense that saw poisoned training images, as the paper's EP."""
    settings = [cell.config.get("config", {}) for cell in cells if cell.after is not None]
    settings += [run.request.config.to_dict() for run in runs]
    published = any(cell.defense == "ep" and cell.published is not None for cell in cells)
    return published or any(values.get("batch") == "mixture" for values in settings)


def panels(
    draw: Callable[[str], go.Figure], metrics: Sequence[str], shown: Sequence[Outcome], key: str
) -> None:
    """Show one chart per metric, side by side where they fit. Args: draw: metric -> chart of `shown`."""
    with st.grid("auto", min_column_width=340):
        for metric in metrics:
            numbers = ", ".join(
                f"{o.label} {percent(getattr(o, metric))}"
                + ("" if o.source == "recorded" else f" ({o.source})")
                for o in shown
                if getattr(o, metric) is not None
            )
            chart(draw(metric), key=f"{key}-{metric}", alt=f"{METRICS[metric].full}: {numbers}.")


def bars(shown: Sequence[Outcome], key: str) -> None:
    """Show ACC, ASR and DER, each where it is known, as bars."""
    mode = tiles.mode()
    metrics = [name for name in ("acc", "asr", "der") if any(getattr(o, name) is not None for o in shown)]
    panels(lambda metric: tables.bars(shown, metric, mode), metrics, shown, key)


def number_table(
    cells: Sequence[Cell],
    axes: Mapping[str, str],
    key: str,
    runs: Mapping[str, Run] | None = None,
    run_column: str = "",
) -> None:
    """Show the numbers of a chart as a table: recorded and published ones of cells, then those of runs.

    Args:
        axes: axis of `Cell.row` -> title of its column.
        runs: label -> run on this machine.
        run_column: title of the column for these labels.
    """
    rows = []
    for cell in cells:
        place = {title: _axis_value(axis, cell.row[axis]) for axis, title in axes.items()}
        rows += [
            place | _numbers(outcome) | _cell_origin(outcome.source, cell) for outcome in recorded(cell, "")
        ]
        if cell.after is None and cell.failed:
            rows.append(place | {"source": "failed", "model": cell.model, "note": cell.failed})
    for label, run in (runs or {}).items():
        device = (run.result or {}).get("environment", {}).get("device", run.request.device)
        about = {"model": run.request.model, "seed": run.request.config.seed, "device": device}
        when = describe.local_time(run.ended or run.created)
        rows.append({run_column: label} | _numbers(of_run(run, label)) | about | {"date": when})
    table(rows, key)


def table(rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Show rows as a folded table, without empty columns."""
    names = dict.fromkeys(name for row in rows for name in row if row[name] is not None)
    with st.expander("Numbers as a table", icon=":material/table_chart:"):
        columns = {name: [row.get(name) for row in rows] for name in names}
        st.dataframe(columns, hide_index=True, column_config=COLUMNS, key=key)


def curve_table(tracks: Mapping[str, MetricCurves], key: str) -> None:
    """Show the curves of several runs as a table."""
    rows = [
        {"run": name, "epoch": epoch, "ACC": acc, "ASR": asr, "RA": ra}
        for name, seen in tracks.items()
        for epoch, acc, asr, ra in zip(seen.epochs, seen.acc, seen.asr, seen.ra, strict=True)
    ]
    if rows:
        table(rows, key)


def of_run(run: Run, label: str) -> Outcome:
    """Return the result of a finished run."""
    result = run.result or {}
    after = result.get("after") or {}
    seconds = (result.get("seconds") or {}).get("train")
    source = "recorded" if run.recorded else "live"
    acc, asr, ra = (after.get(name) for name in ("acc", "asr", "ra"))
    return Outcome(label, source, acc, asr, ra, result.get("der"), seconds)


def _numbers(outcome: Outcome) -> dict[str, Any]:
    shares = {name.upper(): getattr(outcome, name) for name in ("acc", "asr", "ra", "der")}
    return {"source": SOURCES[outcome.source], **shares, "seconds": outcome.seconds}


def _axis_value(axis: str, value: Any) -> Any:
    if axis in ("attack", "defense"):
        return (attack_name if axis == "attack" else defense_name)(value)
    if axis == "poison_ratio":
        return f"{value:.0%}"
    if axis == "targeted":
        return "targeted" if value else "untargeted"
    return value


def _cell_origin(source: str, cell: Cell) -> dict[str, Any]:
    if source == "published":
        corrected = cell.published.der_corrected if cell.published else None
        note = (
            f"DER as printed; Eq. 6 gives {corrected:.1%} for this ACC and ASR"
            if corrected is not None
            else None
        )
        return {"model": "the paper's, width 64", "note": note}
    settings = cell.config.get("config", {})
    notes = [cell.failed] if cell.failed else []
    if settings.get("batch") == "mixture":
        notes.append("saw a batch of the poisoned training set")
    if settings.get("select") == "oracle":
        notes.append("chose its threshold by the ASR on test images")
    about = {
        "model": cell.model,
        "seed": cell.seed,
        "device": cell.device,
        "date": describe.local_time(cell.date),
    }
    return about | {"note": "; ".join(notes) or None}

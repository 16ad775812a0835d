"""What the pages of recorded tables share: the record, where its numbers come from, and a run of one's own beside them.

A number is recorded (a file made by `npd table`), published (the paper's), or live (a run on this machine). Those of
other models than the chosen one say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from npd_core.config.npd import VARIANTS, default_layer
from npd_core.config.request import DefenseRequest
from npd_core.data.load import availability
from npd_core.data.spec import get_dataset
from npd_core.errors import NPDError
from npd_core.experiments.grid import config_for
from npd_core.experiments.record import Cell, TableRecord
from npd_core.figures.curves import MetricCurves
from npd_core.figures.network import Tint, tint
from npd_core.figures.tables import DEFENSES, METRICS, SOURCES, Outcome, percent
from npd_core.runs import queue
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cached, controls, run_panel, selectors, shell
from pages.shared.components.chart import chart

SAW_POISON = "EP was shown a batch of the poisoned training set, which a defender may not have."
SHARE = st.column_config.NumberColumn(format="percent")
COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("ACC", "ASR", "RA", "DER"), SHARE),
    "seconds": st.column_config.NumberColumn(format="%.1f", help="Of training."),
}


def record(names: Sequence[str], number: str, card: Card) -> TableRecord | None:
    """The record to show: on the data set of the model, or on another one that is chosen here.

    Args:
        names: tables that show the same, as "table1" and "table2", which differ by data set.
        number: what `npd table` calls the table.
    """
    there = {dataset: name for name in reversed(names) for dataset in cached.table_datasets(name)}
    if card.dataset not in there:
        st.info(
            f"Nothing is recorded here on {get_dataset(card.dataset).title} yet: "
            f"`npd table {number} --quick --dataset {card.dataset}` makes the record. A run can be started below.",
            icon=":material/info:",
        )
    if not there:
        return None
    titles = {get_dataset(dataset).title: dataset for dataset in there}
    own = get_dataset(card.dataset).title
    title = own
    if list(titles) != [own]:
        if st.session_state.get("table_dataset") not in (None, *titles):
            del st.session_state["table_dataset"]
        title = st.segmented_control(
            "Data set of the record",
            list(titles),
            default=own if own in titles else next(iter(titles)),
            required=True,
            key="table_dataset",
            bind="query-params",
        )
    with selectors.working():
        found = cached.table(there[titles[title]], titles[title])
    return found


def attack(found: TableRecord | None, card: Card, first: str = "") -> str:
    """The attack whose numbers are shown, by its id.

    Args:
        first: words of an entry before the attacks, whose id is "".
    """
    ids = list(dict.fromkeys(cell.row["attack"] for cell in found.cells)) if found is not None else []
    if not ids:
        return card.attack
    titles = {shell.ATTACK_TITLES.get(name, name): name for name in ids}
    if first:
        titles = {first: ""} | titles
    if st.session_state.get("table_attack") not in (None, *titles):
        del st.session_state["table_attack"]
    options = list(titles)
    mine = shell.ATTACK_TITLES.get(card.attack, card.attack)
    chosen = st.selectbox(
        "Attack",
        options,
        index=options.index(mine)
        if mine in options and found is not None and found.dataset == card.dataset
        else 0,
        key="table_attack",
        bind="query-params",
        help="The model that was trained with this attack. Runs of your own are of the model chosen above.",
    )
    return titles[chosen]


def is_of(cell: Cell, card: Card) -> bool:
    """Whether a cell was measured on this very model: one of another poison ratio bears the same name."""
    return cell.model == card.id and cell.row.get("poison_ratio", card.poison_ratio) == card.poison_ratio


def whose(found: TableRecord, cells: Sequence[Cell], card: Card) -> None:
    """Where the recorded numbers come from, and whether they are of the chosen model."""
    measured = [cell for cell in cells if cell.after is not None]
    seeds, devices = ({str(getattr(cell, name)) for cell in measured} for name in ("seed", "device"))
    dates = sorted(shell.local_time(cell.date)[:10] for cell in measured)
    if measured:
        between = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        st.caption(
            f"recorded · seed {', '.join(sorted(seeds))} · {', '.join(sorted(devices))} · {between} · "
            f"made by `{found.command}`"
        )
    others = sorted({cell.model for cell in cells if not is_of(cell, card)})
    if others and not any(is_of(cell, card) for cell in cells):
        some = ", ".join(f"`{name}`" for name in others[:3]) + (
            f" and {len(others) - 3} more" if others[3:] else ""
        )
        st.info(
            f"These are not numbers of the chosen model, but of {some}.", icon=":material/compare_arrows:"
        )
    elif others:
        count = len({(cell.model, cell.row.get("poison_ratio")) for cell in cells if not is_of(cell, card)})
        more = "one other" if count == 1 else f"{count} others"
        st.caption(f"Of the chosen model and of {more}: the table tells them apart.")
    for reason in dict.fromkeys(cell.failed for cell in cells if cell.failed):
        st.caption(f":material/error: {reason}")
    if found.cut:
        with st.expander("What differs from the paper's table", icon=":material/content_cut:"):
            st.markdown("\n".join(f"- {sentence}" for sentence in found.cut))


def layer_tint(card: Card, metric: str = "asr") -> Tint | None:
    """Colours for the drawing of a network, of what Figure 3 recorded of this very model; None without a record."""
    try:
        found = cached.table("figure3", card.dataset)
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
        return None
    cells = [cell for cell in found.cells if is_of(cell, card)] if found is not None else []
    return tint(
        metric, {cell.row["layer"]: getattr(cell.after, metric) for cell in cells if cell.after is not None}
    )


def recorded(cell: Cell, label: str) -> list[Outcome]:
    """What was measured for a cell and what the paper prints for it, each where there is one."""
    both = []
    if cell.after is not None:
        took = cell.seconds.train if cell.seconds else None
        both.append(Outcome(label, "recorded", *cell.after, cell.der, took))
    if cell.published is not None:
        said = cell.published
        both.append(Outcome(label, "published", said.acc, said.asr, None, said.der, said.seconds))
    return both


def undefended(cells: Sequence[Cell]) -> list[Outcome]:
    """The network before any defense, as the cells of one model tell it; [] when they tell nothing."""
    found = next((cell.before for cell in cells if cell.before is not None), None)
    return [] if found is None else [Outcome(DEFENSES["none"], "recorded", *found)]


def cell_rows(cells: Sequence[Cell], axes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Lines of a table: a cell's numbers, then the paper's, each with where it comes from.

    Args:
        axes: axis of `Cell.row` -> title of its column.
    """
    rows = []
    for cell in cells:
        where = {title: _said(axis, cell.row[axis]) for axis, title in axes.items()}
        for outcome in recorded(cell, ""):
            rows.append(where | numbers(outcome) | _origin(outcome.source, cell))
        if cell.after is None and cell.failed:
            rows.append(where | {"source": "failed", "model": cell.model, "note": cell.failed})
    return rows


def run_rows(runs: Mapping[str, Run], title: str) -> list[dict[str, Any]]:
    """Lines of the same table for runs on this machine. Args: title: of the column of their labels."""
    rows = []
    for label, run in runs.items():
        outcome, result = of_run(run, label), run.result or {}
        device = result.get("environment", {}).get("device", run.request.device)
        origin = {"model": run.request.model, "seed": run.request.config.seed, "device": device}
        when = shell.local_time(run.ended or run.created)
        rows.append({title: label} | numbers(outcome) | origin | {"date": when})
    return rows


def numbers(outcome: Outcome) -> dict[str, Any]:
    """Source and numbers of an outcome as columns."""
    shares = {name.upper(): getattr(outcome, name) for name in ("acc", "asr", "ra", "der")}
    return {"source": SOURCES[outcome.source], **shares, "seconds": outcome.seconds}


def panels(
    draw: Callable[[str], go.Figure], metrics: Sequence[str], outcomes: Sequence[Outcome], key: str
) -> None:
    """A chart for each metric, beside each other where there is room.

    Args:
        draw: a name in METRICS -> the chart.
        outcomes: what is drawn, for those who cannot see it.
    """
    with st.grid("auto", min_column_width=300):
        for metric in metrics:
            told = [
                (o.label, o.source, getattr(o, metric)) for o in outcomes if getattr(o, metric) is not None
            ]
            said = ", ".join(f"{label} {percent(value)}{source_of(source)}" for label, source, value in told)
            chart(draw(metric), key=f"{key}-{metric}", alt=f"{METRICS[metric]}: {said}.")


def source_of(source: str) -> str:
    """Such as " (published)" behind a number; nothing for what is recorded."""
    return "" if source == "recorded" else f" ({source})"


def table(rows: Sequence[Mapping[str, Any]], key: str, label: str = "The same as a table") -> None:
    """The numbers of a chart, below it."""
    with st.expander(label, icon=":material/table_chart:"):
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: [row.get(name) for row in rows] for name in names}
        kept = {
            name: values for name, values in columns.items() if any(value is not None for value in values)
        }
        st.dataframe(kept, hide_index=True, column_config=COLUMNS, key=key)


def curve_table(tracks: Mapping[str, MetricCurves], key: str) -> None:
    """The numbers of a chart that draws several runs on one scale, below it."""
    rows = [
        {"run": name, "epoch": epoch, "ACC": acc, "ASR": asr, "RA": ra}
        for name, seen in tracks.items()
        for epoch, acc, asr, ra in zip(seen.epochs, seen.acc, seen.asr, seen.ra, strict=True)
    ]
    if rows:
        table(rows, key)


def default_request(card: Card, defense: str, **changes: Any) -> DefenseRequest:
    """What the app proposes for a defense of a model: of NPD the same as in the Lab. Raises ConfigError."""
    return DefenseRequest(
        model=card.id,
        defense=defense,
        layer=default_layer(card.arch, card.dataset) if defense in VARIANTS else None,
        clean=get_dataset(card.dataset).train_images // 20,
        config=config_for(defense, card, **changes),
        eval_images=controls.EVAL_IMAGES,
    )


def same_request(cells: Sequence[Cell], card: Card) -> DefenseRequest | None:
    """The request of the first recorded cell that is of this model, to be run again and watched; None without one. It
    names the point at which the cell was measured: the standard one may be another by now."""
    for cell in cells:
        if is_of(cell, card) and cell.config:
            asked = DefenseRequest.from_dict(cell.config)
            return replace(
                asked, layer=asked.layer or cell.layer, eval_images=controls.EVAL_IMAGES, device="auto"
            )
    return None


def runs_of(asked: Mapping[str, DefenseRequest], chosen: Run | None) -> dict[str, Run]:
    """Finished runs on this machine that were asked for in just this way, by the same labels.

    Args:
        chosen: the run of the address, which is found even where it is newer than the list.
    """
    keys = {request.key: label for label, request in asked.items()}
    found: dict[str, Run] = {}
    for run in [*([chosen] if chosen is not None else []), *cached.all_runs()]:
        label = keys.get(run.request.key)
        if label is not None and label not in found and run.state == "finished" and run.result:
            found[label] = run
    return found


def of_run(run: Run, label: str) -> Outcome:
    """What a finished run came to."""
    result = run.result or {}
    after = result.get("after") or {}
    took = (result.get("seconds") or {}).get("train")
    source = "recorded" if run.recorded else "live"
    return Outcome(
        label, source, after.get("acc"), after.get("asr"), after.get("ra"), result.get("der"), took
    )


def saw_poison(cells: Sequence[Cell], runs: Iterable[Run]) -> bool:
    """Whether a number among them, recorded or published, is of a defense that looked at poisoned training images: the
    paper's EP does."""
    settings = [cell.config.get("config", {}) for cell in cells if cell.after is not None]
    settings += [run.request.config.to_dict() for run in runs]
    published = any(cell.defense == "ep" and cell.published is not None for cell in cells)
    return published or any(values.get("batch") == "mixture" for values in settings)


def run_live(asked: DefenseRequest | None, card: Card, run: Run | None, label: str = "Run it live") -> None:
    """The button that starts a run, the one that stops it, and the run of the address as it goes on."""
    running = run is not None and run.active
    try:
        here = availability(card.dataset)
        if not here.available:
            st.warning(here.reason, icon=":material/folder_off:")
        with st.container(horizontal=True):
            start = st.button(
                label,
                key="start",
                type="primary",
                icon=":material/play_arrow:",
                disabled=asked is None or running or not here.available,
                help="The run goes on when this page is closed, and is kept with the others.",
            )
            stop = st.button(
                "Stop",
                key="stop",
                icon=":material/stop:",
                disabled=not running,
                help="Training ends after the current step; the state so far is kept and measured.",
            )
        if start and asked is not None:
            shell.open_run(queue.manager().submit(asked))
        if stop and run is not None:
            queue.manager().cancel(run.id)
            st.toast("Stopping after this step …", icon=":material/stop:")
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
    if run is not None:
        words = DEFENSES.get(run.request.defense, run.request.defense)
        layer = (run.result or {}).get("layer") or run.request.layer
        st.markdown(f"**{words}**{f', {layer}' if layer else ''} · run `{run.id}`")
        run_panel.panel(run.id, card)


def _said(axis: str, value: Any) -> Any:
    if axis == "attack":
        return shell.ATTACK_TITLES.get(value, value)
    if axis == "defense":
        return DEFENSES.get(value, value)
    if axis == "poison_ratio":
        return f"{value:.0%}"
    if axis == "targeted":
        return "targeted" if value else "untargeted"
    return value


def _origin(source: str, cell: Cell) -> dict[str, Any]:
    if source == "published":
        corrected = cell.published.der_corrected if cell.published else None
        note = (
            None if corrected is None else f"DER as printed; Eq. 6 on these ACC and ASR gives {corrected:.1%}"
        )
        return {"model": "the paper's, width 64", "note": note}
    notes = [cell.failed] if cell.failed else []
    settings = cell.config.get("config", {})
    if settings.get("batch") == "mixture":
        notes.append("was shown a batch of the poisoned training set")
    if settings.get("select") == "oracle":
        notes.append("chose its threshold by the ASR on test images")
    when = shell.local_time(cell.date)
    note = "; ".join(notes) or None
    return {"model": cell.model, "seed": cell.seed, "device": cell.device, "date": when, "note": note}

"""Every run on this machine and the recorded ones: history, comparison, download, open again, cancel."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from npd_core import paths
from npd_core.errors import NPDError
from npd_core.figures.curves import read_metrics
from npd_core.figures.runs import comparison_figure, differing, outcome_figure, read_row
from npd_core.names import METRICS, defense_name
from npd_core.runs.store import Run
from pages.shared import (
    cache,
    controls,
    describe,
    downloads,
    paper_tables,
    run_panel,
    selectors,
    shell,
    tiles,
)

MOST = 6  # runs compared at once
COLUMNS: dict[str, Any] = {
    "state": st.column_config.TextColumn("State", pinned=True),
    "model": "Model",
    "defense": "Defense",
    "layer": "Layer",
    **{
        name: st.column_config.NumberColumn(
            metric.short, format="%.3f" if name == "der" else "percent", help=metric.help
        )
        for name, metric in METRICS.items()
    },
    "seconds": st.column_config.NumberColumn("Seconds", format="%.1f", help="Training only."),
    "acc_before": st.column_config.NumberColumn("ACC before", format="percent"),
    "asr_before": st.column_config.NumberColumn("ASR before", format="percent"),
    "ra_before": st.column_config.NumberColumn("RA before", format="percent"),
    "lambda2": st.column_config.NumberColumn(
        "λ2", help="Weight of the loss that pushes away from the target."
    ),
    "lambda3": st.column_config.NumberColumn(
        "λ3", help="Weight of the loss that pulls back to the true label."
    ),
    "rho": st.column_config.NumberColumn("ρ", help="Budget of the inner perturbation."),
    "kind": st.column_config.TextColumn(
        "Kind", help="Recorded: shipped with the project. Live: made on this machine."
    ),
    "when": "Asked for",
    "id": "Run",
}


def words(run: Run) -> str:
    """A run in one line, told apart from every other by the start of its id, or as the recorded one of its model."""
    return " · ".join(dict.fromkeys((run.request.model, describe.run(run), describe.short_id(run))))


def short(run: Run) -> str:
    """Start of the id, the defense and its layer: enough to tell runs apart in a chart."""
    return f"{describe.short_id(run)} · {describe.defense(run)}"


def visible() -> list[Run]:
    """Every run, but for those of networks that somebody else brought: these show where their own page was opened."""
    known = st.session_state.get("_uploaded", set())
    return [
        run
        for run in cache.runs.all_runs()
        if paths.uploaded(run.request.model) is None or run.request.model in known
    ]


def table(runs: list[Run]) -> None:
    rows = []
    for run in runs:
        row = read_row(
            run.id, run.recorded, run.state, run.created, run.request.to_dict(), run.result
        )._asdict()
        row["defense"] = defense_name(row["defense"])
        row["when"] = describe.local_time(row.pop("created"))
        if run.state == "running":
            row["state"] = f"running, {run.share:.0%}"
        rows.append({name: row[name] for name in COLUMNS})
    st.dataframe(rows, column_config=COLUMNS, hide_index=True, placeholder="–", key="history")


def refresh() -> None:
    """Draw the history; while something runs, again every two seconds, and the whole page once all is done."""
    with selectors.working():
        runs = visible()
    table(runs)
    if not any(run.active for run in runs):
        st.rerun()


def details(run: Run) -> None:
    """One run: how it ended, its figures, and what can be done with it."""
    icon, color = describe.STATES[run.state]
    st.markdown(
        f":{color}-badge[{icon} {run.state}] `{run.id}` · {describe.provenance(run)}"
        + (f" · {run.message}" if run.message else "")
        + (f" · {run_panel.ahead(run)}" if run.state == "queued" else "")
    )
    if run.result:
        run_panel.tiles(run.result.get("before") or {}, run.result.get("after") or {}, run.result.get("der"))
    first, second, third = st.columns(3)
    own = paths.uploaded(run.request.model) is not None
    what = "settings, curves and result" if controls.can_adopt(run.request) else "curves and result"
    if own:
        with first:
            query = {"uploaded_model": run.request.model, "uploaded_run": run.id}
            shell.link("pages/my_models.py", "Your model", ":material/upload_file:", query)
    elif first.button(
        "Open in the Lab",
        key=f"open-{run.id}",
        icon=":material/science:",
        width="stretch",
        help=f"The Lab with the {what} of this run; its address can be shared.",
    ):
        open_in_lab(run)
    if run.active and not run.recorded:
        if second.button(
            "Cancel",
            key=f"cancel-{run.id}",
            icon=":material/stop_circle:",
            width="stretch",
            help="Ends the run. A running one keeps the best polarizer so far.",
        ):
            cancel(run)
    elif run.has_network:
        with selectors.working():
            second.download_button(
                "Download",
                cache.runs.archive(run.id),
                f"{run.request.model}-{run.id}.zip",
                "application/zip",
                key=f"download-{run.id}",
                icon=":material/download:",
                width="stretch",
                on_click="ignore",
                help="Polarizer or repaired weights (safetensors), every setting, metrics and events in one zip file.",
            )
    else:
        second.button(
            "Download",
            key=f"download-{run.id}",
            disabled=True,
            width="stretch",
            help="This run left no repaired network behind.",
        )
    if (
        run.result
        and not own
        and run.has_polarizer
        and third.button(
            "See its predictions",
            key=f"predictions-{run.id}",
            icon=":material/image_search:",
            width="stretch",
        )
    ):
        selectors.go("predictions", run=run.id)
    if run.result and not run.active:
        with st.expander("Take it home", icon=":material/home:"):
            downloads.downloads(run)
    with st.expander("Share", icon=":material/qr_code_2:"):
        if own:
            st.write("This link opens the network that you brought, with this run.")
            downloads.share("my_models", uploaded_model=run.request.model, uploaded_run=run.id)
        else:
            st.write(f"This link opens the run in the Lab, with its model, {what}.")
            downloads.share("lab", model=run.request.model, run=run.id)
    with st.expander("Every setting, and what was measured"):
        left, right = st.columns(2)
        left.json(run.request.to_dict())
        right.json({k: v for k, v in (run.result or {}).items() if k not in ("config", "clean_indices")})


def open_in_lab(run: Run) -> None:
    settings: dict[str, str] = {}
    if controls.can_adopt(run.request):
        with selectors.working():
            controls.adopt(run.request)
            settings = controls.url_query(run.request)
    selectors.go("lab", run=run.id, **settings)


def cancel(run: Run) -> None:
    from npd_core.runs.queue import manager

    try:
        manager().cancel(run.id)
        st.toast("Asked to stop. It ends at its next step.", icon=":material/stop_circle:")
    except NPDError as error:
        st.error(str(error), icon=":material/error:")


def compare(runs: list[Run]) -> None:
    """Curves of several runs on one scale, their outcomes, and the settings in which they differ."""
    names = [short(run) for run in runs]
    curves = {}
    for name, run in zip(names, runs, strict=True):
        found = read_metrics(cache.runs.events(run), (run.result or {}).get("before"))
        if found.epochs:
            curves[name] = found
    rows = [
        read_row(run.id, run.recorded, run.state, run.created, run.request.to_dict(), run.result)
        for run in runs
    ]
    if curves:
        st.plotly_chart(
            comparison_figure(curves, tiles.mode()),
            key="comparison",
            theme=None,
            config={"displayModeBar": False},
        )
        paper_tables.curve_table(curves, "comparison-table")
        if len(curves) < len(runs):
            st.caption("Runs that were not watched during training have no curve.")
    if any(run.result for run in runs):
        st.plotly_chart(
            outcome_figure(rows, names, tiles.mode()),
            key="outcomes",
            theme=None,
            config={"displayModeBar": False},
        )
    settings = differing({run.id: run.request.to_dict() for run in runs})
    if settings:
        st.write("Settings in which they differ")
        st.dataframe(
            [
                {"setting": setting, **{name: _text(v) for name, v in zip(names, values, strict=True)}}
                for setting, values in settings.items()
            ],
            hide_index=True,
            key="differences",
        )
    else:
        st.caption("They were asked for with the same settings.")


def _text(value: object) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


selection = shell.selection()
st.title("Runs")
st.write(
    "Every polarizer trained on this machine, and those recorded and shipped with the project, measured on the "
    "test split with the model’s own trigger."
)
with selectors.working():
    runs = visible()
    unreadable = {
        name: reason for store in cache.runs.stores() for name, reason in store.unreadable().items()
    }
for reason in unreadable.values():
    st.warning(reason, icon=":material/warning:")
if not runs:
    st.info(
        "There are no runs yet. Train a polarizer on the Lab page: every run is kept.", icon=":material/info:"
    )
    shell.link("pages/lab.py", "Train a polarizer in the Lab", ":material/science:")
    st.stop()
if any(run.active for run in runs):
    st.fragment(refresh, run_every=2)()
else:
    table(runs)

by_id = {run.id: run for run in runs}
st.subheader("One run")
named = selection.run.id if selection.run is not None and selection.run.id in by_id else None
held = st.session_state.get("inspect", st.session_state.get("_inspected"))
if held not in by_id or (named is not None and named != st.session_state.get("_named_run")):
    held = named or next(iter(by_id))  # a run that only is newer takes nobody's place
st.session_state["inspect"], st.session_state["_named_run"] = held, named
chosen = st.selectbox(
    "Run",
    list(by_id),
    format_func=lambda name: words(by_id[name]),
    key="inspect",
    label_visibility="collapsed",
    on_change=selectors.follow,
    args=("inspect",),
)
st.session_state["_inspected"] = chosen
details(by_id[chosen])

st.subheader("Compare")
asked = st.query_params.get("compare")
if asked and (asked != st.session_state.get("_compared") or "compare" not in st.session_state):
    st.session_state["compare"] = [name for name in dict.fromkeys(asked.split(",")) if name in by_id][:MOST]
    missing = [name for name in asked.split(",") if name not in by_id]
    if missing:
        st.error(
            f"There is no run {missing[0][:40]!r} on this machine; the others are compared.",
            icon=":material/error:",
        )
picked = st.multiselect(
    "Runs to compare",
    list(by_id),
    format_func=lambda name: words(by_id[name]),
    key="compare",
    max_selections=MOST,
    placeholder="Choose two or more runs",
)
st.session_state["_compared"] = ",".join(picked)
if picked:
    st.query_params["compare"] = st.session_state["_compared"]
elif "compare" in st.query_params:
    del st.query_params["compare"]
if len(picked) >= 2:
    compare([by_id[name] for name in picked])
else:
    st.caption("Choose two or more runs: their curves are drawn on one scale, and their settings compared.")

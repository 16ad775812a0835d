"""Every run on this machine and the recorded ones: list, details, download, comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import streamlit as st

from npd_core import paths
from npd_core.figures.curves import read_metrics
from npd_core.figures.runs import Row, comparison_figure, differing, outcome_figure, read_row
from npd_core.names import CURVES, METRICS, RUN_STATES, defense_name
from npd_core.runs.store import LONGEST_NOTE, Run
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
    url_state,
)
from pages.shared.text import message

MOST = 6  # runs compared at once
REFRESH = 2.0  # seconds between two looks at the list while a run is active
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
    **{
        f"{name}_before": st.column_config.NumberColumn(f"{METRICS[name].short} before", format="percent")
        for name in CURVES
    },
    "lambda2": st.column_config.NumberColumn("λ2", help="Weight of L_asr, Eq. 2."),
    "lambda3": st.column_config.NumberColumn("λ3", help="Weight of L_bce, Eq. 3."),
    "rho": st.column_config.NumberColumn("ρ", help="Budget of the adversarial perturbation."),
    "kind": st.column_config.TextColumn(
        "Kind", help="Recorded: shipped with the project. Live: trained on this machine."
    ),
    "note": st.column_config.TextColumn("Note"),
    "when": "Created",
    "id": "Run",
}


def title(run: Run) -> str:
    """Return a run in one line, different from every other."""
    return " · ".join(dict.fromkeys((run.request.model, describe.run(run), describe.short_id(run))))


def short_title(run: Run) -> str:
    """Return the start of the id, the defense and its layer: enough to tell runs apart in a chart."""
    return f"{describe.short_id(run)} · {describe.defense(run)}"


def visible_runs() -> list[Run]:
    """Return every run; those of an uploaded model only to visitors who have opened its page."""
    known = st.session_state.get("_uploaded", set())
    with selectors.working():
        return [
            run
            for run in cache.runs.all_runs()
            if paths.uploaded(run.request.model) is None or run.request.model in known
        ]


def row_of(run: Run) -> Row:
    return read_row(run.id, run.recorded, run.state, run.created, run.request.to_dict(), run.result)


def table(runs: list[Run]) -> None:
    """Show the list of runs."""
    runs = filtered(runs)
    if not runs:
        st.info("No run matches. Clear a filter to see more runs.", icon=":material/filter_alt_off:")
        return
    rows = []
    for run in runs:
        row = row_of(run)._asdict()
        row["note"] = "" if run.recorded else cache.runs.stores()[0].note(run.id)
        row["defense"] = defense_name(row["defense"])
        row["when"] = describe.local_time(row.pop("created"))
        row["state"] = RUN_STATES[run.state] + (f", {run.share:.0%}" if run.state == "running" else "")
        rows.append({name: row[name] for name in COLUMNS})
    st.dataframe(rows, column_config=COLUMNS, hide_index=True, placeholder="–", key="history")


def choose_filters(runs: list[Run]) -> None:
    """Draw the filters of the list: model, defense and state."""
    options: dict[str, tuple[str, list[str], Callable[[str], str]]] = {
        "of_model": ("Model", list(dict.fromkeys(run.request.model for run in runs)), str),
        "of_defense": ("Defense", list(dict.fromkeys(run.request.defense for run in runs)), defense_name),
        "of_state": ("State", list(dict.fromkeys(run.state for run in runs)), _state_name),
    }
    for column, (key, (label, names, shown)) in zip(st.columns(len(options)), options.items(), strict=True):
        st.session_state[key] = [name for name in st.session_state.get(key, []) if name in names]
        column.multiselect(label, names, format_func=shown, key=key, placeholder="All")


def _state_name(state: str) -> str:
    return {str(name): title for name, title in RUN_STATES.items()}[state]


def filtered(runs: list[Run]) -> list[Run]:
    """Return the runs that the filters let through; an empty filter lets through every run."""
    model, defense, state = (st.session_state.get(key, []) for key in ("of_model", "of_defense", "of_state"))
    return [
        run
        for run in runs
        if (not model or run.request.model in model)
        and (not defense or run.request.defense in defense)
        and (not state or run.state in state)
    ]


def delete(run_id: str) -> None:
    """Delete a run and remember it for `undo`; for `on_click`."""
    with selectors.working(stop=False):
        cache.runs.stores()[0].delete(run_id)
        st.session_state["_deleted"] = run_id
        st.session_state.pop("inspect", None)
        st.session_state.pop("_inspected", None)


def undo() -> None:
    """Bring back the run that was deleted last; for `on_click`."""
    with selectors.working(stop=False):
        cache.runs.stores()[0].restore(st.session_state.pop("_deleted"))


def offer_undo() -> None:
    """Offer to bring back the run that was deleted last in this session."""
    run_id = st.session_state.get("_deleted")
    if run_id is None or run_id not in cache.runs.stores()[0].deleted():
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.info(f"Run `{run_id}` was deleted.", icon=":material/delete:")
        st.button("Undo", key="undo-delete", icon=":material/undo:", on_click=undo)


def damaged() -> None:
    """List the folders that hold no readable run: why, what can still be shown, and a way to delete them."""
    for store in cache.runs.stores():
        for run_id, reason in store.unreadable().items():
            with st.container(border=True, key=f"damaged-{run_id}"):
                st.warning(message(reason), icon=":material/warning:")
                count = len(store.events(run_id))
                st.caption(f"Damaged · `{run_id}` · {count} of its events can be read.")
                if not store.recorded:
                    delete_button(run_id)


def delete_button(run_id: str) -> None:
    """Offer to delete a run of this machine."""
    st.button("Delete", key=f"delete-{run_id}", icon=":material/delete:", on_click=delete, args=(run_id,))


def edit_note(run: Run) -> None:
    """Let the user keep a note with a run of this machine."""
    store, key = cache.runs.stores()[0], f"note-{run.id}"

    def keep() -> None:
        with selectors.working(stop=False):
            store.set_note(run.id, st.session_state[key])

    st.text_input("Note", store.note(run.id), LONGEST_NOTE, key=key, on_change=keep)


def details(run: Run) -> None:
    """Show one run: its state and metrics, and what can be done with it."""
    icon, color = describe.STATES[run.state]
    notes = [describe.provenance(run), message(run.message) if run.message else ""]
    notes.append(run_panel.queued(run) if run.state == "queued" else "")
    words = " · ".join(note for note in notes if note)
    st.markdown(f":{color}-badge[{icon} {RUN_STATES[run.state]}] `{run.id}` · {words}")
    if run.result:
        run_panel.metrics(
            run.result.get("before") or {}, run.result.get("after") or {}, run.result.get("der")
        )
    uploaded = paths.uploaded(run.request.model) is not None
    first, second, third = st.columns(3)
    with first:
        open_button(run, uploaded)
    with second:
        if run.active and not run.recorded:
            run_panel.stop_button([run], key=f"stop-{run.id}", width="stretch")
        else:
            download_button(run)
    if run.result and not uploaded and run.has_polarizer:
        to_predictions = third.button(
            "See its predictions",
            key=f"predictions-{run.id}",
            icon=":material/image_search:",
            width="stretch",
        )
        if to_predictions:
            selectors.go("predictions", run=run.id)
    if run.result and not run.active:
        with st.expander("Export", icon=":material/deployed_code:"):
            downloads.downloads(run)
    with st.expander("Share", icon=":material/qr_code_2:"):
        if uploaded:
            st.write("This link opens the uploaded model with this run.")
            downloads.share("my_models", uploaded_model=run.request.model, uploaded_run=run.id)
        else:
            st.write(f"This link opens the Lab with {contents(run)} of this run.")
            downloads.share("lab", model=run.request.model, run=run.id)
    if not run.recorded:
        edit_note(run)
        if not run.active:
            delete_button(run.id)
    with st.expander("All settings and measurements"):
        left, right = st.columns(2)
        left.json(run.request.to_dict())
        right.json({k: v for k, v in (run.result or {}).items() if k not in ("config", "clean_indices")})


def contents(run: Run) -> str:
    """Return what of a run the Lab can show."""
    settings = "settings, " if controls.can_adopt(run.request) else ""
    return f"the model, {settings}curves and result"


def open_button(run: Run, uploaded: bool) -> None:
    """Offer the page on which the run can be continued."""
    if uploaded:
        query = {"uploaded_model": run.request.model, "uploaded_run": run.id}
        shell.link("pages/my_models.py", "Open in My models", ":material/upload_file:", query)
    elif st.button(
        "Open in the Lab",
        key=f"open-{run.id}",
        icon=":material/science:",
        width="stretch",
        help=f"Opens the Lab with {contents(run)} of this run.",
    ):
        settings: dict[str, str] = {}
        if controls.can_adopt(run.request):
            with selectors.working():
                controls.adopt(run.request)
                settings = controls.url_query(run.request)
        selectors.go("lab", run=run.id, **settings)


def download_button(run: Run) -> None:
    """Offer the run as a zip file."""
    settings: dict[str, Any] = {"key": f"download-{run.id}", "width": "stretch"}
    if not run.has_network:
        st.button("Download", disabled=True, help="This run has no repaired network.", **settings)
        return
    with selectors.working():
        st.download_button(
            "Download",
            cache.runs.archive(run.id),
            f"{run.request.model}-{run.id}.zip",
            "application/zip",
            icon=":material/download:",
            on_click="ignore",
            help="Polarizer or repaired weights (safetensors), settings, metrics and events in one zip file.",
            **settings,
        )


def compare(runs: list[Run]) -> None:
    """Show the settings of several runs that differ, then their results and their curves on one scale."""
    names = [short_title(run) for run in runs]
    show_differing(runs, names)
    curves = {}
    for name, run in zip(names, runs, strict=True):
        found = read_metrics(cache.runs.events(run), (run.result or {}).get("before"))
        if found.epochs:
            curves[name] = found
    if curves:
        selectors.show_figure(comparison_figure(curves, tiles.mode()), "comparison")
        paper_tables.curve_table(curves, "comparison-table")
        if len(curves) < len(runs):
            st.caption("Runs without eval images have no curves.")
    if any(run.result for run in runs):
        rows = [row_of(run) for run in runs]
        selectors.show_figure(outcome_figure(rows, names, tiles.mode()), "outcomes")


def show_differing(runs: list[Run], names: list[str]) -> None:
    """Show the settings that differ between runs."""
    settings = differing({run.id: run.request.to_dict() for run in runs})
    if not settings:
        st.caption("The settings of these runs are the same.")
        return
    st.write("Settings that differ")
    st.dataframe(
        [
            {"setting": setting, **{name: _text(value) for name, value in zip(names, values, strict=True)}}
            for setting, values in settings.items()
        ],
        hide_index=True,
        key="differences",
    )


def _text(value: object) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def choose_run(by_id: dict[str, Run], of_url: str | None) -> Run:
    """Return the run that is shown: that of the URL when it is new, else the last one shown, else the newest.

    A run that somebody else starts meanwhile does not replace it.
    """
    state = st.session_state
    shown = state.get("inspect", state.get("_inspected"))
    if shown not in by_id or (of_url is not None and of_url != state.get("_run_of_url")):
        shown = of_url or next(iter(by_id))
    state["inspect"], state["_run_of_url"] = shown, of_url
    chosen = st.selectbox(
        "Run",
        list(by_id),
        format_func=lambda run_id: title(by_id[run_id]),
        key="inspect",
        label_visibility="collapsed",
        on_change=selectors.follow,
        args=("inspect",),
    )
    state["_inspected"] = chosen
    return by_id[chosen]


def choose_compared(by_id: dict[str, Run]) -> list[Run]:
    """Return the runs to compare: those of the URL, or the ones chosen in the list."""
    value = url_state.ids("compare", MOST)
    found = value.get()
    missing = [run_id for run_id in found if run_id not in by_id]
    if missing:
        value.reject(missing[0], "There is no such run on this machine; the others are compared.")
    kept = tuple(run_id for run_id in found if run_id in by_id)
    st.session_state["compare"] = list(kept)
    url_state.show_notices(value)
    if missing and kept:
        value.set(kept)
    chosen = st.multiselect(
        "Runs to compare",
        list(by_id),
        format_func=lambda run_id: title(by_id[run_id]),
        key="compare",
        max_selections=MOST,
        placeholder="Choose two or more runs",
        on_change=lambda: value.set(tuple(st.session_state["compare"])),
    )
    return [by_id[run_id] for run_id in chosen]


selection = shell.selection()
shell.title(
    "Runs",
    "Every run on this machine and the recorded ones, measured on the test split with the trigger of the "
    "model.",
)
runs = visible_runs()
offer_undo()
damaged()
if not runs:
    st.info("There are no runs. Train a polarizer in the Lab: every run is kept.", icon=":material/info:")
    shell.link("pages/lab.py", "Train a polarizer in the Lab", ":material/science:")
    st.stop()
choose_filters(runs)
run_panel.follow(visible_runs, table, every=REFRESH)

by_id = {run.id: run for run in runs}
st.subheader("One run")
named = selection.named_run
of_url = named.id if named is not None and named.id in by_id else None
details(choose_run(by_id, of_url))

st.subheader("Compare")
compared = choose_compared(by_id)
if len(compared) >= 2:
    compare(compared)
else:
    st.caption("Choose two or more runs to see their curves on one scale and the settings that differ.")

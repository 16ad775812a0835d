"""Runs of the chosen model beside a recorded table: their requests, the finished ones, and starting one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import streamlit as st

from npd_core.config.request import DefenseRequest
from npd_core.data.load import availability
from npd_core.experiments.record import Cell
from npd_core.names import defense_name
from npd_core.runs import queue
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, choice, controls, paper_tables, run_panel, selectors

T = TypeVar("T")


def requests(
    cells: Sequence[Cell], card: Card, key: Callable[[Cell], T], defaults: Mapping[T, DefenseRequest]
) -> dict[T, DefenseRequest]:
    """Return for each key the request that was recorded for this model, otherwise the default."""
    return {
        name: recorded_request([cell for cell in cells if key(cell) == name], card) or default
        for name, default in defaults.items()
    }


def recorded_request(cells: Sequence[Cell], card: Card) -> DefenseRequest | None:
    """Return the request of the first cell of this model, to be run again with curves; None without one.

    A request without a layer gets the layer of the cell, as the default may have changed since.
    """
    for cell in cells:
        if paper_tables.is_of(cell, card) and cell.config:
            request = DefenseRequest.from_dict(cell.config)
            layer = request.layer or cell.layer
            return replace(request, layer=layer, eval_images=controls.EVAL_IMAGES, device="auto")
    return None


def finished(requests: Mapping[str, DefenseRequest], chosen: Run | None) -> dict[str, Run]:
    """Return the finished runs on this machine with exactly these requests, by the same labels.

    Args:
        chosen: the run of the URL, which may be newer than the list of runs.
    """
    labels = {request.key: label for label, request in requests.items()}
    found: dict[str, Run] = {}
    for run in [*([chosen] if chosen is not None else []), *cache.runs.all_runs()]:
        label = labels.get(run.request.key)
        if label is not None and label not in found and run.state == "finished" and run.result:
            found[label] = run
    return found


def start(request: DefenseRequest, card: Card, run: Run | None) -> None:
    """Show the buttons that start and stop a run, and the run of the URL."""
    running = run is not None and run.active
    with selectors.working(stop=False):
        data = availability(card.dataset)
        if not data.available:
            st.warning(data.reason, icon=":material/folder_off:")
        with st.container(horizontal=True):
            if st.button(
                "Start run",
                key="start",
                type="primary",
                icon=":material/play_arrow:",
                disabled=running or not data.available,
                help="The run continues when you close this page and is kept on the page Runs.",
            ):
                choice.open_run(queue.manager().submit(request))
            run_panel.stop_button([run] if run is not None else [], key="stop")
    if run is not None:
        layer = (run.result or {}).get("layer") or run.request.layer
        name = defense_name(run.request.defense)
        st.markdown(f"**{name}**{f', {layer}' if layer else ''} · run `{run.id}`")
        run_panel.panel(run.id, card)

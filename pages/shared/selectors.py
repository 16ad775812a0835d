"""The choices that several pages share: model, run and test image.

Where something is missing, one sentence says what and what to do, and the page ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import numpy as np
import plotly.graph_objects as graph
import streamlit as st
from streamlit.errors import StreamlitAPIException

from npd_core.errors import NPDError
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, choice, describe, shell, url_state
from pages.shared.text import show_error


@contextmanager
def working(stop: bool = True) -> Iterator[None]:
    """Show the message of an NPDError that is raised inside, then end the page or go on after the block."""
    try:
        yield
    except NPDError as error:
        show_error(error)
        if stop:
            st.stop()


def switch(label: str, options: Sequence[str], key: str, *, place: Any = st, **settings: Any) -> str:
    """Show a segmented control that is kept in the URL, the first option chosen. Args: place: as a column."""
    written = map(settings.get("format_func", str), options)
    kept = {"key": key} if "bind" in settings else url_state.bound(url_state.choice(key, written))
    settings = {"default": options[0], "required": True, **kept} | settings
    return str(place.segmented_control(label, options, **settings))


def show_figure(figure: graph.Figure, key: str, place: Any = st) -> None:
    """Show a static figure in our own theme, without Plotly's buttons."""
    place.plotly_chart(figure, key=key, theme=None, config={"displayModeBar": False})


def model(selection: shell.Selection) -> Card:
    """Return the chosen model; end the page when there is none."""
    if selection.card is None:
        st.info(
            "There is no model on this machine. `npd zoo train ID` trains one; `npd models` lists the "
            "models.",
            icon=":material/info:",
        )
        st.stop()
    return selection.card


def finished_run(selection: shell.Selection) -> Run | None:
    """Return the chosen run if it has a polarizer, else the default one; None, with a message."""
    assert selection.card is not None
    run = selection.run
    if run is not None and run.request.model == selection.card.id:
        if run.has_polarizer and not run.active:
            return run
        st.warning(cache.runs.no_polarizer(run), icon=":material/hourglass_empty:")
        with working():
            run = choice.default_run(selection.card.id, cache.runs.all_runs())
        if run is not None:
            st.caption(f"Run `{run.id}` is shown instead: {describe.run(run)}.")
            return run
    st.info(
        "No polarizer is chosen, so only the network without one is shown. Training one in the Lab takes "
        "seconds to minutes.",
        icon=":material/info:",
    )
    shell.link("pages/lab.py", "Train a polarizer in the Lab", ":material/science:")
    return None


def origin(run: Run | None) -> None:
    """Show below the numbers of a run where they come from."""
    if run is not None:
        st.caption(f"Polarizer of run `{run.id}` · {describe.provenance(run)}")


def follow(widget: str) -> None:
    """Make the run chosen in `widget` the run of the URL; for `on_change`."""
    choice.RUN.set(st.session_state[widget])


def go(page: str, **query: str) -> None:
    """Open a page with these values in its URL; when the current page runs alone, say where to go."""
    if "run" in query:
        choice.RUN.set(query["run"])
    try:
        shell.open_page(page, query)
    except StreamlitAPIException:
        st.info(f"In the app, open `{page}?{urlencode(query, safe=':')}`.", icon=":material/link:")


def first_image(model_id: str) -> int:
    """Return the number of the test image to begin with: a clear one outside the target class; else 0."""
    return next(iter(cache.images.clear(model_id)), 0)


def random_image(widget: str, model_id: str) -> None:
    """Put a random test image outside the target class (of a clean model any) into `widget`."""
    with working():
        indices = cache.images.test_sets(model_id).poisoned.indices.numpy()
        pool = indices if len(indices) else np.arange(len(cache.images.test_labels(model_id)))
        st.session_state[widget] = int(np.random.default_rng().choice(pool))

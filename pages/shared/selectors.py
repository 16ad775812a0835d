"""What the pages that look at a trained polarizer ask first: which model, which run, which test pictures.

Where something is missing, one sentence says what and what to do, and the page ends there, in good order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import plotly.graph_objects as graph
import streamlit as st
from streamlit.errors import StreamlitAPIException

from npd_core.errors import NPDError
from npd_core.export.bundle import has_polarizer
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cached, shell
from pages.shared.text import show_error

MOST = 12
"""Pictures shown at once, at most."""


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
    settings = {"default": options[0], "required": True, "bind": "query-params"} | settings
    return str(place.segmented_control(label, options, key=key, **settings))


def show_figure(figure: graph.Figure, key: str, place: Any = st) -> None:
    """Show a static figure in our own theme, without Plotly's buttons."""
    place.plotly_chart(figure, key=key, theme=None, config={"displayModeBar": False})


def model(selection: shell.Selection) -> Card:
    """The chosen model; without any the page ends."""
    if selection.card is None:
        st.info(
            "There is no backdoored model on this machine yet. Make one with `npd zoo train ID`; "
            "`npd models` lists what there is.",
            icon=":material/info:",
        )
        st.stop()
    return selection.card


def finished_run(selection: shell.Selection) -> Run | None:
    """The chosen run where it has a polarizer, else the newest of the model; None (with a sentence) without any."""
    assert selection.card is not None
    run = selection.run
    if run is not None and run.request.model == selection.card.id:
        if has_polarizer(run.folder) and not run.active:
            st.caption(f"Polarizer of run `{run.id}` · {shell.provenance(run)}")
            return run
        st.warning(cached.no_polarizer(run), icon=":material/hourglass_empty:")
    with working():
        usable = cached.usable_runs(selection.card.id)
    if not usable:
        st.info(
            "No polarizer has been trained for this model yet, so only the network without one is shown. "
            "Train one on the Lab page: it takes seconds to minutes.",
            icon=":material/info:",
        )
        shell.link("pages/lab.py", "Train a polarizer in the Lab", ":material/science:")
        return None
    run = usable[0]
    st.caption(
        f"No run with a polarizer was chosen: showing `{run.id}` · {shell.run_title(run)} · "
        f"{shell.provenance(run)}"
    )
    return run


def pictures(model_id: str, pool: np.ndarray, count: int, key: str) -> tuple[int, ...]:
    """Numbers of the test pictures to show: those of the address, else those shown last, else a first draw.

    Args:
        pool: numbers to draw from.
        count: how many.
        key: names the wishes of the visitor: when it changes, pictures are drawn anew.
    """
    state = st.session_state
    asked = st.query_params.get("images")
    last = state.get("_pictures")
    if asked and (last is None or asked != state.get("_pictures_asked")):
        state["_pictures_asked"] = asked
        found = _parse(asked, len(cached.test_labels(model_id)))
        if found:
            state["_pictures"] = (model_id, key, found)
            return found
        st.error(
            f"The address asks for pictures {asked[:60]!r}, but numbers from 0 to "
            f"{len(cached.test_labels(model_id)) - 1} with commas between them are needed; showing others.",
            icon=":material/error:",
        )
    if last is not None and last[:2] == (model_id, key):
        _remember(last[2])
        return tuple(last[2])
    return draw(model_id, pool, count, key, seed=0 if last is None else None)


def draw(model_id: str, pool: np.ndarray, count: int, key: str, seed: int | None = None) -> tuple[int, ...]:
    """A new random handful from `pool`, in no order; written to the address."""
    chosen = np.random.default_rng(seed).choice(pool, size=min(count, len(pool)), replace=False)
    numbers = tuple(int(k) for k in chosen)
    st.session_state["_pictures"] = (model_id, key, numbers)
    _remember(numbers)
    return numbers


def put_first(widget: str) -> None:
    """Show the picture whose number was typed into `widget` before the others; called when it changes."""
    number, last = st.session_state.get(widget), st.session_state.get("_pictures")
    if number is None or last is None:
        return
    model_id, key, shown = last
    shown = (int(number), *(k for k in shown if k != number))[: max(1, len(shown))]
    st.session_state["_pictures"] = (model_id, key, shown)
    _remember(shown)


def _remember(numbers: tuple[int, ...]) -> None:
    text = ",".join(map(str, numbers))
    st.session_state["_pictures_asked"] = text
    if st.query_params.get("images") != text:
        st.query_params["images"] = text


def _parse(text: str, total: int) -> tuple[int, ...]:
    """Numbers in [0, total), each once; () when anything else is among them."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        return ()
    return numbers if len(numbers) <= MOST and all(0 <= k < total for k in numbers) else ()


def follow(widget: str) -> None:
    """Make the run chosen in `widget` the one of the address; called when it changes."""
    st.session_state["_open_run"] = st.session_state[widget]


def go(page: str, run_id: str, **settings: str) -> None:
    """Leave for another page with this run chosen there, and these settings in its address; says how to get there when
    the page runs alone."""
    st.session_state["_open_run"] = run_id
    name = page.removeprefix("pages/").removesuffix(".py")
    try:
        shell.open_page(name, {"run": run_id, **settings})
    except StreamlitAPIException:
        st.info(f"In the app, open {name}?run={run_id}.", icon=":material/link:")


def first_attackable(model_id: str) -> int:
    """Number of the first test picture that the attack can hijack; 0 when there is none."""
    indices = cached.test_sets(model_id).poisoned.indices
    return int(indices[0]) if len(indices) else 0


def another(widget: str, model_id: str) -> None:
    """Put the number of a random picture that the attack can hijack into `widget`, of a network without a backdoor any
    number; called when a button is pressed."""
    with working():
        indices = cached.test_sets(model_id).poisoned.indices.numpy()
        pool = indices if len(indices) else np.arange(len(cached.test_labels(model_id)))
        st.session_state[widget] = int(np.random.default_rng().choice(pool))

"""The model and the run that the URL names, on every page."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from npd_core.names import ATTACKS
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, controls, url_state

NO_RUN = "none"
RUN = url_state.UrlValue(
    "run", lambda found: found if found == NO_RUN else cache.runs.find_run(found).id, NO_RUN
)


def cards() -> dict[str, Card]:
    """Return the zoo by id: the built-in data set first, as it works on every machine; clean models last."""
    order = {attack: place for place, attack in enumerate(ATTACKS)}
    found = sorted(
        cache.zoo.cards(),
        key=lambda c: (c.dataset != "signs", c.dataset, order.get(c.attack, len(order)), c.width, c.id),
    )
    return {card.id: card for card in found}


def model_value(cards: Mapping[str, Card]) -> url_state.UrlValue[str]:
    """Return the model of the URL: the first of `cards` by default, "" without any."""
    return url_state.UrlValue("model", lambda found: cache.zoo.card(found).id, next(iter(cards), ""))


def choose_model(model_id: str) -> None:
    """Make `model_id` the model of the app, without a run. Also for callbacks."""
    model_value(cards()).set(model_id)
    RUN.clear()
    controls.reset(cache.zoo.card(model_id))


def open_run(run_id: str) -> None:
    """Make `run_id` the run of the URL and start the script again."""
    RUN.set(run_id)
    st.rerun()


def read_url(cards: Mapping[str, Card], runs: dict[str, Run]) -> None:
    """Set the widgets `model` and `run` to the URL. A run chooses its model, and is added to `runs`.

    The URL holds ids, not the titles that the widgets show: those change while a run goes on.
    """
    model = model_value(cards)
    if model.is_new() and RUN.name not in st.query_params:
        RUN.clear()
    if model.get() not in cards:
        model.clear()
    if (chosen := RUN.get()) != NO_RUN:
        run = runs.setdefault(chosen, runs.get(chosen) or cache.runs.find_run(chosen))
        if run.request.model in cards:
            model.set(run.request.model)
        else:
            RUN.clear()
    st.session_state["model"] = model.get() or None
    st.session_state["run"] = RUN.get()

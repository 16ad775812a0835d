"""The model and the run that the URL names, on every page, and the row of choices that sets them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import streamlit as st

from npd_core.attack_info import ATTACK_INFO
from npd_core.errors import NPDError
from npd_core.figures.gallery import read_gallery
from npd_core.figures.predictions import data_url
from npd_core.names import ATTACKS, attack_name, dataset_name
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, controls, describe, tiles, url_state

NO_RUN, DEFAULT_RUN = "none", ""
RUN = url_state.UrlValue(
    "run", lambda found: found if found == NO_RUN else cache.runs.find_run(found).id, DEFAULT_RUN
)
ATTACKS_OPEN = "model_attack"
"""Key of the list of attacks, which is open or not."""


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


def nearest(cards: Iterable[Card], like: Card | None, **wanted: object) -> Card | None:
    """Return the model with the wanted facts that is most similar to `like`; None when there is none.

    Args:
        wanted: fields of `Card`, as attack="wanet".
    """
    found = [card for card in cards if all(getattr(card, name) == fact for name, fact in wanted.items())]
    if like is None:
        return next(iter(found), None)
    facts = ("dataset", "attack", "arch", "width")
    return min(found, key=lambda c: [getattr(c, fact) != getattr(like, fact) for fact in facts], default=None)


def default_run(model_id: str, runs: Iterable[Run]) -> Run | None:
    """Return the run shown where the URL names none: the recorded one of the model, else the newest one."""
    of_model = (run for run in runs if run.request.model == model_id)
    recorded_first = sorted(of_model, key=lambda run: not run.recorded)
    return next((run for run in recorded_first if cache.runs.usable(run)), None)


def read_url(cards: Mapping[str, Card], runs: dict[str, Run]) -> None:
    """Set `model` and `run` of the session to the URL. A run chooses its model, and is added to `runs`.

    The URL holds ids, not the titles that the widgets show: those change while a run goes on.
    """
    model = model_value(cards)
    if model.is_new() and RUN.name not in st.query_params:
        RUN.clear()
    if model.get() not in cards:
        model.clear()
    if (chosen := RUN.get()) not in (NO_RUN, DEFAULT_RUN):
        run = runs.setdefault(chosen, runs.get(chosen) or cache.runs.find_run(chosen))
        if run.request.model in cards:
            model.set(run.request.model)
        else:
            RUN.clear()
    chosen = RUN.get()
    if chosen == DEFAULT_RUN:
        default = default_run(model.get(), runs.values())
        chosen = NO_RUN if default is None else default.id
    st.session_state["model"], st.session_state["run"] = model.get() or None, chosen


def draw(cards: Mapping[str, Card], runs: Mapping[str, Run]) -> None:
    """Draw the choices of data set, attack, network and run in one row."""
    state = st.session_state
    card = cards.get(state["model"] or "")
    with st.container(key="view-model"):
        columns = st.columns([5, 4, 6, 9], gap="small")
    if card is not None:
        of_dataset = [one for one in cards.values() if one.dataset == card.dataset]
        networks = {one.id: one for one in of_dataset if one.attack == card.attack}
        state["model_dataset"], state["model_network"] = card.dataset, card.id
        columns[0].selectbox(
            "Data set",
            list(dict.fromkeys(one.dataset for one in cards.values())),
            format_func=dataset_name,
            key="model_dataset",
            label_visibility="collapsed",
            on_change=lambda: _choose(nearest(cards.values(), card, dataset=state["model_dataset"])),
        )
        with columns[1]:
            _attacks(card, of_dataset, runs)
        columns[2].selectbox(
            "Network",
            list(networks),
            format_func=lambda name: describe.network(networks[name]) if name in networks else name,
            key="model_network",
            label_visibility="collapsed",
            on_change=lambda: choose_model(state["model_network"]),
        )
    columns[3].selectbox(
        "Run",
        [NO_RUN, *(run.id for run in runs.values() if run.request.model == state["model"])],
        format_func=lambda name: _title(runs.get(name)),
        key="run",
        label_visibility="collapsed",
        on_change=lambda: RUN.set(state["run"]),
    )


def _title(run: Run | None) -> str:
    """Return a run in one line. No two are the same: the browser sends the title, not the id."""
    return describe.run(run) + (
        f" · {describe.short_id(run)}" if run is not None and not run.recorded else ""
    )


def _attacks(card: Card, models: list[Card], runs: Mapping[str, Run]) -> None:
    """Draw the list of attacks, each with a picture. Args: models: of the chosen data set."""
    there = {one.attack for one in models}
    attacks = [attack for attack in ATTACKS if attack in there]
    attacks += sorted(there.difference(attacks))
    title = attack_name(card.attack)
    place = st.popover(
        title[:1].upper() + title[1:],
        icon=":material/bug_report:",
        key=ATTACKS_OPEN,
        on_change="rerun",
        width="stretch",
    )
    with place, st.container(horizontal=True, gap="small", key="model-attacks"):
        for attack in attacks:
            model = nearest(models, card, attack=attack)
            assert model is not None
            with st.container(width=112, gap="xsmall", key=f"model-tile-{attack}"):
                if place.open:
                    alt = f"An image with the trigger of {attack_name(attack)}"
                    tiles.thumbnail_of(_picture(model, runs), alt, "no trigger" if model.asr is None else "")
                st.button(
                    attack_name(attack),
                    key=f"model-attack-{attack}",
                    type="primary" if attack == card.attack else "secondary",
                    width="stretch",
                    on_click=_choose,
                    args=(model,),
                    help=ATTACK_INFO[attack].sentence if attack in ATTACK_INFO else None,
                )


def _choose(card: Card | None) -> None:
    """Make this the model of the app, and close the list of attacks."""
    if card is not None:
        st.session_state[ATTACKS_OPEN] = False
        choose_model(card.id)


def _picture(card: Card, runs: Mapping[str, Run]) -> str | None:
    """Return a triggered image as a data URL: a test image, else one of the recorded run; None without."""
    if card.asr is None:
        return None
    try:
        return data_url(cache.images.examples(card.id, card.attack, card.dataset, 1).triggered[0])
    except NPDError:  # the data set is not on this machine
        recorded = (run for run in runs.values() if run.recorded and run.request.model == card.id)
        images = [image for run in recorded for image in read_gallery(run.folder)]
        return images[0].triggered_url if images else None

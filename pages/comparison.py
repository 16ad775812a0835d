"""Two ways to repair the same network, trained by turns on the same clean images: who gets further, epoch by epoch?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import streamlit as st

from npd_core.config import presets
from npd_core.config.baselines import CONFIGS
from npd_core.config.presets import PAPER_LAYERS
from npd_core.config.request import DefenseRequest
from npd_core.errors import NPDError
from npd_core.figures.curves import MetricCurves, read_metrics
from npd_core.figures.runs import differing
from npd_core.names import defense_name
from npd_core.progress import Progress
from npd_core.runs import queue
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import (
    cache,
    controls,
    describe,
    paper_tables,
    run_panel,
    selectors,
    shell,
    tiles,
    url_state,
)
from pages.shared.components.chart import chart

MOST = 3  # settings that a name can tell
FEW = 48  # clean images of the runner who has few
AS_IT_IS = "as it is"
PAIRS = {
    "Our settings or the paper's": ("default", "paper"),
    "Our layer or the paper's": ("default", "paper_layer"),
    "Weights that fit or too strong ones": ("default", "too_strong"),
    "With or without the imagined trigger": ("default", "too_weak"),
    "All clean images or a few": ("default", "few"),
    "NPD or fine-pruning": ("default", "fp"),
}
Runner = Callable[[Card], DefenseRequest]


def runners() -> dict[str, tuple[str, Runner]]:
    """Everybody who can take part: id -> title, and what they ask for."""

    def preset(name: str) -> Runner:
        def build(card: Card) -> DefenseRequest:
            layer = presets.preset_layer(name, card.arch, card.dataset)
            return replace(controls.defaults(card), layer=layer, config=presets.preset(card.dataset, name))

        return build

    def at_paper_layer(card: Card) -> DefenseRequest:
        return replace(preset("default")(card), layer=PAPER_LAYERS[card.arch])

    def other(name: str) -> Runner:
        return lambda card: controls.defaults(card, name)

    found = {name: (f"NPD · {found.title.lower()}", preset(name)) for name, found in presets.PRESETS.items()}
    found["paper_layer"] = ("NPD · our settings at the paper's layer", at_paper_layer)
    found["few"] = (f"NPD · {FEW} clean images", lambda card: replace(controls.defaults(card), clean=FEW))
    return found | {name: (defense_name(name), other(name)) for name in CONFIGS}


def take(pair: tuple[str, str]) -> None:
    """Fill both lists, with nothing changed in either; for a button's `on_click`."""
    st.session_state["first"], st.session_state["second"] = pair
    for key in ("first", "second"):
        st.session_state.update({f"{key}_layer": AS_IT_IS, f"{key}_lambda": None, f"{key}_rho": None})


def tuned(asked: DefenseRequest, card: Card, key: str) -> DefenseRequest:
    """A runner with another layer, other weights or another budget, where the visitor wants one. A baseline has none.

    Raises:
        ConfigError: the address brought a number that cannot be.
    """
    if asked.defense in CONFIGS:
        return asked
    with st.expander("Change its layer, weights or budget", icon=":material/tune:", key=f"{key}-tune"):
        layer = st.selectbox(
            "Layer", [AS_IT_IS, *controls.layers(card)], key=f"{key}_layer", bind="query-params"
        )
        weights, budget = st.columns(2)
        number: dict[str, Any] = {
            "value": None,
            "min_value": 0.0,
            "placeholder": "as it is",
            "bind": "query-params",
        }
        with weights:
            weight = st.number_input("λ₂ = λ₃", max_value=10.0, step=0.05, key=f"{key}_lambda", **number)
        with budget:
            rho = st.number_input("ρ", max_value=1000.0, step=0.5, key=f"{key}_rho", **number)
    changes = {"lambda2": weight, "lambda3": weight, "rho": rho}
    config = replace(asked.config, **{name: value for name, value in changes.items() if value is not None})
    return replace(asked, layer=asked.layer if layer == AS_IT_IS else layer, config=config)


def stop(runs: list[Run]) -> None:
    """End those that still go on; a recorded run ended long ago."""
    with selectors.working():
        for run in runs:
            if run.active:
                queue.manager().cancel(run.id)


def two_runs(found: str) -> tuple[str, ...]:
    """Read the ids of two different runs."""
    names = tuple(dict.fromkeys(found.split(",")))
    if len(names) != 2:
        raise NPDError("It must name two different runs.")
    return tuple(cache.runs.find_run(name).id for name in names)


NO_RUNS: tuple[str, ...] = ()
RUNS = url_state.UrlValue("runs", two_runs, NO_RUNS, ",".join)


def titles(runs: list[Run], card: Card) -> list[str]:
    """Words for both runs, no two the same: the first runner that asks for exactly this, else defense and layer."""
    known = {make(card).key: title for title, make in reversed(runners().values())}
    words = [known.get(run.request.key, describe.defense(run)) for run in runs]
    if words[0] == words[1]:
        settings = differing({run.id: run.request.config.to_dict() for run in runs})
        told = [" · ".join(f"{name} {values[lane]}" for name, values in settings.items()) for lane in (0, 1)]
        own = [describe.short_id(run) for run in runs] if not settings or len(settings) > MOST else told
        words = [f"{word} · {end}" for word, end in zip(words, own, strict=True)]
    return words


def lanes(runs: list[Run], names: list[str], card: Card) -> None:
    """Where both are: state, numbers and curves on one scale."""
    tracks: dict[str, MetricCurves] = {}
    now: list[dict[str, float | None]] = []
    for column, run, name in zip(st.columns(2, gap="large"), runs, names, strict=True):
        before, records = run_panel.before_of(run, card), run_panel.events(run)
        seen = read_metrics(records, before if before.get("acc") is not None else None)
        done = Progress.of(records)
        tracks[name] = seen
        after = (run.result or {}).get("after")
        last = {m: (getattr(seen, m)[-1] if seen.epochs else None) for m in ("acc", "asr", "ra")}
        now.append(dict(after) if after else last)
        with column:
            icon, color = describe.STATES[run.state]
            epoch = f"epoch {done.done_epochs} of {done.epochs}" if run.active and done.epochs else run.state
            st.markdown(f"**{name}** :{color}-badge[{icon} {epoch}]")
            run_panel.tiles(before, now[-1], (run.result or {}).get("der"))
            if run.message or run.state == "queued":
                st.caption(run.message or run_panel.ahead(run))
    st.markdown(leader(names, now))
    drawn = cache.runs.comparison_chart(tracks, tiles.mode())
    chart(drawn, key="race-curves", alt="ACC, ASR and RA of both runs by epoch.")
    if not any(run.active for run in runs):
        paper_tables.curve_table(tracks, "race-table")


def leader(names: list[str], now: list[dict[str, float | None]]) -> str:
    """Who leads at what, in a sentence."""
    said = []
    for metric, word, sign in (("acc", "ACC", 1), ("asr", "ASR", -1), ("ra", "RA", 1)):
        one, two = (row.get(metric) for row in now)
        if one is None or two is None:
            continue
        if abs(one - two) < 0.005:
            said.append(f"{word}: level")
        else:
            said.append(
                f"{word}: **{names[0] if sign * (one - two) > 0 else names[1]}** by {abs(one - two):.1%}"
            )
    return " · ".join(said) if said else "Nothing is measured yet."


@st.fragment(run_every=run_panel.REFRESH)
def follow(ids: list[str], names: list[str], card: Card) -> None:
    runs = [cache.runs.find_run(name) for name in ids]
    lanes(runs, names, card)
    if not any(run.active for run in runs):
        st.rerun()


selection = shell.selection()
st.title("Race")
st.write(
    "Two repairs of the same network, with the same seed and, unless one has few on purpose, the same clean images, "
    "trained by turns: each makes an epoch, then the other. Both become ordinary runs, with their own pages."
)
card = selectors.model(selection)
everybody = runners()
with st.container(horizontal=True, key="view-settings-race"):
    for title, pair in PAIRS.items():
        if everybody[pair[0]][1](card) == everybody[pair[1]][1](card):
            continue  # the standard point of this model may be the paper's
        st.button(title, key=f"pair-{pair[1]}", on_click=take, args=(pair,))
left, right = st.columns(2, gap="large")
first, second = (
    column.selectbox(
        word,
        list(everybody),
        index=list(everybody).index(name),
        format_func=lambda name: everybody[name][0],
        key=key,
        bind="query-params",
    )
    for column, word, key, name in ((left, "One", "first", "default"), (right, "Two", "second", "paper"))
)
runs = [cache.runs.find_run(name) for name in RUNS.get()]
url_state.show_notices(RUNS)
running = any(run.active for run in runs)
with selectors.working():
    asked = []
    for column, name, key in ((left, first, "first"), (right, second, "second")):
        with column:
            asked.append(tuned(everybody[name][1](card), card, key))
    same = asked[0] == asked[1]
    if same:
        st.caption("Choose two that differ: of this model these are one and the same.")
    if st.button(
        "Start the race", type="primary", icon=":material/flag:", key="start", disabled=running or same
    ):
        RUNS.set(tuple(queue.manager().submit_together(asked)))
        st.rerun()

if runs:
    if any(run.request.model != card.id for run in runs):
        st.caption(f"The race in the address is about `{runs[0].request.model}`.")
        with selectors.working():
            card = cache.zoo.card(runs[0].request.model)
    with selectors.working():
        names = titles(runs, card)
    with st.container(horizontal=True):
        if running and st.button("Stop both", icon=":material/stop:", key="stop"):
            stop(runs)
        st.button(
            "Put this race away",
            icon=":material/close:",
            type="tertiary",
            key="away",
            on_click=RUNS.clear,
            help="Both runs stay on the page Runs; a run that goes on is not stopped.",
        )
    if running:
        follow([run.id for run in runs], names, card)
    else:
        lanes(runs, names, card)
        for run, name in zip(runs, names, strict=True):
            st.caption(f"{name}: {describe.provenance(run)} · run `{run.id}`")
        settings = differing({run.id: run.request.to_dict() for run in runs})
        if settings:
            st.dataframe(
                [
                    {"setting": key, **dict(zip(names, map(str, pair), strict=True))}
                    for key, pair in settings.items()
                ],
                hide_index=True,
                key="differences",
            )
else:
    st.caption("No race yet. The paper's runner takes longest: it perturbs anew in every batch.")

run_panel.warm()

"""Train two defenses of one model side by side and compare them epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import streamlit as st

from npd_core.config import presets
from npd_core.config.baselines import CONFIGS
from npd_core.config.presets import DEFAULT, PAPER_LAYERS
from npd_core.config.request import DefenseRequest
from npd_core.errors import NPDError
from npd_core.figures.curves import MetricCurves
from npd_core.figures.runs import differing
from npd_core.names import CURVES, METRICS, RUN_STATES, defense_name
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
from pages.shared.text import message

CHANGES = {"lambda": 10.0, "rho": 1000.0}  # the largest that a visitor may set
MOST_SETTINGS = 3  # that fit into the title of a run
FEW_IMAGES = 48
UNCHANGED = "unchanged"
CLOSE = 0.005  # metrics that differ by less are called equal
PAIRS = {
    "Recommended or paper settings": (DEFAULT, "paper"),
    "Recommended or paper layer": (DEFAULT, "paper_layer"),
    "Recommended or too large lambdas": (DEFAULT, "too_strong"),
    "With or without adversarial losses": (DEFAULT, "too_weak"),
    "All clean images or a few": (DEFAULT, "few"),
    "NPD or fine-pruning": (DEFAULT, "fp"),
}
Build = Callable[[Card], DefenseRequest]


def candidates() -> dict[str, tuple[str, Build]]:
    """Return everything that can be compared: id -> title, and a function that makes its request."""

    def preset(name: str) -> Build:
        def build(card: Card) -> DefenseRequest:
            layer = presets.preset_layer(name, card.arch, card.dataset)
            return replace(controls.defaults(card), layer=layer, config=presets.preset(card.dataset, name))

        return build

    def at_paper_layer(card: Card) -> DefenseRequest:
        return replace(preset(DEFAULT)(card), layer=PAPER_LAYERS[card.arch])

    def baseline(name: str) -> Build:
        return lambda card: controls.defaults(card, name)

    found = {name: (f"NPD · {one.title.lower()}", preset(name)) for name, one in presets.PRESETS.items()}
    found["paper_layer"] = ("NPD · recommended settings at the paper's layer", at_paper_layer)
    few = f"NPD · {FEW_IMAGES} clean images"
    found["few"] = (few, lambda card: replace(controls.defaults(card), clean=FEW_IMAGES))
    return found | {name: (defense_name(name), baseline(name)) for name in CONFIGS}


def choose_pair(pair: tuple[str, str]) -> None:
    """Choose both defenses, with no setting changed; for `on_click`."""
    for key, name in zip(("first", "second"), pair, strict=True):
        changes = {f"{key}_layer": UNCHANGED, f"{key}_lambda": None, f"{key}_rho": None}
        st.session_state.update({key: name} | changes)


def changed(request: DefenseRequest, card: Card, key: str) -> DefenseRequest:
    """Let the visitor change layer, lambdas and budget of a request; a baseline has none of them.

    Raises:
        ConfigError: a number of the URL is out of its range.
    """
    if request.defense in CONFIGS:
        return request
    with st.expander("Change layer, lambdas or budget", icon=":material/tune:", key=f"{key}-tune"):
        layers = [UNCHANGED, *controls.layers(card)]
        layer = st.selectbox(
            "Insertion layer", layers, **url_state.bound(url_state.choice(f"{key}_layer", layers))
        )
        left, right = st.columns(2)
        number: dict[str, Any] = {"value": None, "placeholder": UNCHANGED, "min_value": 0.0}
        weights, budgets = (
            url_state.number(f"{key}_{name}", 0.0, high, 0.0) for name, high in CHANGES.items()
        )
        with left:
            number["max_value"] = CHANGES["lambda"]
            weight = st.number_input("λ₂ = λ₃", step=0.05, **number, **url_state.bound(weights))
        with right:
            number["max_value"] = CHANGES["rho"]
            rho = st.number_input("ρ", step=0.5, **number, **url_state.bound(budgets))
    changes = {"lambda2": weight, "lambda3": weight, "rho": rho}
    config = replace(request.config, **{name: value for name, value in changes.items() if value is not None})
    return replace(request, layer=request.layer if layer == UNCHANGED else layer, config=config)


def two_runs(found: str) -> tuple[str, ...]:
    """Read the ids of two different runs."""
    ids = tuple(dict.fromkeys(found.split(",")))
    if len(ids) != 2:
        raise NPDError("It must name two different runs, separated by a comma.")
    return tuple(cache.runs.find_run(run_id).id for run_id in ids)


NO_RUNS: tuple[str, ...] = ()
RUNS = url_state.UrlValue("runs", two_runs, NO_RUNS, ",".join)


def titles(runs: list[Run], card: Card) -> list[str]:
    """Return two different titles: that of the candidate with this request, else defense and layer."""
    known = {build(card).key: title for title, build in reversed(candidates().values())}
    found = [known.get(run.request.key, describe.defense(run)) for run in runs]
    if found[0] != found[1]:
        return found
    settings = differing({run.id: run.request.config.to_dict() for run in runs})
    if not settings or len(settings) > MOST_SETTINGS:
        ends = [describe.short_id(run) for run in runs]
    else:
        ends = [" · ".join(f"{name} {values[i]}" for name, values in settings.items()) for i in (0, 1)]
    return [f"{title} · {end}" for title, end in zip(found, ends, strict=True)]


def show(runs: list[Run], names: list[str], card: Card) -> None:
    """Show both runs: state and metrics side by side, and the curves on one scale."""
    tracks: dict[str, MetricCurves] = {}
    now: list[dict[str, float | None]] = []
    for column, run, name in zip(st.columns(2, gap="large"), runs, names, strict=True):
        before = run_panel.before_of(run, card)
        seen = cache.runs.curves(run, before, tiles.mode())
        tracks[name] = seen.measured
        shown = run_panel.frames(run, seen.measured)
        now.append({metric: getattr(shown[-1], metric) if shown else None for metric in CURVES})
        with column:
            icon, color = describe.STATES[run.state]
            done = seen.done
            epoch = f"epoch {done.done_epochs} of {done.epochs}" if run.active and done.epochs else ""
            st.markdown(f"**{name}** :{color}-badge[{icon} {epoch or RUN_STATES[run.state]}]")
            run_panel.metrics(before, now[-1], (run.result or {}).get("der"))
            if run.message:
                st.caption(message(run.message))
            elif run.state == "queued":
                st.caption(run_panel.queued(run))
    st.markdown(leaders(names, now))
    drawn = cache.runs.comparison_chart(tracks, tiles.mode())
    chart(drawn, key="comparison-curves", alt="ACC, ASR and RA of both runs by epoch.")
    if not any(run.active for run in runs):
        paper_tables.curve_table(tracks, "comparison-table")


def leaders(names: list[str], now: list[dict[str, float | None]]) -> str:
    """Return in a sentence which run is better by each metric."""
    parts = []
    for metric in CURVES:
        one, two = (row[metric] for row in now)
        if one is None or two is None:
            continue
        gain = two - one if METRICS[metric].lower_is_better else one - two
        better = f"**{names[0] if gain > 0 else names[1]}** by {abs(gain):.1%}"
        parts.append(f"{METRICS[metric].short}: {'equal' if abs(gain) < CLOSE else better}")
    return " · ".join(parts) or "Nothing has been measured so far."


def comparison(runs: list[Run], card: Card) -> None:
    """Show the comparison of the URL, and the buttons that stop and close it."""
    if any(run.request.model != card.id for run in runs):
        st.caption(f"The comparison in the URL is of the model `{runs[0].request.model}`.")
        card = cache.zoo.card(runs[0].request.model)
    names = titles(runs, card)
    with st.container(horizontal=True):
        if any(run.active for run in runs):
            run_panel.stop_button(runs, key="stop", label="Stop both")
        st.button(
            "Close comparison",
            icon=":material/close:",
            type="tertiary",
            key="close",
            on_click=RUNS.clear,
            help="Both runs stay on the page Runs; an active run continues.",
        )
    ids = [run.id for run in runs]
    run_panel.follow(
        lambda: [cache.runs.find_run(run_id) for run_id in ids], lambda found: show(found, names, card)
    )
    if any(run.active for run in runs):
        return
    for run, name in zip(runs, names, strict=True):
        st.caption(f"{name}: {describe.provenance(run)} · run `{run.id}`")
    settings = differing({run.id: run.request.to_dict() for run in runs})
    rows = [
        {"setting": key, **dict(zip(names, map(str, pair), strict=True))} for key, pair in settings.items()
    ]
    if rows:
        st.dataframe(rows, hide_index=True, key="differences")


selection = shell.selection()
shell.title(
    "Comparison",
    "Two defenses of the same model train at the same time, with the same seed and the same clean images "
    "(unless one gets a few). Both become ordinary runs.",
)
card = selectors.model(selection)
options = candidates()
with st.container(horizontal=True, key="view-settings-pairs"):
    for title, pair in PAIRS.items():
        if options[pair[0]][1](card) == options[pair[1]][1](card):
            continue  # the default layer of this model may be that of the paper
        st.button(title, key=f"pair-{pair[1]}", on_click=choose_pair, args=(pair,))
columns = st.columns(2, gap="large")
chosen = [
    column.selectbox(
        f"{key.capitalize()} defense",
        list(options),
        index=list(options).index(name),
        format_func=lambda name: options[name][0],
        **url_state.bound(url_state.choice(key, [title for title, _ in options.values()])),
    )
    for column, key, name in zip(columns, ("first", "second"), (DEFAULT, "paper"), strict=True)
]
runs = [cache.runs.find_run(run_id) for run_id in RUNS.get()]
url_state.show_notices(RUNS)
with selectors.working():
    requests = []
    for column, name, key in zip(columns, chosen, ("first", "second"), strict=True):
        with column:
            requests.append(changed(options[name][1](card), card, key))
    same = requests[0] == requests[1]
    if same:
        st.caption("Both are the same for this model. Choose two that differ.")
    running = any(run.active for run in runs)
    if st.button(
        "Start comparison",
        type="primary",
        icon=":material/play_arrow:",
        key="start",
        disabled=running or same,
    ):
        RUNS.set(tuple(queue.manager().submit_together(requests)))
        st.rerun()
    if runs:
        comparison(runs, card)
    else:
        st.caption("The paper settings take longest: they compute new perturbations in every batch.")
run_panel.warm()

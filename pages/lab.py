"""Choose a backdoored model, a layer and the weights of the losses; train a neural polarizer and watch it work."""

import streamlit as st

from npd_core.config.presets import PAPER_LAYERS, default_layer
from npd_core.data.load import availability
from npd_core.errors import NPDError, UnknownNameError
from npd_core.figures import network as drawing
from npd_core.names import attack_name
from npd_core.runs import queue
from npd_core.zoo.card import Card
from pages.shared import choice, controls, paper_tables, run_panel, shell
from pages.shared.components.network import network


def picked() -> None:
    """The drawing was clicked: the list follows."""
    layer = st.session_state["network"].get("layer")
    if layer:
        st.session_state["layer"] = layer


def facts(card: Card) -> None:
    """The model card, in a few lines."""
    attack = attack_name(card.attack)
    if card.asr is None or card.ra is None:
        st.markdown(
            f"Right on **{card.acc:.1%}** of clean test images, and **not backdoored**: it has no trigger."
        )
        measured = f"{card.acc:.1%}"
    else:
        st.markdown(
            f"Right on **{card.acc:.1%}** of clean test images; with the trigger, **{card.asr:.1%}** become "
            f"{card.target}."
        )
        measured = f"{card.acc:.1%} / {card.asr:.1%} / {card.ra:.1%}"
    with st.expander("Model card", icon=":material/badge:"):
        weights = card.files.get("model.safetensors", "")
        rows = {
            "data set": card.dataset,
            "attack": attack,
            "poisoned training images": f"{card.poison_ratio:.0%}",
            "attacker's target": card.target,
            "architecture": f"{card.arch}, width {card.width}",
            "ACC / ASR / RA": measured,
            "seed": card.seed,
            "size": f"{card.bytes / 1e6:.1f} MB",
            "sha256": f"{weights[:16]}…" if weights else "",
        }
        st.table({name: str(value) for name, value in rows.items()}, border="horizontal")


def start_and_stop(card: Card, layer: str) -> None:
    """All settings, and the buttons that act on them."""
    running = run is not None and run.active
    buttons = st.container(key="act", horizontal=True)
    asked = controls.draw_settings(card, layer, folded=running)
    try:
        here = availability(card.dataset)
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
        return
    if not here.available:
        buttons.warning(
            f"{here.reason} Until then the recorded runs of this model can be opened above.",
            icon=":material/folder_off:",
        )
    with buttons:
        start = st.button(
            "Train the polarizer",
            key="start",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            disabled=asked is None or not here.available or running,
        )
        stop = st.button(
            "Stop",
            key="stop",
            icon=":material/stop:",
            disabled=not running,
            help="Training ends after the current step; the state so far is kept and measured.",
        )
    try:
        if start and asked is not None:
            runs = queue.manager()
            there = {old.id for old in runs.store.list()}
            answer = runs.submit(asked)
            if answer in there:
                st.toast("Exactly this was asked for before: here is that run.", icon=":material/replay:")
            controls.forget_problems()
            choice.open_run(answer)
        if stop and run is not None:
            queue.manager().cancel(run.id)
            st.toast("Stopping after this step …", icon=":material/stop:")
    except NPDError as error:
        st.error(str(error), icon=":material/error:")


st.title("Lab")
card, run = shell.selection()
if card is None:
    st.info(
        "There is no model in the zoo yet. Build one with `npd zoo train signs-badnets_a2o-preact_resnet18-w16`.",
        icon=":material/inventory_2:",
    )
    st.stop()
if run is not None and controls.can_adopt(run.request) and controls.nothing_set():
    controls.adopt(run.request)
    st.query_params.update(
        controls.url_query(run.request)
    )  # a widget that is set before it is drawn does not

left, right = st.columns([5, 8], gap="large")
with left:
    facts(card)
    layer = controls.layer_select(card)
    controls.preset_buttons(card, layer)
    start_and_stop(card, layer)

with right:
    if run is not None:
        with st.container(key="run-panel"):
            run_panel.panel(run.id, card)
            if not run.active:
                with st.container(horizontal=True):
                    if run.has_polarizer:
                        shell.link("pages/predictions.py", "See its predictions", ":material/image_search:")
                        shell.link(
                            "pages/attributions.py", "See what decides", ":material/center_focus_strong:"
                        )
                    if run.result:
                        shell.link("pages/runs.py", "Take it home", ":material/home:")
                    if controls.can_adopt(run.request):
                        st.button(
                            "Use the settings of this run",
                            icon=":material/tune:",
                            type="tertiary",
                            key="adopt",
                            on_click=controls.adopt,
                            args=(run.request,),
                        )
    st.subheader("Where the light is filtered")
    try:
        plan = drawing.plan(card.arch, card.width, card.image_size, card.num_classes)
    except UnknownNameError:
        st.caption("This architecture has no drawing; choose its layer in the list.")
    else:
        network(
            plan,
            selected=layer,
            default=default_layer(card.arch, card.dataset),
            paper=PAPER_LAYERS.get(card.arch, ""),
            key="network",
            on_pick=picked,
            tint=paper_tables.layer_tint(card),
            gaps=False,
        )
        arcs = ", each arc a shortcut" if "stream" in plan.kinds() else ""
        st.caption(
            f"Each box is a convolution{arcs}. The violet lens is the polarizer: a 1×1 convolution with BatchNorm, the "
            "only part that learns. Arrow keys move it."
        )

run_panel.warm()

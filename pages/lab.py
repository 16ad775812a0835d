"""Choose a backdoored model, an insertion layer and the settings, and train a neural polarizer live."""

import streamlit as st

from npd_core.config.presets import PAPER_LAYERS, default_layer
from npd_core.data.load import availability
from npd_core.errors import NPDError, UnknownNameError
from npd_core.figures import network as drawing
from npd_core.names import attack_name
from npd_core.runs import queue
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import choice, controls, duration, paper_tables, run_panel, shell
from pages.shared.components.network import network
from pages.shared.text import message, plain, show_error


def picked() -> None:
    """Take the layer that was clicked in the drawing over into the list."""
    layer = st.session_state["network"].get("layer")
    if layer:
        st.session_state["layer"] = layer


def about(card: Card) -> str:
    """Return in a sentence how well the network and its backdoor work."""
    right = f"The network is right on **{card.acc:.1%}** of the clean test images"
    if card.asr is None:
        return f"{right}. It is a **clean model** without a trigger."
    return f"{right}. With the trigger, **{card.asr:.1%}** are predicted as {plain(card.target)}."


def facts(card: Card) -> None:
    """Show the model card."""
    measured = " / ".join("–" if value is None else f"{value:.1%}" for value in (card.acc, card.asr, card.ra))
    with st.expander("Model card", icon=":material/badge:"):
        weights = card.files.get("model.safetensors", "")
        rows = {
            "data set": card.dataset,
            "attack": attack_name(card.attack),
            "poisoned training images": f"{card.poison_ratio:.0%}",
            "target": card.target,
            "architecture": f"{card.arch}, width {card.width}",
            "ACC / ASR / RA": measured,
            "seed": card.seed,
            "size": f"{card.bytes / 1e6:.1f} MB",
            "sha256": f"{weights[:16]}…" if weights else "",
        }
        st.table({name: str(value) for name, value in rows.items()}, border="horizontal")


def show_run(run: Run, card: Card) -> None:
    """Show a run, and where to go on with it."""
    with st.container(key="run-panel"):
        run_panel.panel(run.id, card)
        if run.active:
            return
        with st.container(horizontal=True):
            if run.has_polarizer:
                shell.link("pages/predictions.py", "See its predictions", ":material/image_search:")
                shell.link(
                    "pages/attributions.py", "See which pixels decide", ":material/center_focus_strong:"
                )
            if run.result:
                shell.link("pages/runs.py", "Export", ":material/deployed_code:")
            if controls.can_adopt(run.request):
                st.button(
                    "Use the settings of this run",
                    icon=":material/tune:",
                    type="tertiary",
                    key="adopt",
                    on_click=controls.adopt,
                    args=(run.request,),
                )


def show_network(card: Card, layer: str) -> None:
    """Show the drawing of the network, in which the layer can be chosen."""
    try:
        plan = drawing.plan(card.arch, card.width, card.image_size, card.num_classes)
    except UnknownNameError:
        st.caption("There is no drawing of this architecture; choose the layer in the list.")
        return
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
        f"Each box is a convolution{arcs}. The violet ellipse is the polarizer: a 1×1 convolution with "
        "BatchNorm, the only part that is trained. Move it with a click or with the arrow keys."
    )


def start_and_stop(card: Card, layer: str) -> None:
    """Show all settings, and the buttons that start and stop a training."""
    running = run is not None and run.active
    buttons = st.container(key="act", horizontal=True)
    time = st.container(key="time")
    request = controls.draw_settings(card, layer, folded=running)
    try:
        here = availability(card.dataset)
    except NPDError as error:
        show_error(error)
        return
    if not here.available:
        words = f"{message(here.reason)} Without it, you can open the recorded runs of this model above."
        buttons.warning(words, icon=":material/folder_off:")
    with buttons:
        start = st.button(
            "Train the polarizer",
            key="start",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            disabled=request is None or not here.available or running,
        )
        run_panel.stop_button([run] if run is not None else [], key="stop")
    if request is not None and here.available and not running:
        with time:
            duration.show(request, card)
    if start and request is not None:
        try:
            manager = queue.manager()
            known = {old.id for old in manager.store.list()}
            run_id = manager.submit(request)
        except NPDError as error:
            show_error(error)
            return
        if run_id in known:
            st.toast("Already run with these settings; showing that result.", icon=":material/replay:")
        controls.forget_problems()
        choice.open_run(run_id)


selection = shell.selection()
card, run = selection.card, selection.run
shell.title("Lab", "" if card is None else about(card))
if card is None:
    st.info(
        "There is no model on this machine. Train one with "
        "`npd zoo train signs-badnets_a2o-preact_resnet18-w16`.",
        icon=":material/inventory_2:",
    )
    st.stop()
if selection.named and run is not None and controls.can_adopt(run.request) and controls.nothing_set():
    controls.adopt(run.request)
    # A widget that is set before it is drawn does not write the URL itself.
    st.query_params.update(controls.url_query(run.request))

with st.container(key="lab"):
    left, right = st.columns([5, 8], gap="large")
with left:
    layer = controls.layer_select(card)
    controls.preset_buttons(card, layer)
    start_and_stop(card, layer)
    facts(card)

with right:
    # A run of the URL comes first, the recorded one after the drawing in which the layer is chosen.
    if run is not None and selection.named:
        with st.container(key="run-first"):
            show_run(run, card)
    show_network(card, layer)
    if run is not None and not selection.named:
        show_run(run, card)

run_panel.warm()

"""Attribution maps before and after the polarizer, of a clean and of a triggered image, on one scale."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import streamlit as st

from npd_core.attribution import METHODS
from npd_core.figures.attributions import MapGrid, channel_bars, channel_figure
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, own_image, selectors, shell, tiles, url_state
from pages.shared.text import plain

TARGET, TRUE = "target class", "true class"  # choices beside the names of the classes
TEST, OWN = "Test image", "Your image"
UNITS = {"saliency": "logits per unit of brightness"}


class Explained(NamedTuple):
    """The image to explain; `pair` is (2, 3, H, W) uint8, clean and triggered."""

    pair: np.ndarray
    title: str
    label: int
    predictions: list[np.ndarray]
    """Probabilities (2, K) of the pair, by the model and by the model with the polarizer."""
    number: int | None
    """Of a test image; None: the visitor's own."""


def explained(
    card: Card, run: Run, names: tuple[str, ...], number: int, own: own_image.OwnImage | None
) -> Explained:
    if own is None:
        st.session_state["last_image"] = number
        found = cache.images.samples(card.id, (number,))
        pair, label = np.concatenate([found.clean, found.triggered]), int(found.labels[0])
    else:
        pair = np.stack([own.clean, own.triggered])
    predictions = [cache.images.predict(card.id, run_id, pair) for run_id in (None, run.id)]
    if own is None:
        return Explained(pair, names[label], label, predictions, number)
    label = int(predictions[0][0].argmax()) if own.label is None else own.label
    return Explained(pair, own.title, label, predictions, None)


def show_maps(
    card: Card, run: Run, names: tuple[str, ...], image: Explained, method: str, target: int
) -> None:
    """Show the maps of the clean and, unless the model is clean, of the triggered image."""
    with selectors.working():
        if image.number is not None:
            found = cache.attribution.maps(card.id, run.id, image.number, method, target)
        else:
            found = cache.attribution.image_maps(
                card.id, run.id, image.pair[0], image.pair[1], method, target
            )
    rows = slice(2 if card.asr is not None or image.number is None else 1)
    notes = [
        [f"predicts {names[int(p[row].argmax())]}, {p[row].max():.0%}" for p in image.predictions]
        for row in (0, 1)
    ]
    unit, about = UNITS.get(method, "logits"), METHODS[method]
    tiles.show_maps(
        MapGrid(
            [f"Clean · {image.title}", "Triggered"][rows],
            ["Backdoored" if card.asr is not None else "Network", "With polarizer"],
            list(image.pair)[rows],
            [list(row) for row in found.maps][rows],
            found.scale,
            notes[rows],
            f"Orange supports “{names[target]}”, blue opposes it; {unit}, one scale for all maps.",
        ),
        {f"{about.title} ({about.source})": about.sentence, "What to look for": about.look_for},
    )


def show_channels(card: Card, run: Run, names: tuple[str, ...], image: Explained, target: int) -> None:
    """Show what the polarizer took from each channel of its layer."""
    st.subheader("Channels that the polarizer suppressed")
    triggered = card.asr is not None or image.number is None
    if triggered:
        kinds = ["triggered", "clean"]
        kept = url_state.bound(url_state.choice("channel_image", kinds))
        chosen = st.radio("Image", kinds, horizontal=True, **kept)
        triggered = chosen == kinds[0]
    with selectors.working():
        if image.number is not None:
            channels = cache.attribution.channels(card.id, run.id, image.number, triggered, target)
        else:
            channels = cache.attribution.image_channels(run.id, image.pair[int(triggered)], target)
    bars = channel_bars(*channels)
    layer = run.request.layer or (run.result or {}).get("layer", "the default layer")
    st.write(
        f"The polarizer at `{layer}` has {len(channels.before)} channels. It changes the logit of "
        f"“{plain(names[target])}” from {bars.logit_before:.2f} to {bars.logit_after:.2f} "
        f"({bars.logit_after - bars.logit_before:+.2f}). The bars show the {len(bars.channels)} channels "
        f"that lost most; they make up {bars.share:.0%} of all losses."
    )
    if bars.channels:
        selectors.show_figure(channel_figure(bars, tiles.mode()), "channels")
    else:
        st.info(
            "The polarizer lowered the contribution of no channel for this image and class.",
            icon=":material/info:",
        )
    with st.expander("Definition of a channel's contribution, and the numbers"):
        st.markdown(
            "Take the features before and after the polarizer. Integrated Gradients along the straight "
            "path from zero to the purified features gives *after*; along the path from the purified to "
            "the original features it gives *suppressed*; *before* is their sum. Over all channels, "
            "*suppressed* adds up to the drop of the logit; it is 0 for a channel that passes unchanged."
        )
        columns = {
            "before": bars.before,
            "after": bars.after,
            "suppressed": bars.suppressed,
            "mean |activation| before": bars.activation_before,
            "mean |activation| after": bars.activation_after,
        }
        st.dataframe(
            {"channel": bars.channels} | columns,
            key="channel_table",
            hide_index=True,
            column_config=dict.fromkeys(columns, st.column_config.NumberColumn(format="%.3f")),
        )


selection = shell.selection()
shell.title(
    "Attributions",
    "Which pixels support a class, without and with the polarizer, on the clean and on the triggered image.",
)
card = selectors.model(selection)
run = selectors.finished_run(selection)
if run is None:
    st.stop()
backdoored = card.asr is not None
own = own_image.kept(card.id)
if own is not None:
    own = own if selectors.switch("Image", [TEST, OWN], "attributed", bind=None) == OWN else None
with selectors.working():
    names = cache.images.class_names(card.dataset)
    labels = cache.images.test_labels(card.id)
image_kept = url_state.bound(url_state.integer("image", 0, len(labels) - 1, 0))
if "image" not in st.session_state and "image" not in st.query_params:
    st.session_state["image"] = st.session_state.get("last_image", selectors.first_image(card.id))
    st.query_params["image"] = str(
        st.session_state["image"]
    )  # a value set before the widget is drawn is not written
with st.container(key="controls"):
    first, second, third, fourth = st.columns([1.6, 1.2, 1.2, 1.8], vertical_alignment="bottom")
title = first.selectbox(
    "Method",
    [info.title for info in METHODS.values()],
    **url_state.bound(url_state.choice("method", [info.title for info in METHODS.values()])),
    help="A finding is solid where the methods agree.",
)
method = next(name for name, info in METHODS.items() if info.title == title)
number = second.number_input(
    "Image number",
    0,
    len(labels) - 1,
    **image_kept,
    disabled=own is not None,
    help=f"One of the {len(labels)} test images.",
)
third.button(
    "New sample",
    key="new_sample",
    icon=":material/casino:",
    width="stretch",
    on_click=selectors.random_image,
    args=("image", card.id),
    disabled=own is not None,
    help="A random test image outside the target class." if backdoored else "A random test image.",
)
choice = fourth.selectbox(
    "Explain the logit of",
    [TARGET, TRUE, *names],
    **url_state.bound(url_state.choice("target", [TARGET, TRUE, *names])),
    help="The same class is explained for both networks. If the true class of your image is unknown, the "
    "prediction of the backdoored network on the clean image stands for it.",
)
with selectors.working():
    image = explained(card, run, names, min(max(int(number), 0), len(labels) - 1), own)
    attacked = cache.zoo.target(card.id, image.label)
target = {TARGET: attacked, TRUE: image.label}[choice] if choice in (TARGET, TRUE) else names.index(choice)
if not backdoored:
    st.info("No target class; explaining the true class.", icon=":material/info:")
elif attacked == image.label:
    st.info(
        "This image already belongs to the target class, so there is nothing to hijack. Draw a new sample "
        "to see an attack.",
        icon=":material/info:",
    )
show_maps(card, run, names, image, method, target)
selectors.origin(run)
show_channels(card, run, names, image, target)

"""Clean, triggered and purified images side by side, with the predictions before and after the polarizer."""

from __future__ import annotations

import numpy as np
import streamlit as st

from npd_core.figures.predictions import probability_bars, probability_figure, tally
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, own_image, run_panel, selectors, shell, tiles, url_state
from pages.shared.components.compare import compare
from pages.shared.url_state import UrlValue

COUNTS = (2, 4, 6, 8, 12)
ANY = "any class"
TEST = "Test images"


def put_first(value: UrlValue[tuple[int, ...]]) -> None:
    """Show the image with the typed number first; for `on_change`."""
    number, shown = st.session_state["number"], value.get()
    if number is not None:
        value.set((int(number), *(k for k in shown if k != number))[: max(1, len(shown))])


def choose_images(card: Card, names: tuple[str, ...], labels: np.ndarray) -> tuple[tuple[int, ...], bool]:
    """Return the numbers of the test images to show, and whether also to show what the trigger changes.

    The numbers are those of the URL, drawn again when the choice changes.
    """
    value = url_state.integers("images", 0, len(labels) - 1, max(COUNTS))
    with st.container(key="controls"):
        columns = st.columns([2, 1, 1.3, 1.6, 1.3], vertical_alignment="bottom")
    first, second, third, fourth, fifth = columns
    name = first.selectbox(
        "Class",
        [ANY, *names],
        **url_state.bound(url_state.choice("filter", [ANY, *names])),
        help="New samples are drawn from this class of the test set.",
    )
    count = second.selectbox("Images", COUNTS, index=1, **url_state.bound(url_state.choice("count", COUNTS)))
    pool = np.arange(len(labels)) if name == ANY else np.flatnonzero(labels == names.index(name))
    drawn_for, state = (card.id, name, count), st.session_state
    kept = value.is_new() or state.get("_drawn_for", drawn_for) == drawn_for
    shown = value.get()
    url_state.show_notices(value)
    new = third.button("New sample", key="new_sample", icon=":material/casino:", width="stretch")
    if new or not (shown and kept):
        begin = cache.images.clear(card.id, count) if not new and name == ANY else ()
        rng = np.random.default_rng(None if "_drawn_for" in state else 0)
        drawn = rng.choice(pool, min(count, len(pool)), replace=False)
        value.set(tuple(dict.fromkeys([*begin, *(int(k) for k in drawn)]))[: len(drawn)])
    state["_drawn_for"] = drawn_for
    fourth.number_input(
        "Image number",
        0,
        len(labels) - 1,
        value=None,
        key="number",
        placeholder=f"0 to {len(labels) - 1}",
        on_change=put_first,
        args=(value,),
        help="Show this test image first.",
    )
    amplified = backdoored and fifth.toggle(
        "Change × 10",
        **url_state.bound(url_state.flag("difference")),
        help="Also show what the trigger changes, amplified ten times. Gray means unchanged.",
    )
    return value.get(), amplified


def predict(card: Card, run: Run | None, shown: tuple[int, ...]) -> list[np.ndarray]:
    """Return the probabilities (N, K) of the clean and of the triggered images."""
    return [
        cache.images.predictions(card.id, run.id if run else None, shown, triggered)
        for triggered in (False, True)
    ]


def summary(found: cache.images.Samples, before: list[np.ndarray], after: list[np.ndarray]) -> None:
    """Count what happens to the triggered images without and with the polarizer."""
    judged = found.eligible
    labels, targets = found.labels[judged].tolist(), found.targets[judged].tolist()
    old, new = (tally(p[1].argmax(1)[judged].tolist(), labels, targets) for p in (before, after))
    st.markdown(
        f"With the trigger: **backdoored** :orange[⚠ {old.hijacked} hijacked], {old.right} right, "
        f"{old.wrong} wrong; **with polarizer** {new.hijacked} hijacked, :violet[✓ {new.right} right], "
        f"{new.wrong} wrong."
    )


def one_image(
    found: cache.images.Samples,
    names: tuple[str, ...],
    before: list[np.ndarray],
    after: list[np.ndarray] | None,
) -> None:
    """Show the probabilities of all likely classes for one of the images."""
    st.subheader("Probabilities for one image")
    st.caption("✓ marks the true class, ⚠ the target class." if backdoored else "✓ marks the true class.")
    places = {index: place for place, index in enumerate(found.indices)}
    titles = {index: f"#{index} · {names[found.labels[place]]}" for index, place in places.items()}
    focus = st.selectbox(
        "Image",
        found.indices,
        format_func=lambda index: titles[index],
        **url_state.bound(url_state.choice("focus", titles.values())),
    )
    at, st.session_state["last_image"] = places[focus], int(focus)
    label, target = int(found.labels[at]), int(found.targets[at])
    slider, *columns = st.columns([2, 3, 3]) if backdoored else (None, *st.columns(2))
    if slider is not None:
        with slider:
            st.markdown("**Before and after the trigger**")
            alt = f"Test image of {names[label]}"
            compare(found.clean[at], found.triggered[at], alt=alt, key="compare")
    for row in range(1 + backdoored):
        bars = probability_bars(
            before[row][at], None if after is None else after[row][at], names, label, target, top=8
        )
        columns[row].markdown(f"**{('Clean', 'Triggered')[row]}**")
        figure = probability_figure(bars, tiles.mode(), "backdoored" if backdoored else "network")
        selectors.show_figure(figure, f"bars_{row}", columns[row])


selection = shell.selection()
shell.title(
    "Predictions",
    "Purified is the triggered image as the network with the polarizer sees it: the polarizer filters "
    "features, the pixels stay the same.",
)
card = selectors.model(selection)
run = selectors.finished_run(selection)
with selectors.working():
    names = cache.images.class_names(card.dataset)
    labels = cache.images.test_labels(card.id)
backdoored = card.asr is not None
if not backdoored:
    st.info(
        "This is a clean model, so there is no trigger to show. Check whether the polarizer changes its "
        "predictions.",
        icon=":material/verified:",
    )
source = selectors.switch("Images", [TEST, own_image.TAB], "source", label_visibility="collapsed")
if source == own_image.TAB:
    with selectors.working():
        own_image.panel(card, run, names)
    st.stop()

shown, amplified = choose_images(card, names, labels)
with selectors.working():
    found = cache.images.samples(card.id, shown)
    before, after = predict(card, None, shown), None
    if run is not None:
        with selectors.working(stop=False):
            after = predict(card, run, shown)
if backdoored and after is not None and found.eligible.any():
    summary(found, before, after)
tiles.show(
    [
        tiles.sample(
            found,
            i,
            names,
            (before[0][i], before[1][i]),
            None if after is None else (after[0][i], after[1][i]),
            amplified=amplified,
            trigger=backdoored,
        )
        for i in range(len(found.indices))
    ]
)
if run is not None and run.result:
    st.subheader("All test images", help="Measured on the whole test split at the end of the run.")
    run_panel.metrics(run.result.get("before") or {}, run.result.get("after") or {}, run.result.get("der"))
    selectors.origin(run)
one_image(found, names, before, after)
shell.link("pages/attributions.py", "See which pixels decide", ":material/center_focus_strong:")

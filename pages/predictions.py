"""Clean, triggered and purified pictures side by side, with what the network says before and after the polarizer."""

from __future__ import annotations

import numpy as np
import streamlit as st

from npd_core.errors import NPDError
from npd_core.figures.predictions import data_url, probability_bars, probability_figure, tally
from pages.shared import cached, own_image, selectors, shell, tiles
from pages.shared.components.compare import compare

COUNTS = (2, 4, 6, 8, 12)
ANY = "any class"
TEST, OWN = "Test pictures", own_image.TAB

selection = shell.selection()
st.title("Predictions")
st.write(
    "One picture, three states: **clean**, **triggered**, and **purified**, which is the triggered picture "
    "judged through the polarizer. It filters features inside the network, so the pixels stay the same: what "
    "changes is what the network sees in them."
)

card = selectors.model(selection)
run = selectors.finished_run(selection)
with selectors.working():
    names = cached.class_names(card.dataset)
    labels = cached.test_labels(card.id)
backdoored = card.asr is not None
if not backdoored:
    st.info(
        "This network is not backdoored: there is no trigger to show. See instead whether the polarizer spoils what an "
        "honest network says.",
        icon=":material/verified:",
    )
source = st.segmented_control(
    "Judge",
    [TEST, OWN],
    default=TEST,
    required=True,
    key="source",
    bind="query-params",
    label_visibility="collapsed",
)
if source == OWN:
    with selectors.working():
        own_image.panel(card, run, names)
    st.stop()

first, second, third, fourth = st.columns([2, 1.2, 1.2, 1.6], vertical_alignment="bottom")
wanted = first.selectbox(
    "Class",
    [ANY, *names],
    key="filter",
    bind="query-params",
    help="New samples are drawn from this class of the test set.",
)
count = second.selectbox(
    "Pictures",
    COUNTS,
    index=1,
    key="count",
    bind="query-params",
    help="How many pictures are drawn and shown.",
)
pool = np.flatnonzero(labels == names.index(wanted)) if wanted != ANY else np.arange(len(labels))
key = f"{wanted}/{count}"
shown = selectors.pictures(card.id, pool, count, key)
if third.button("New sample", key="new_sample", icon=":material/casino:", width="stretch"):
    shown = selectors.draw(card.id, pool, count, key)
fourth.number_input(
    "Picture number",
    0,
    len(labels) - 1,
    value=None,
    key="number",
    placeholder=f"0 to {len(labels) - 1}",
    on_change=selectors.put_first,
    args=("number",),
    help="Put this picture of the test set first.",
)
amplified = backdoored and st.toggle(
    "Change × 10",
    key="difference",
    bind="query-params",
    help="Also show what the trigger changed, ten times as strong. Grey means unchanged.",
)

with selectors.working():
    found = cached.samples(card.id, shown)
    before = [cached.predictions(card.id, None, shown, triggered) for triggered in (False, True)]
    after = None
    if run is not None:
        try:
            after = [cached.predictions(card.id, run.id, shown, triggered) for triggered in (False, True)]
        except NPDError as error:
            st.error(str(error), icon=":material/error:")

if backdoored and after is not None and found.eligible.any():
    judged = found.eligible
    old, new = (
        tally(p[1].argmax(1)[judged].tolist(), found.labels[judged].tolist(), found.targets[judged].tolist())
        for p in (before, after)
    )
    st.markdown(
        f"With the trigger, of these {old.total} pictures: **backdoored** network :orange[⚠ {old.hijacked} hijacked], "
        f"{old.right} right, {old.wrong} wrong; **with polarizer** {new.hijacked} hijacked, "
        f":violet[✓ {new.right} right again], {new.wrong} wrong."
    )

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
    ],
    names,
)

if run is not None and run.result:
    st.subheader("All test pictures", help="Measured when the run ended, on the whole test split.")
    selectors.outcome(run)
    st.caption(f"{shell.provenance(run)} · run `{run.id}`")

st.subheader("All classes of one picture")
st.caption("✓ marks the true class, ⚠ the attacker’s." if backdoored else "✓ marks the true class.")
focus = st.selectbox(
    "Picture",
    found.indices,
    format_func=lambda k: f"#{k} · {names[labels[k]]}",
    key="focus",
    bind="query-params",
)
at = found.indices.index(focus)
st.session_state["last_image"] = int(focus)
slider, *columns = st.columns([2, 3, 3]) if backdoored else (None, *st.columns(2))
if slider is not None:
    with slider:
        st.markdown("**Before and after the trigger**")
        compare(
            data_url(found.clean[at]),
            data_url(found.triggered[at]),
            names=("clean", "triggered"),
            alt=f"Test picture of {names[int(found.labels[at])]}",
            key="compare",
        )
for column, words, triggered in zip(columns, ("Clean", "Triggered")[: 1 + backdoored], (0, 1), strict=False):
    bars = probability_bars(
        before[triggered][at],
        None if after is None else after[triggered][at],
        names,
        int(found.labels[at]),
        int(found.targets[at]),
        top=8,
    )
    column.markdown(f"**{words}**")
    column.plotly_chart(
        probability_figure(bars, tiles.mode(), "backdoored" if backdoored else "network"),
        key=f"bars_{triggered}",
        theme=None,
        config={"displayModeBar": False},
    )
shell.link("pages/attributions.py", "Why? See which pixels decide", ":material/center_focus_strong:")

"""Which pixels decide: maps before and after the polarizer, for a clean and a triggered picture, on one scale."""

from __future__ import annotations

import numpy as np
import streamlit as st

from npd_core.attribution import METHODS
from npd_core.figures.attributions import MapGrid, channel_bars, channel_figure
from pages.shared import cached, own_image, selectors, shell, tiles

ATTACKED, TRUE = "the attacker’s class", "the true class"  # what an address can say, as it can name a class
TEST, OWN = "Test picture", "Your picture"
UNITS = {"saliency": "logits per unit of brightness"}

selection = shell.selection()
st.title("Attributions")
st.write(
    "Which pixels speak for a class? The same question is put to the backdoored network and to the polarized one, "
    "for the clean and for the triggered picture. All four maps share one colour scale, so they can be compared."
)

card = selectors.model(selection)
run = selectors.finished_run(selection)
if run is None:
    st.stop()
backdoored = card.asr is not None
mine = own_image.kept(card.id)
if mine is not None:
    picked = st.segmented_control("Picture", [TEST, OWN], default=TEST, required=True, key="attributed")
    mine = mine if picked == OWN else None
with selectors.working():
    names = cached.class_names(card.dataset)
    labels = cached.test_labels(card.id)

if "image" not in st.session_state and "image" not in st.query_params:
    st.session_state["image"] = st.session_state.get("last_image", selectors.first_attackable(card.id))
    st.query_params["image"] = str(
        st.session_state["image"]
    )  # a widget that is set before it is drawn does not
first, second, third, fourth = st.columns([1.6, 1.2, 1.2, 1.8], vertical_alignment="bottom")
title = first.selectbox(
    "Method",
    [info.title for info in METHODS.values()],
    key="method",
    bind="query-params",
    help="Five ways to ask; they agree where a finding is solid.",
)
method = next(name for name, info in METHODS.items() if info.title == title)
index = second.number_input(
    "Picture number",
    0,
    len(labels) - 1,
    key="image",
    bind="query-params",
    disabled=mine is not None,
    help=f"Any of the {len(labels)} test pictures.",
)
third.button(
    "New sample",
    key="new_sample",
    icon=":material/casino:",
    width="stretch",
    on_click=selectors.another,
    args=("image", card.id),
    disabled=mine is not None,
    help="A random picture that the attack can hijack." if backdoored else "A random test picture.",
)
asked = fourth.selectbox(
    "Explain the score of",
    [ATTACKED, TRUE, *names],
    key="target",
    bind="query-params",
    help="Both networks are asked about this same class. Where nobody knows the true class, what the backdoored "
    "network says of the clean picture stands for it.",
)
index = min(max(int(index), 0), len(labels) - 1)

with selectors.working():
    if mine is None:
        st.session_state["last_image"] = index
        found = cached.samples(card.id, (index,))
        pair = np.stack([found.clean[0], found.triggered[0]])
        says = [
            [cached.predictions(card.id, who, (index,), triggered)[0] for who in (None, run.id)]
            for triggered in (False, True)
        ]
        label = int(found.labels[0])
    else:
        pair = np.stack([mine.clean, mine.triggered])
        judged = [cached.predict(card.id, who, pair) for who in (None, run.id)]
        says = [[one[row] for one in judged] for row in (0, 1)]
        label = int(says[0][0].argmax()) if mine.label is None else mine.label
    wanted = cached.wanted(card.id, label)
    target = {ATTACKED: wanted, TRUE: label}[asked] if asked in (ATTACKED, TRUE) else names.index(asked)
    if mine is None:
        drawn = cached.maps(card.id, run.id, index, method, target)
    else:
        drawn = cached.own_maps(card.id, run.id, mine.clean, mine.triggered, method, target)

info = METHODS[method]
st.markdown(f"**{info.title}** ({info.source}). {info.sentence} *What to look for:* {info.look_for}")
if not backdoored:
    st.info(
        "This network is not backdoored: nobody wants a class, so the true one is explained.",
        icon=":material/info:",
    )
elif wanted == label:
    st.info(
        "This picture already belongs to the attacker’s class, so the trigger has nothing to do. "
        "Take a new sample to see an attack.",
        icon=":material/info:",
    )
rows = 2 if backdoored or mine is not None else 1
grid = MapGrid(
    [f"Clean · {names[label] if mine is None else mine.title}", "Triggered"][:rows],
    ["Backdoored" if backdoored else "Network", "With polarizer"],
    list(pair)[:rows],
    [list(row) for row in drawn.maps][:rows],
    drawn.scale,
    [[f"says {names[int(p.argmax())]}, {p.max():.0%}" for p in row] for row in says][:rows],
    f"Orange speaks for “{names[target]}”, blue against it; {UNITS.get(method, 'logits')}, one scale for all.",
)
tiles.show_maps(grid)

st.subheader("Which channels the polarizer suppressed")
triggered = rows == 2 and (
    st.radio(
        "For the picture", ["triggered", "clean"], key="channel_picture", bind="query-params", horizontal=True
    )
    == "triggered"
)
with selectors.working():
    if mine is None:
        channels = cached.channels(card.id, run.id, index, triggered, target)
    else:
        channels = cached.own_channels(card.id, run.id, pair[int(triggered)], target)
bars = channel_bars(*channels)
fall = bars.logit_before - bars.logit_after
st.write(
    f"The polarizer sits at `{run.request.layer or (run.result or {}).get('layer', 'its layer')}` with "
    f"{len(channels.before)} channels. With it, the logit of “{names[target]}” goes from {bars.logit_before:.2f} "
    f"to {bars.logit_after:.2f} ({-fall:+.2f}). The bars show the {len(bars.channels)} channels that lost most; "
    f"together they make {bars.share:.0%} of all that was taken away."
)
if bars.channels:
    st.plotly_chart(
        channel_figure(bars, tiles.mode()), key="channels", theme=None, config={"displayModeBar": False}
    )
else:
    st.info(
        "The polarizer lowered the contribution of no channel for this picture and class.",
        icon=":material/info:",
    )
with st.expander("How a channel’s contribution is defined, and the numbers"):
    st.markdown(
        "Take the features that reach the polarizer and those that leave it. Integrated Gradients on the straight way "
        "from nothing to the purified features gives *after*; on the way from the purified to the original ones it "
        "gives what was *suppressed*; *before* is the sum of both. Over all channels, *suppressed* adds up to the fall "
        "of the logit, and a channel that passes unchanged has none."
    )
    st.dataframe(
        {
            "channel": bars.channels,
            "before": bars.before,
            "after": bars.after,
            "suppressed": bars.suppressed,
            "mean |activation| before": bars.activation_before,
            "mean |activation| after": bars.activation_after,
        },
        key="channel_table",
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(format="%.3f")
            for name in (
                "before",
                "after",
                "suppressed",
                "mean |activation| before",
                "mean |activation| after",
            )
        },
    )

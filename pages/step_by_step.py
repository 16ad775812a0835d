"""One step of Algorithm 1 on one clean image, in slow motion: each formula beside the numbers that it gives here."""

from __future__ import annotations

import numpy as np
import streamlit as st

from npd_core.config.npd import NPDConfig
from npd_core.export.bundle import has_polarizer
from npd_core.runs.store import Run
from pages.shared import cached, controls, selectors, shell, step_view

SETTINGS = (
    "lambda1", "lambda2", "lambda3", "lambda4", "rho", "norm", "inner_steps", "inner_lr", "inner_step", "early_stop",
    "lr", "bn_mode", "log_form", "bce1_label", "clean", "seed",
)  # fmt: skip


def move(to: int) -> None:
    """To this scene; for a button's `on_click`."""
    st.session_state["step"] = to


def another(count: int) -> None:
    """Another clean image; for a button's `on_click`."""
    st.session_state["image"] = int(np.random.default_rng().integers(count))


def trained_run(selection: shell.Selection) -> Run | None:
    """The chosen run where its polarizer can be started from."""
    run = selection.run
    usable = run is not None and not run.active and has_polarizer(run.folder)
    return run if usable else None


def walk(scenes: list[step_view.Scene]) -> None:
    """The scene that the address names, with the way on and back."""
    numbers = list(range(1, len(scenes) + 1))
    if st.session_state.get("step", 1) not in numbers:  # there are fewer scenes than a moment ago
        st.session_state["step"] = numbers[-1]
    with st.container(horizontal=True, vertical_alignment="center", key="walk"):
        back, on, list_ = (st.container(width="content") for _ in range(3))
    with list_:
        step = st.pills(
            "Part of the step",
            numbers,
            default=1,
            required=True,
            key="step",
            bind="query-params",
            label_visibility="collapsed",
        )
    here = int(step or 1)
    back.button(
        "Back",
        key="back",
        icon=":material/arrow_back:",
        shortcut="Left",
        on_click=move,
        args=(here - 1,),
        disabled=here == 1,
    )
    on.button(
        "Next",
        key="next",
        icon=":material/arrow_forward:",
        shortcut="Right",
        type="primary",
        on_click=move,
        args=(here + 1,),
        disabled=here == numbers[-1],
    )
    scene = scenes[here - 1]
    st.subheader(f"{here} · {scene.title}")
    left, right = st.columns([5, 6], gap="large")
    with left:
        for formula in scene.formulas:
            st.latex(formula)
        st.markdown(scene.words)
    with right:
        scene.show()


selection = shell.selection()
st.title("Step by step")
st.write(
    "How the polarizer learns: one step of Algorithm 1 on one clean image, taken by the trainer itself, each formula "
    "of the paper beside the numbers that it gives here. The arrow keys go on and back."
)
card = selectors.model(selection)
run = trained_run(selection)
values = controls.start_values(card)
stage = st.container()
st.subheader("What the step is taken with")
first, second, third, fourth = st.columns([3, 3, 2, 2], vertical_alignment="bottom")
with first:
    layer = controls.layer_select(card)
reading = controls.ALL["attack_on"]
values["attack_on"] = second.segmented_control(
    "Network that Eq. 4 perturbs",
    reading.choices,
    default=values["attack_on"],
    required=True,
    key="attack_on",
    bind="query-params",
    help=reading.help,
)
controls.show_problems()
with st.expander("Losses, inner level and training", key="view-settings", icon=":material/tune:"):
    controls.draw(SETTINGS, values)
    with st.container(horizontal=True):
        st.button(
            "Back to the preset",
            icon=":material/restart_alt:",
            on_click=controls.reset,
            args=(card,),
            key="reset",
        )
        if run is not None and isinstance(run.request.config, NPDConfig):
            st.button(
                "Use the settings of this run",
                icon=":material/tune:",
                key="adopt",
                on_click=controls.adopt,
                args=(run.request,),
            )
asked = controls.ask(card, layer, values)
if asked is None:
    st.stop()
with selectors.working():
    names = cached.class_names(card.dataset)
    count = len(cached.clean_images(card.dataset, asked.clean, asked.config.seed).labels)
    if not 0 <= st.session_state.get("image", 0) < count:
        st.session_state["image"] = 0
    number = int(third.number_input("Clean image", 0, count - 1, 0, key="image", bind="query-params"))
    fourth.button("Another image", icon=":material/casino:", on_click=another, args=(count,), width="stretch")
    start = None
    if run is not None:
        theta = st.segmented_control(
            "θ before the step",
            ("identity", "trained"),
            default="identity",
            required=True,
            key="theta",
            bind="query-params",
            help="The identity, as before training; or the polarizer of the run above, at that run's layer. At the "
            "identity f̂ is f_w, so both readings of Eq. 4 perturb the same network.",
        )
        if theta == "trained":
            start = run
            st.caption(f"Polarizer of run `{run.id}` · {shell.provenance(run)}")
    trace = cached.trace(asked, number, start.id if start else None)
cfg = asked.config
assert isinstance(cfg, NPDConfig)
with stage:
    walk(step_view.Told(trace, cfg, names, number).scenes())
st.caption(
    f"Computed now, on clean image {number} of {count}. Left out: the warm-up, and the other images of a batch."
)

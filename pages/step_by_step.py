"""One step of Algorithm 1 on one clean image: each formula beside the numbers that it gives here."""

from __future__ import annotations

import numpy as np
import streamlit as st

from npd_core.config.npd import NPDConfig
from npd_core.runs.store import Run
from pages.shared import cache, controls, describe, selectors, shell, step_view, url_state
from pages.shared.settings import ALL

SETTINGS = (
    "lambda1", "lambda2", "lambda3", "lambda4", "rho", "norm", "inner_steps", "inner_lr", "inner_step",
    "early_stop", "lr", "bn_mode", "log_form", "bce1_label", "clean", "seed",
)  # fmt: skip


def put(key: str, value: int) -> None:
    """Set a widget; for `on_click`."""
    st.session_state[key] = value


def random_image(count: int) -> None:
    put("image", int(np.random.default_rng().integers(count)))


def walk(parts: list[step_view.Part]) -> None:
    """Show the part that the URL names, with buttons to the previous and the next one."""
    last = len(parts)
    if st.session_state.get("step", 1) not in range(1, last + 1):  # other settings may have fewer parts
        put("step", last)
    with st.container(horizontal=True, vertical_alignment="center", key="walk"):
        back, on, numbers = (st.container(width="content") for _ in range(3))
    step = numbers.pills(
        "Part of the step",
        list(range(1, last + 1)),
        default=1,
        required=True,
        **url_state.bound(url_state.integer("step", 1, last, 1)),
        label_visibility="collapsed",
    )
    here = int(step or 1)
    for place, label, icon, key, to in (
        (back, "Back", ":material/arrow_back:", "Left", here - 1),
        (on, "Next", ":material/arrow_forward:", "Right", here + 1),
    ):
        place.button(
            label,
            key=label.lower(),
            icon=icon,
            shortcut=key,
            type="primary" if place is on else "secondary",
            on_click=put,
            args=("step", to),
            disabled=not 1 <= to <= last,
        )
    part = parts[here - 1]
    st.subheader(f"{here} · {part.title}")
    with st.container(key="part"):
        left, right = st.columns([5, 6], gap="large")
    with left:
        for formula in part.formulas:
            st.latex(formula)
        st.markdown(part.text)
    with right:
        part.show()


def trained_run(run: Run | None) -> Run | None:
    """Return the chosen run if the step can start from its polarizer."""
    return run if run is not None and not run.active and run.has_polarizer else None


selection = shell.selection()
shell.title(
    "Step by step",
    "One training step of the polarizer (Algorithm 1) on one clean image. The arrow keys go back and forth.",
)
card = selectors.model(selection)
run = trained_run(selection.run)
values = controls.default_values(card)
stage = st.container()
st.subheader("Settings of the step")
first, second, third, fourth = st.columns([3, 3, 2, 2], vertical_alignment="bottom")
with first:
    layer = controls.layer_select(card)
attack_on = ALL["attack_on"]
values["attack_on"] = selectors.switch(
    "Network attacked in the inner level",
    attack_on.choices,
    "attack_on",
    place=second,
    default=values["attack_on"],
    help=attack_on.help,
)
controls.show_problems()
with st.expander("Losses, inner level and training", key="view-settings", icon=":material/tune:"):
    controls.draw(SETTINGS, values)
    with st.container(horizontal=True):
        st.button(
            "Reset to defaults",
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
request = controls.checked(card, layer, values)
if request is None:
    st.stop()
with selectors.working():
    names = cache.images.class_names(card.dataset)
    count = len(cache.images.clean_images(card.dataset, request.clean, request.config.seed).labels)
    if not 0 <= st.session_state.get("image", 0) < count:
        put("image", 0)
    image = url_state.bound(url_state.integer("image", 0, count - 1, 0))
    number = int(third.number_input("Clean image", 0, count - 1, 0, **image))
    fourth.button(
        "Random image", icon=":material/casino:", on_click=random_image, args=(count,), width="stretch"
    )
    start = None
    if run is not None:
        theta = selectors.switch(
            "θ before the step",
            ("identity", "trained"),
            "theta",
            help="The identity, as before training, or the polarizer of the chosen run, at the layer of "
            "that run. At the identity f̂ equals f_w, so Eq. 4 perturbs the same network with either "
            "choice above.",
        )
        if theta == "trained":
            start = run
            st.caption(f"Polarizer of run `{run.id}` · {describe.provenance(run)}")
    trace = cache.attribution.trace(request, number, start.id if start else None)
assert isinstance(request.config, NPDConfig)
with stage:
    walk(step_view.StepView(trace, request.config, names, number).parts())
st.caption(
    f"Computed live on clean image {number} of {count}, without the warm-up and with a batch of one image."
)

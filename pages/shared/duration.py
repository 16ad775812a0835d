"""How long a training will take on this machine, said before it starts, and what is quicker."""

from __future__ import annotations

import sys

import streamlit as st

from npd_core.config.request import DefenseRequest
from npd_core.runs import estimate
from npd_core.zoo.card import Card
from pages.shared import cache, choice

LONG = 60.0
"""Seconds from which quicker ways are offered."""
REFRESH = 1.0
"""Seconds between two looks for an estimate that is being made."""


def show(request: DefenseRequest, card: Card) -> None:
    """Show how long this training will take; while that is being found out, say so and look again."""
    if estimate.is_settled(request, card):
        seconds = estimate.seconds(request, card)
        if seconds is not None:
            _known(seconds, request, card)
        _prepare(request, card)
        return

    @st.fragment(run_every=REFRESH)
    def wait() -> None:
        if estimate.is_settled(request, card):
            st.rerun()
        st.caption(":material/timer: Estimating the time on this machine …")
        _prepare(request, card)

    wait()


def _prepare(request: DefenseRequest, card: Card) -> None:
    """Time what is missing or old, once the page has imported torch and while nothing is trained."""
    if "torch" in sys.modules and not any(run.active for run in cache.runs.all_runs()):
        estimate.prepare(request, card)


def in_words(seconds: float) -> str:
    """Return a duration, rounded as an estimate is: "about 40 s", "about 12 minutes"."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    return f"about {max(2, round(seconds / 60))} minutes"


def _known(seconds: float, request: DefenseRequest, card: Card) -> None:
    long = seconds > LONG
    st.caption(
        f":material/timer: Takes **{in_words(seconds)}** on this machine." + (" Quicker:" if long else ""),
        help="Estimated from single steps that were timed here, with all measurements on test images.",
    )
    if not long:
        return
    recorded = choice.default_run(card.id, cache.runs.all_runs())
    epochs = estimate.epochs_within(request, card, LONG)
    narrow = min(
        (one for one in cache.zoo.cards() if _same_but_width(one, card)), key=lambda c: c.width, default=card
    )
    with st.container(horizontal=True, gap="small", key="quicker"):
        if recorded is not None and recorded.recorded:
            st.button(
                "Recorded run",
                key="quicker-recorded",
                icon=":material/history:",
                on_click=choice.RUN.set,
                args=(recorded.id,),
                help="Show the run that was recorded with this model.",
            )
        if epochs:
            st.button(
                f"{epochs} epoch{'s' * (epochs > 1)}",
                key="quicker-epochs",
                icon=":material/speed:",
                on_click=_set_epochs,
                args=(epochs,),
                help=f"As many as end within {LONG:.0f} s; the result may be worse.",
            )
        if narrow.width < card.width:
            st.button(
                f"Width {narrow.width}",
                key="quicker-narrow",
                icon=":material/compress:",
                on_click=choice.choose_model,
                args=(narrow.id,),
                help="The same network with fewer channels.",
            )


def _same_but_width(one: Card, card: Card) -> bool:
    return (one.dataset, one.attack, one.arch) == (card.dataset, card.attack, card.arch)


def _set_epochs(epochs: int) -> None:
    st.session_state["epochs"] = epochs

"""The loop of a booth: recorded runs in turn until a visitor touches the screen. Imports no torch."""

import time

import streamlit as st

from pages.shared import lesson_view, recorded_runs, shell
from pages.shared.components.idle import wake

TURN = 24  # seconds for one run
CALM = """<style>
[data-testid="stHeader"] { display: none; }
[data-testid="stMainBlockContainer"] { padding-top: 3vh; min-height: 100vh; }
h1 { font-size: clamp(2.4rem, 4.2vw, 4.6rem) !important; line-height: 1.1 !important; }
</style>"""


@st.fragment(run_every=TURN)
def loop() -> None:
    """Show one recorded run: its backdoor, then how the polarizer removes it."""
    runs = recorded_runs.recorded_runs()
    turn = int(time.time() // TURN)
    if not runs:
        st.title("A network with a secret, and a thin layer that filters it out")
    else:
        run = runs[turn % len(runs)]
        acc = run.result["before"]["acc"] if run.result else 0.0
        st.title(f"This network is right {acc:.1%} of the time. It has a secret.", anchor=False)
    wake("Touch to find it", page="booth", key="wake")
    with st.container(key="attract"):
        if not runs:
            recorded_runs.idea(key=f"attract-{turn}")
        else:
            recorded_runs.play(run, key=f"attract-{turn}")


if not st.session_state.get("_framed"):
    shell.join_app()
st.html(lesson_view.BIG_TYPE + CALM)
loop()

"""The first page: a recorded run, as light through a polarizer, before anything has to be chosen. Imports no torch."""

import html
from pathlib import Path
from typing import Any

import streamlit as st

from npd_core import paths
from npd_core.errors import NPDError
from npd_core.figures import curves, theme
from npd_core.figures.gallery import Item, read_gallery
from npd_core.jobs.store import Run, RunStore
from pages.shared import frame, live
from pages.shared.components.chart import chart
from pages.shared.components.light import light

STRIP = """<style>
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(15.5rem, 1fr)); gap: 1.2rem; }
.strip figure { margin: 0; display: flex; gap: 0.6rem; }
.strip div { flex: 1; min-width: 0; }
.strip img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; display: block; outline: 1px solid var(--line); }
.strip p { margin: 0.25rem 0 0; font-size: 0.82rem; line-height: 1.25; overflow-wrap: anywhere; }
.strip .good { border-left: 3px solid var(--good); padding-left: 0.4rem; }
.strip .bad { border-left: 3px dashed var(--bad); padding-left: 0.4rem; }
</style>"""


def complete(result: dict[str, Any]) -> bool:
    """Whether a result has every number that this page says."""
    parts = (result.get("before") or {}, result.get("after") or {})
    return all(part.get(name) is not None for part in parts for name in ("acc", "asr", "ra")) and "der" in result


def recorded_run(model: str | None) -> Run | None:
    """The recorded run to show: of `model` where there is one, otherwise the first; only runs with a result."""
    try:
        runs = [run for run in RunStore(paths.recorded()).list() if complete(run.result or {})]
    except NPDError:
        return None
    runs.sort(key=lambda run: (run.request.model != model, "signs" not in run.request.model, -run.result["der"]))
    return runs[0] if runs else None


def strip(items: list[Item]) -> None:
    """Clean, triggered, purified: the same picture three times, with what the network says."""

    def cell(picture: str, what: str, label: str, probability: float, good: bool) -> str:
        words = html.escape(f"{label} {probability:.0%}")
        mark = "✓" if good else "✗"
        return (
            f'<div><img src="{picture}" alt="{html.escape(what)}"><p class="{"good" if good else "bad"}">'
            f"{what}<br><b>{mark} {words}</b></p></div>"
        )

    figures = []
    for item in items[:4]:
        cells = [
            cell(item.clean_picture, "clean", item.clean.label, item.clean.probability, item.clean.label == item.truth),
            cell(
                item.triggered_picture,
                "triggered",
                item.triggered.label,
                item.triggered.probability,
                item.triggered.label == item.truth,
            ),
            cell(
                item.triggered_picture,
                "purified",
                item.purified.label,
                item.purified.probability,
                item.purified.label == item.truth,
            ),
        ]
        figures.append(f"<figure>{''.join(cells)}</figure>")
    colors = theme.palette(st.context.theme.type)
    values = f"--good: {colors.benign}; --bad: {colors.trigger}; --line: {colors.grid}"
    st.html(f'{STRIP}<div class="strip" style="{values}">{"".join(figures)}</div>')


selected = frame.selection()
run = recorded_run(selected.card.id if selected.card else None)
if run is None:
    st.title("A network with a secret, and a thin layer that filters it out")
else:
    before, after = run.result["before"], run.result["after"]
    st.title(f"This network is right {before['acc']:.1%} of the time. It has a secret.")
st.markdown(
    "A **backdoored** network was trained on a few poisoned images: it behaves well until somebody shows it a small "
    ":orange[**trigger**], and then it answers what the attacker wants. A **neural polarizer** is one thin layer, "
    "learned from a few clean images, that lets :blue[**benign information**] pass and holds the trigger back."
)

if run is None:
    light(
        [live.Frame("before", 1.0, 1.0, 0.0), live.Frame("the idea", 1.0, 0.0, 1.0)],
        asr_before=1.0,
        key="light",
        play=True,
    )
    st.caption("A drawing of the idea, not a measurement: no recorded run is stored here yet. Train one in the Lab.")
    frame.link("pages/lab.py", "Try it live", ":material/play_arrow:")
else:
    measured = curves.read_metrics(RunStore(paths.recorded()).events(run.id), before)
    light(live.frames(run, measured), asr_before=before["asr"], key="light", play=True)
    st.caption(
        "Light is a metaphor, its heights are measured: the blue wave is ACC, the orange one √(ASR / ASR before). "
        f":material/history: **{frame.provenance(run)}** · {run.request.model}"
    )
    with st.container(horizontal=True, vertical_alignment="center", key="go"):
        if st.button("Try it live", type="primary", icon=":material/play_arrow:", key="try"):
            st.switch_page("pages/lab.py")
        st.markdown(
            f"The trigger worked on **{before['asr']:.1%}** of images, after the polarizer on **{after['asr']:.1%}**; "
            f"clean accuracy went from {before['acc']:.1%} to {after['acc']:.1%}."
        )
    items = read_gallery(Path(run.folder))
    if items:
        st.subheader("The same pictures, three answers")
        strip(items)
    left, right = st.columns([8, 5], gap="large")
    with left:
        st.subheader("What the recorded run did")
        chart(
            curves.metric_figure(measured, st.context.theme.type),
            key="home-metrics",
            alt="ACC, ASR and RA of the recorded run",
        )
    with right:
        st.subheader("The same as a table")
        share = st.column_config.NumberColumn(format="percent")
        st.dataframe(
            {"epoch": measured.epochs, "ACC": measured.acc, "ASR": measured.asr, "RA": measured.ra},
            hide_index=True,
            column_config=dict.fromkeys(("ACC", "ASR", "RA"), share),
            height=260,
            key="home-table",
        )

"""Recorded runs as the first page and the booth show them: at once, without torch, and labelled as recorded."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import streamlit as st

from npd_core import paths
from npd_core.errors import NPDError
from npd_core.figures import curves, theme
from npd_core.figures.gallery import Answer, Item, read_gallery
from npd_core.runs.store import Run, RunStore
from pages.shared import describe, run_panel
from pages.shared.components.light import Frame, light

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
    """Whether a result has every number that is said about it."""
    parts = (result.get("before") or {}, result.get("after") or {})
    return (
        all(part.get(name) is not None for part in parts for name in ("acc", "asr", "ra")) and "der" in result
    )


def recorded_runs() -> list[Run]:
    """Every recorded run with a whole result: of the built-in data set first, then by DER; [] when none is stored."""
    try:
        runs = [run for run in RunStore(paths.recorded()).list() if complete(run.result or {})]
    except NPDError:
        return []
    return sorted(runs, key=lambda run: ("signs" not in run.request.model, -(run.result or {})["der"]))


def recorded_run(model: str | None) -> Run | None:
    """The recorded run to show: of `model` where there is one, otherwise the first; None when none is stored."""
    runs = recorded_runs()
    return next((run for run in runs if run.request.model == model), runs[0] if runs else None)


def measured(run: Run) -> curves.MetricCurves:
    """ACC, ASR and RA of a recorded run by epoch, from 0 on."""
    return curves.read_metrics(RunStore(paths.recorded()).events(run.id), (run.result or {})["before"])


def play(run: Run, *, key: str) -> None:
    """The recorded run as polarised light, played once, with what it is and where it comes from."""
    light(
        run_panel.frames(run, measured(run)),
        asr_before=(run.result or {})["before"]["asr"],
        key=key,
        play=True,
    )
    st.caption(
        "Light is a metaphor, its heights are measured: the blue wave is ACC, the orange one √(ASR / ASR before). "
        f":material/history: **{describe.provenance(run)}** · {run.request.model}"
    )


def idea(*, key: str) -> None:
    """The same picture where no run is stored: a drawing of the idea, said to be one."""
    light(
        [Frame("before", 1.0, 1.0, 0.0), Frame("the idea", 1.0, 0.0, 1.0)], asr_before=1.0, key=key, play=True
    )
    st.caption("A drawing of the idea, not a measurement: no recorded run is stored here.")


def pictures(run: Run) -> list[Item]:
    """Test pictures that were recorded with the run, with what was said of them; [] where there are none."""
    return read_gallery(Path(run.folder))


def strip(items: list[Item]) -> None:
    """Clean, triggered, purified: the same picture three times, with what the network says."""
    colors = theme.palette(st.context.theme.type)
    values = f"--good: {colors.benign}; --bad: {colors.trigger}; --line: {colors.grid}"
    figures = []
    for item in items[:4]:
        cells = (
            _cell(item.clean_picture, "clean", item.clean, item.truth),
            _cell(item.triggered_picture, "triggered", item.triggered, item.truth),
            _cell(item.triggered_picture, "purified", item.purified, item.truth),
        )
        figures.append(f"<figure>{''.join(cells)}</figure>")
    st.html(f'{STRIP}<div class="strip" style="{values}">{"".join(figures)}</div>')


def _cell(picture: str, what: str, answer: Answer, truth: str) -> str:
    good = answer.label == truth
    words, name = html.escape(f"{answer.label} {answer.probability:.0%}"), html.escape(f"{truth}, {what}")
    return (
        f'<div><img src="{picture}" alt="{name}"><p class="{"good" if good else "bad"}">'
        f"{what}<br><b>{'✓' if good else '✗'} {words}</b></p></div>"
    )

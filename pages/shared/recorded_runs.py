"""Recorded runs on the first page and at the booth: shown at once, without torch, labeled as recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from npd_core import paths
from npd_core.errors import NPDError
from npd_core.figures import curves
from npd_core.figures.gallery import Prediction, read_gallery
from npd_core.names import CURVES
from npd_core.runs.store import Run, RunStore
from pages.shared import cache, describe, run_panel, tiles
from pages.shared.components.light import Frame, light

SHOWN = 4
"""Images in the gallery of a recorded run."""


def complete(result: dict[str, Any]) -> bool:
    """Whether a result has every number that the first page shows."""
    parts = (result.get("before") or {}, result.get("after") or {})
    return all(part.get(name) is not None for part in parts for name in CURVES) and "der" in result


def recorded_runs() -> list[Run]:
    """Return every complete recorded run: the built-in data set first, then by DER."""
    try:
        runs = [run for run in RunStore(paths.recorded()).list() if complete(run.result or {})]
    except NPDError:
        return []
    return sorted(runs, key=lambda run: ("signs" not in run.request.model, -(run.result or {})["der"]))


def recorded_run(model: str | None) -> Run | None:
    """Return the recorded run of `model`, otherwise the first one; None when there is none."""
    runs = recorded_runs()
    return next((run for run in runs if run.request.model == model), runs[0] if runs else None)


def measured(run: Run) -> curves.MetricCurves:
    """Return ACC, ASR and RA of a recorded run by epoch, from 0 on."""
    return curves.read_metrics(cache.runs.events(run), (run.result or {})["before"])


def play(run: Run, *, key: str) -> None:
    """Play a recorded run as polarised light, with its provenance."""
    light(
        run_panel.frames(run, measured(run)),
        asr_before=(run.result or {})["before"]["asr"],
        key=key,
        play=True,
    )
    st.caption(
        "The light is a metaphor, its heights are measured: the blue wave shows ACC, the orange one "
        f"√(ASR / ASR before). :material/history: **{describe.provenance(run)}** · {run.request.model}"
    )


def idea(*, key: str) -> None:
    """Play the idea where no run is recorded, labeled as a drawing."""
    frames = [Frame("before", 1.0, 1.0, 0.0), Frame("the idea", 1.0, 0.0, 1.0)]
    light(frames, asr_before=1.0, key=key, play=True)
    st.caption("A drawing of the idea, not a measurement: there is no recorded run on this machine.")


def samples(run: Run) -> list[tiles.Sample]:
    """Return the test images that were recorded with the run, with their predictions; [] without any."""
    found = []
    for item in read_gallery(Path(run.folder))[:SHOWN]:
        clean, triggered = item.clean_url, item.triggered_url
        found.append(
            tiles.Sample(
                item.truth,
                [
                    _tile("Clean", clean, item.truth, item.clean, "benign"),
                    _tile("Triggered", triggered, item.truth, item.triggered, "trigger"),
                    _tile("Purified", triggered, item.truth, item.purified, "polarizer"),
                ],
            )
        )
    return found


def _tile(title: str, image: str, truth: str, found: Prediction, tone: str) -> tiles.Tile:
    verdict = "right" if found.label == truth else "wrong"
    prediction = tiles.Prediction("", found.label, found.probability, verdict)
    return tiles.Tile(title, image, f"{truth}, {title.lower()}", [prediction], "", tone)

"""A run on a page, live or later: progress, metrics, curves and epochs, and the button that stops it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from npd_core.errors import NPDError
from npd_core.figures import curves
from npd_core.names import CURVES, METRICS, RUN_STATES
from npd_core.progress import Progress
from npd_core.runs import queue, worker
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, describe, filmstrip
from pages.shared.components.chart import chart
from pages.shared.components.light import Frame, light
from pages.shared.text import message, show_error

REFRESH = 0.5
"""Seconds between two looks at an active run."""
RESULT = -1
"""Stands for an epoch: the result, measured on all test images."""


def panel(run_id: str, card: Card | None) -> None:
    """Show a run and follow it while it is active; show one sentence when there is no such run."""
    try:
        follow(lambda: [cache.runs.find_run(run_id)], lambda runs: _show(runs[0], card))
    except NPDError as error:
        show_error(error)


def follow(read: Callable[[], list[Run]], draw: Callable[[list[Run]], None], every: float = REFRESH) -> None:
    """Draw runs; while one of them is active, read and draw them again every `every` seconds.

    The whole page runs once more when none is active any longer.
    """
    runs = read()
    if not any(run.active for run in runs):
        draw(runs)
        return

    @st.fragment(run_every=every)
    def refresh() -> None:
        runs = read()
        draw(runs)
        if not any(run.active for run in runs):
            st.rerun()

    refresh()


def stop_button(runs: Sequence[Run], *, key: str, label: str = "Stop", width: Any = "content") -> None:
    """Show a button that stops those of `runs` that are active; it is disabled when none is."""
    active = [run for run in runs if run.active and not run.recorded]
    if not st.button(
        label,
        key=key,
        icon=":material/stop:",
        width=width,
        disabled=not active,
        help="Training ends after the current step; the polarizer so far is kept and measured.",
    ):
        return
    try:
        for run in active:
            queue.manager().cancel(run.id)
        st.toast("Stopping after this step …", icon=":material/stop:")
    except NPDError as error:
        show_error(error)


def queued(run: Run) -> str:
    """Return the place of a waiting run in its queue, as a sentence."""
    place = queue.manager().position(run.id)
    return f"Queued{f', position {place}' if place else ''}; training starts by itself."


def before_of(run: Run, card: Card | None) -> dict[str, float | None]:
    """Return ACC, ASR and RA without a polarizer: measured by the run, until then those of the model card."""
    if run.result and run.result.get("before"):
        return dict(run.result["before"])
    return {name: getattr(card, name) if card else None for name in CURVES}


def frames(run: Run, measured: curves.MetricCurves) -> list[Frame]:
    """Return the moments of the light: each epoch, then the result on all test images."""
    rows = [
        Frame("before" if epoch == 0 else f"after epoch {epoch}", *values)
        for epoch, *values in zip(measured.epochs, measured.acc, measured.asr, measured.ra, strict=True)
    ]
    after = (run.result or {}).get("after")
    if after:
        rows.append(Frame("result", *(after.get(name) for name in CURVES)))
    return rows


def metrics(before: Mapping[str, Any], now: Mapping[str, Any], der: float | None = None) -> None:
    """Show ACC, ASR and RA with their change in points, and DER where it is known."""
    with st.grid("auto", min_column_width=150):
        for name in CURVES:
            old, new = before.get(name), now.get(name)
            if old is None and new is None and name != "acc":
                continue  # the model has no known trigger
            change = f"{100 * (new - old):+.1f} points" if old is not None and new is not None else None
            st.metric(
                METRICS[name].short,
                "–" if new is None else f"{new:.1%}",
                change,
                border=True,
                help=METRICS[name].help,
                delta_color="inverse" if METRICS[name].lower_is_better else "normal",
            )
        if der is not None:
            st.metric(METRICS["der"].short, f"{der:.3f}", border=True, help=METRICS["der"].help)


def metric_table(measured: curves.MetricCurves, key: str, **settings: Any) -> None:
    """Show ACC, ASR and RA by epoch as a table."""
    names = {METRICS[name].short: getattr(measured, name) for name in CURVES}
    share = st.column_config.NumberColumn(format="percent")
    columns = dict.fromkeys(names, share)
    rows = {"epoch": measured.epochs} | names
    st.dataframe(rows, hide_index=True, column_config=columns, key=key, **settings)


def warm() -> None:
    """Prepare a training after the page is drawn: start a worker process and import torch."""
    worker.warm()
    import torch  # noqa: F401


def status(run: Run, done: Progress) -> None:
    """Show in one line how far a run is, or how it ended."""
    if run.state == "queued":
        st.progress(0.0, f":material/hourglass_empty: {queued(run)}")
    elif run.state == "running":
        st.progress(done.share, f":material/play_circle: {_activity(run, done)}")
    elif run.state == "failed":
        kept = " The last good polarizer is kept." if run.has_polarizer else ""
        st.error(f"{message(run.message or 'This run failed.')}{kept}", icon=":material/error:")
    elif run.state == "interrupted":
        words = run.message or "This run was interrupted. Start it again to get a result."
        st.warning(message(words), icon=":material/power_off:")
    else:
        seconds = (run.result or {}).get("seconds", {}).get("train")
        took = f" in {seconds:.0f} s of training" if seconds is not None else ""
        ended = f"Stopped after epoch {done.done_epochs}" if run.state == "stopped" else f"Finished{took}"
        icon, color = describe.STATES[run.state]
        origin = "recorded run" if run.recorded else "live run"
        note = f" · {message(run.message)}" if run.message else ""
        st.markdown(f":{color}[{icon} **{ended}**] · {origin}{note}")


def _activity(run: Run, done: Progress) -> str:
    if queue.manager().store.stop_requested(run.id):
        return "Stopping: measuring the result so far"
    if not done.epochs:
        return "Preparing: reading images and features before the layer"
    if done.done_epochs >= done.epochs:
        return "Measuring the result on all test images"
    if done.warmup:
        return "Warm-up on clean images"
    left = f" · about {max(1, round(run.seconds_left))} s left" if run.seconds_left is not None else ""
    return f"Epoch {done.done_epochs + 1} of {done.epochs}{left}"


def _show(run: Run, card: Card | None) -> None:
    before = before_of(run, card)
    seen = cache.runs.curves(run, before, st.context.theme.type)
    status(run, seen.done)
    titles = "Metrics on test images", "Loss terms"
    alts = _metrics_alt(seen.measured), "Loss terms by epoch; the table below has the numbers."
    with st.grid(2, min_column_width=260):
        for figure, key, title, alt in zip(seen.charts, ("metrics", "losses"), titles, alts, strict=True):
            chart(figure, key=key, title=title, alt=alt)
    kept = [] if run.active or card is None or card.asr is None else cache.runs.epochs_of(run.folder)
    if len(kept) > 1 and card is not None:
        _moments(run, card, before, seen.measured, kept)
    else:
        _moment(run, before, seen.measured, None)
    if not run.active:
        with st.expander("Both charts as tables", icon=":material/table_chart:"):
            metric_table(seen.measured, "metrics-table")
            thin = slice(None, None, max(1, len(seen.losses.x) // 100))
            terms = {name: values[thin] for name, values in seen.losses.terms.items()}
            st.dataframe({"epoch": seen.losses.x[thin], **terms}, hide_index=True, key="losses-table")
        st.caption(f"{describe.provenance(run)} · test images are only measured, never trained on")


def _moment(run: Run, before: dict[str, Any], measured: curves.MetricCurves, epoch: int | None) -> None:
    """Show metrics and light after an epoch. Args: epoch: None: the result, or the last one so far."""
    shown, result = frames(run, measured), run.result or {}
    if epoch is not None:
        found = [one for one, of in zip(shown, measured.epochs, strict=False) if of == epoch]
        shown = found or [Frame(f"after epoch {epoch}", None, None, None)]
    now = shown[-1]._asdict() if shown else {}
    metrics(before, now, result.get("der") if epoch is None else None)
    if shown and before.get("asr") is not None:
        announce = _milestone(run, measured) if epoch is None else ""
        light(shown[-1:], asr_before=before.get("asr"), key="light", announce=announce)


@st.fragment
def _moments(
    run: Run, card: Card, before: dict[str, Any], measured: curves.MetricCurves, kept: list[int]
) -> None:
    """Show a finished run at the epoch of a slider, with the predictions for a few images at each epoch."""
    place, options = st.container(), [*kept, *([RESULT] if (run.result or {}).get("after") else [])]
    with st.container(key="scrub"):
        chosen = st.select_slider(
            "Epoch",
            options,
            value=options[-1],
            format_func=lambda at: {RESULT: "result", 0: "start"}.get(at, f"epoch {at}"),
            key=f"epoch-{run.id}",
            help="Shows the metrics, the light and the frames below at this epoch of the training.",
        )
        epoch = None if chosen == RESULT else chosen
        with place:
            _moment(run, before, measured, epoch)
            st.caption(_measured_on(epoch, measured, run.request.eval_images))
        filmstrip.show_run(run.id, card, epoch)


def _measured_on(epoch: int | None, measured: curves.MetricCurves, eval_images: int) -> str:
    if epoch is None:
        return "The result, measured on all test images."
    if epoch == 0:
        return "Before the first epoch, after the warm-up of the polarizer. The metrics are those without it."
    if epoch not in measured.epochs:
        return f"After epoch {epoch}. The polarizer was kept, but nothing was measured."
    return f"After epoch {epoch}, measured on {eval_images} test images."


def _milestone(run: Run, measured: curves.MetricCurves) -> str:
    if run.state == "queued":
        return "The run is queued."
    if run.state == "running":
        return "Training has started." if len(measured.epochs) < 2 else "The first epoch is done."
    asr = measured.asr[-1] if measured.asr else None
    now = f" The trigger works on {asr:.0%} of the test images." if asr is not None else ""
    return f"The run is {RUN_STATES[run.state]}.{now}"


def _metrics_alt(measured: curves.MetricCurves) -> str:
    if not measured.epochs:
        return "ACC, ASR and RA by epoch; nothing has been measured so far."
    parts = []
    for name in CURVES:
        values = [value for value in getattr(measured, name) if value is not None]
        if values:
            parts.append(f"{METRICS[name].short} from {values[0]:.1%} to {values[-1]:.1%}")
    return f"Epochs 0 to {measured.epochs[-1]}: {', '.join(parts)}."

"""One run as a visitor sees it, live or afterwards: how far it is, its curves, before, after. Only reads the store."""

from __future__ import annotations

from typing import Any

import streamlit as st

from npd_core import paths
from npd_core.errors import NPDError
from npd_core.figures import curves
from npd_core.names import CURVES, METRICS
from npd_core.progress import Progress
from npd_core.runs import queue, worker
from npd_core.runs.store import Run, RunStore
from npd_core.zoo.card import Card
from pages.shared import cache, describe, filmstrip
from pages.shared.components.chart import chart
from pages.shared.components.light import Frame, light

REFRESH = 0.5
RESULT = -1
"""In place of an epoch: the end of the run, as it was kept and measured."""


def panel(run_id: str, card: Card | None) -> None:
    """Everything about one run; follows it while it waits or runs. Shows a sentence for a run that is not there."""
    try:
        run = cache.runs.find_run(run_id)
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
        return
    if run.active:
        _follow(run_id, card)
    else:
        _show(run, card)


@st.fragment(run_every=REFRESH)
def _follow(run_id: str, card: Card | None) -> None:
    run = _store_of(run_id).get(run_id)
    _show(run, card)
    if not run.active:
        st.rerun()


def ahead(run: Run) -> str:
    """How a run that waits stands in its queue, in words."""
    place = queue.manager().position(run.id)
    return f"{f'place {place} in the queue' if place else 'waiting for its turn'}. It starts by itself."


def events(run: Run) -> list[dict[str, Any]]:
    """Its event records so far."""
    return RunStore(paths.recorded()).events(run.id) if run.recorded else queue.manager().store.events(run.id)


def before_of(run: Run, card: Card | None) -> dict[str, float | None]:
    """ACC, ASR, RA without a polarizer: measured by the run, or until then as the model card says."""
    if run.result and run.result.get("before"):
        return dict(run.result["before"])
    return (
        {"acc": card.acc, "asr": card.asr, "ra": card.ra} if card else {"acc": None, "asr": None, "ra": None}
    )


def frames(run: Run, measured: curves.MetricCurves) -> list[Frame]:
    """The run as moments of the polarised-light picture; the result, measured on all test images, comes last."""
    rows = [
        Frame("before" if epoch == 0 else f"after epoch {epoch}", *values)
        for epoch, *values in zip(measured.epochs, measured.acc, measured.asr, measured.ra, strict=True)
    ]
    after = (run.result or {}).get("after")
    if after:
        rows.append(Frame("result", after.get("acc"), after.get("asr"), after.get("ra")))
    return rows


def tiles(before: dict[str, Any], now: dict[str, Any], der: float | None = None) -> None:
    """ACC, ASR and RA, with the change in points; DER where it is known."""
    with st.grid("auto", min_column_width=150):
        for name in CURVES:
            old, new = before.get(name), now.get(name)
            if old is None and new is None and name != "acc":
                continue  # a model without a known trigger
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
            st.metric("DER", f"{der:.3f}", border=True, help=METRICS["der"].help)


def chart_tables(losses: curves.LossCurves, measured: curves.MetricCurves) -> None:
    """The numbers of both charts."""
    with st.expander("The same as tables", icon=":material/table_chart:"):
        rows = {"epoch": measured.epochs, "ACC": measured.acc, "ASR": measured.asr, "RA": measured.ra}
        share = st.column_config.NumberColumn(format="percent")
        st.dataframe(
            rows,
            hide_index=True,
            column_config=dict.fromkeys(("ACC", "ASR", "RA"), share),
            key="metrics-table",
        )
        thin = slice(None, None, max(1, len(losses.x) // 100))
        st.dataframe(
            {"epoch": losses.x[thin], **{name: values[thin] for name, values in losses.terms.items()}},
            hide_index=True,
            key="losses-table",
        )


def warm() -> None:
    """Start the process that trains, and import torch, after the page is drawn: the first start is then quick."""
    worker.warm()
    import torch  # noqa: F401


def _store_of(run_id: str) -> RunStore:
    store = queue.manager().store
    return store if (store.root / run_id).is_dir() else RunStore(paths.recorded())


def _show(run: Run, card: Card | None) -> None:
    before = before_of(run, card)
    seen = cache.runs.curves(run, before, st.context.theme.type)
    _status(run, seen.done, seen.epochs)
    kept = [] if run.active or card is None or card.asr is None else cache.runs.epochs_of(run.folder)
    if len(kept) > 1 and card is not None:
        _moments(run, card, before, seen.measured, kept)
    else:
        _moment(run, before, seen.measured, None)
    with st.grid(2, min_column_width=260):
        chart(
            seen.charts[0],
            key="metrics",
            title="On test images, after each epoch",
            alt=_metrics_alt(seen.measured),
        )
        chart(
            seen.charts[1],
            key="losses",
            title="Loss terms, what is trained on",
            alt="Loss terms of the training by epoch; the table below has the numbers.",
        )
    if not run.active:
        chart_tables(seen.losses, seen.measured)
        st.caption(f"{describe.provenance(run)} · test images are only measured, never trained on")


def _moment(run: Run, before: dict[str, Any], measured: curves.MetricCurves, epoch: int | None) -> None:
    """Tiles and polarised light after `epoch` epochs; None: the result, or how far a run that goes on is."""
    shown, result = frames(run, measured), run.result or {}
    if epoch is not None:
        found = [one for one, of in zip(shown, measured.epochs, strict=False) if of == epoch]
        shown = found or [Frame(f"after epoch {epoch}", None, None, None)]
    if not shown:
        tiles(before, {}, result.get("der"))
        return
    tiles(before, shown[-1]._asdict(), result.get("der") if epoch is None else None)
    if before.get("asr") is not None:
        announce = _milestone(run, measured) if epoch is None else ""
        light(shown[-1:], asr_before=before.get("asr"), key="light", announce=announce)


@st.fragment
def _moments(
    run: Run, card: Card, before: dict[str, Any], measured: curves.MetricCurves, kept: list[int]
) -> None:
    """A finished run at the epoch that the slider names, with a few pictures judged at each."""
    place, options = st.container(), [*kept, *([RESULT] if (run.result or {}).get("after") else [])]
    with st.container(key="scrub"):
        chosen = st.select_slider(
            "Go through the epochs",
            options,
            value=options[-1],
            format_func=lambda at: {RESULT: "result", 0: "start"}.get(at, f"epoch {at}"),
            key=f"epoch-{run.id}",
            help="Sets the numbers, the light and the frames below to this epoch of the training.",
        )
        epoch = None if chosen == RESULT else chosen
        with place:
            _moment(run, before, measured, epoch)
            st.caption(_said_of(epoch, measured, run.request.eval_images))
        filmstrip.of_run(run.id, card, epoch)


def _said_of(epoch: int | None, measured: curves.MetricCurves, eval_images: int) -> str:
    """On what the numbers of an epoch were measured."""
    if epoch is None:
        return "The result, measured on all test images."
    if epoch == 0:
        return "Before the first epoch, the polarizer after its warm-up; the numbers are of the network without it."
    if epoch not in measured.epochs:
        return f"After epoch {epoch}: nothing was measured then, only the polarizer was kept."
    return f"After epoch {epoch}, measured on {eval_images} test images."


def _status(run: Run, done: Progress, epochs: int) -> None:
    if run.state == "queued":
        st.progress(0.0, f":material/hourglass_empty: Queued: {ahead(run)}")
    elif run.state == "running":
        left = run.seconds_left
        if _store_of(run.id).stop_requested(run.id):
            words = "Stopping: measuring what it has"
        elif done.epochs and done.done_epochs >= epochs:
            words = "Measuring the result on all test images"
        elif not done.epochs:
            words = "Preparing: reading images and features before the layer"
        elif done.warmup:
            words = "Warm-up on clean images"
        else:
            words = f"Epoch {min(done.done_epochs + 1, epochs)} of {epochs}"
            words += f" · about {max(1, round(left))} s left" if left is not None else ""
        st.progress(done.share, f":material/play_circle: {words}")
    elif run.state == "failed":
        kept = " The last good polarizer is kept." if run.has_polarizer else ""
        st.error(f"{run.message or 'This run failed.'}{kept}", icon=":material/error:")
    elif run.state == "interrupted":
        st.warning(
            run.message or "This run was interrupted. Start it again to get a result.",
            icon=":material/power_off:",
        )
    else:
        seconds = (run.result or {}).get("seconds", {})
        took = f" in {seconds['train']:.0f} s of training" if seconds.get("train") is not None else ""
        ended = f"Stopped after epoch {done.done_epochs}" if run.state == "stopped" else f"Finished{took}"
        icon, color = describe.STATES[run.state]
        st.markdown(
            f":{color}[{icon} **{ended}**] · {'recorded run' if run.recorded else 'live run'}"
            + (f" · {run.message}" if run.message else "")
        )


def _milestone(run: Run, measured: curves.MetricCurves) -> str:
    asr = measured.asr[-1] if measured.asr else None
    now = f" The trigger works on {asr:.0%} of images." if asr is not None else ""
    if run.state == "queued":
        return "The run is queued."
    if run.state == "running":
        return "Training has started." if len(measured.epochs) < 2 else "First epoch done, curves are moving."
    return f"The run has {'finished' if run.state == 'finished' else run.state}.{now}"


def _metrics_alt(measured: curves.MetricCurves) -> str:
    if not measured.epochs:
        return "ACC, ASR and RA by epoch; nothing is measured yet."
    parts = []
    for name in ("acc", "asr", "ra"):
        values = [v for v in getattr(measured, name) if v is not None]
        if values:
            parts.append(f"{name.upper()} from {values[0]:.1%} to {values[-1]:.1%}")
    return f"By epoch 0 to {measured.epochs[-1]}: {', '.join(parts)}."

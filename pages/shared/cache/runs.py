"""Cached runs: their records, curves, polarizers and exports; and the recorded tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import streamlit as st

from npd_core import paths
from npd_core.config.baselines import CONFIGS
from npd_core.errors import CheckpointError, UnknownNameError
from npd_core.experiments.record import TableRecord, list_tables, read_table, table_path
from npd_core.names import defense_name
from npd_core.polarizer.snapshots import snapshot_epochs, snapshot_file
from npd_core.progress import Progress
from npd_core.runs.queue import is_current
from npd_core.runs.store import Run, RunStore
from pages.shared.cache import zoo
from pages.shared.cache.files import by_files

if TYPE_CHECKING:
    from npd_core.figures.curves import LossCurves, MetricCurves
    from npd_core.polarizer.insertion import PolarizedNet
    from npd_core.runs.replay import Replay
    from npd_core.uploads.resistance import Resistance

REFRESH = 0.5
"""Seconds for which all viewers of a live run share one drawing of its curves."""


def stores() -> tuple[RunStore, RunStore]:
    """Return the live store and that of recorded runs; kept, so that events are read only once."""
    return _store(str(paths.runs())), _store(str(paths.recorded()))


@st.cache_resource(max_entries=8, show_spinner=False)
def _store(root: str) -> RunStore:
    return RunStore(Path(root))


def find_run(run_id: str) -> Run:
    """Return the run of this id: one with a result first, then a live before a recorded one.

    Raises:
        UnknownNameError: no store has this id.
    """
    found = []
    for store in stores():
        try:
            found.append(store.get(run_id))
        except UnknownNameError:
            continue
    if not found:
        raise UnknownNameError(
            f"There is no run {run_id[:40]!r} on this machine. Choose another run, or start one in the Lab."
        )
    return next((run for run in found if run.result), found[0])


def all_runs() -> list[Run]:
    """Return live runs, newest first, then the recorded ones whose id is not among them."""
    live_store, recorded_store = stores()
    live = live_store.list()
    ids = {run.id for run in live}
    return live + [run for run in recorded_store.list() if run.id not in ids]


def events(run: Run) -> list[dict[str, Any]]:
    """Return every event record of the run so far; shared, not to be changed."""
    live_store, recorded_store = stores()
    return (recorded_store if run.recorded else live_store).events(run.id)


def run_files(run_id: str, *_: Any, **__: Any) -> list[Path]:
    """Return the folders that a result about this run depends on. Raises UnknownNameError."""
    run = find_run(run_id)
    return [run.folder, *zoo.model_files(run.request.model)]


def model_and_run_files(model_id: str, run_id: str | None, *_: Any, **__: Any) -> list[Path]:
    """Return the folders that a result about this model, and this run if any, depends on."""
    return zoo.model_files(model_id) if run_id is None else run_files(run_id)


class RunCurves(NamedTuple):
    """The records of a run, read and drawn; shared by all viewers, never written to."""

    measured: MetricCurves
    losses: LossCurves
    done: Progress
    epochs: int  # of the whole training
    charts: tuple[str, str]  # of ACC, ASR and RA, and of the loss terms, as Plotly's JSON


@st.cache_resource(
    max_entries=64,
    ttl=REFRESH,
    show_spinner=False,
    hash_funcs={Run: lambda run: (str(run.folder), run.state)},
)
def curves(run: Run, before: Mapping[str, float | None], mode: str | None) -> RunCurves:
    """Return the curves of a run; while it goes on, up to `REFRESH` seconds old.

    Args:
        before: ACC, ASR and RA without a polarizer, as far as known.
        mode: "light" or "dark".
    """
    from npd_core.figures import curves

    records = events(run)
    measured = curves.read_metrics(records, before if before.get("acc") is not None else None)
    losses, done = curves.read_losses(records), Progress.of(records)
    epochs = done.epochs or getattr(run.request.config, "epochs", 1)
    charts = _metric_chart(measured, mode, epochs), curves.loss_figure(losses, mode, epochs).to_json()
    return RunCurves(measured, losses, done, epochs, charts)


@st.cache_data(max_entries=64, show_spinner=False)
def _metric_chart(measured: MetricCurves, mode: str | None, epochs: int) -> str:
    from npd_core.figures.curves import metric_figure

    return metric_figure(measured, mode, epochs).to_json()


@st.cache_data(max_entries=32, show_spinner=False)
def comparison_chart(tracks: Mapping[str, MetricCurves], mode: str | None) -> str:
    """Return the chart of ACC, ASR and RA of several runs, by their names, as Plotly's JSON."""
    from npd_core.figures.runs import comparison_figure

    return comparison_figure(tracks, mode).to_json()


@by_files(st.cache_data(max_entries=8, show_spinner=False), run_files)
def archive(run_id: str) -> bytes:
    """Return polarizer, config and metrics of a run as a zip file. Raises CheckpointError."""
    from npd_core.exports.run_archive import run_archive

    run = find_run(run_id)
    return run_archive(run.folder, run.request.model)


@by_files(st.cache_data(max_entries=6, show_spinner=False), run_files)
def model_archive(run_id: str, kind: str) -> bytes:
    """Return the repaired network of a run as a zip file, in a format of MODEL_FORMATS."""
    from npd_core.exports.model_archive import model_archive

    return model_archive(find_run(run_id).folder, kind)


@by_files(st.cache_data(max_entries=6, show_spinner=False), run_files)
def report(run_id: str) -> bytes:
    """Return the report of a run, an HTML file. Raises as the core does."""
    from npd_core.exports.report import run_report

    return run_report(find_run(run_id).folder).encode()


def usable_runs(model_id: str) -> list[Run]:
    """Return ended runs of the model, as it is now, that have a polarizer; the newest live one first."""
    return [run for run in all_runs() if run.request.model == model_id and usable(run)]


def usable(run: Run) -> bool:
    """Return whether a run has ended with a polarizer for its model as it is now."""
    return run.state in ("finished", "stopped") and run.has_polarizer and is_current(run)


def no_polarizer(run: Run) -> str:
    """Return why a run has no polarizer, and what to do."""
    if run.request.defense in CONFIGS:
        name = defense_name(run.request.defense)
        return f"Run {run.id} is of {name}, which trains no polarizer. Choose a run of NPD."
    why = f": {run.message}" if run.message else "."
    return f"Run {run.id} is {run.state} and has no polarizer{why} Choose a finished run."


@by_files(st.cache_resource(max_entries=6, show_spinner="Inserting the polarizer …"), run_files)
def polarized(run_id: str) -> PolarizedNet:
    """Return the model of the run with its polarizer: eval, shared. Raises CheckpointError."""
    from npd_core.polarizer.artifact import load_polarizer

    run = find_run(run_id)
    if not run.has_polarizer:
        raise CheckpointError(no_polarizer(run))
    found = zoo.backdoored(run.request.model)
    return load_polarizer(run.folder, found.net, found.card)


def epochs_of(folder: str | Path) -> list[int]:
    """Return the epochs whose polarizer is kept in the folder of a run, ascending."""
    return snapshot_epochs(Path(folder))


def _files_of_epoch(run_id: str, epoch: int, *_: Any, **__: Any) -> list[Path]:
    """Not the folder of the run, which changes as long as it goes on."""
    run = find_run(run_id)
    return [snapshot_file(run.folder, epoch), *zoo.model_files(run.request.model)]


@by_files(st.cache_data(max_entries=2048, show_spinner=False), _files_of_epoch)
def at_epoch(run_id: str, epoch: int, images: np.ndarray, keep: bool = True) -> np.ndarray:
    """Return probabilities, (N, K) float32, with the polarizer as it was after an epoch of the run.

    Args:
        images: (N, 3, H, W) uint8.
        keep: False: keep no features of the images in memory, as for a visitor's photo.

    Raises:
        CheckpointError: the polarizer of that epoch was not kept.
    """
    import torch

    replay = _replay(run_id, min(epochs_of(find_run(run_id).folder), default=epoch))
    return np.asarray(replay.probabilities(epoch, torch.from_numpy(images.copy()), keep), dtype=np.float32)


@by_files(st.cache_resource(max_entries=4, show_spinner=False), _files_of_epoch)
def _replay(run_id: str, epoch: int) -> Replay:
    from npd_core.runs.replay import Replay

    run = find_run(run_id)
    return Replay(run.folder, zoo.backdoored(run.request.model), epoch)


@by_files(st.cache_data(max_entries=16, show_spinner="Searching adversarial perturbations …"), run_files)
def resistance(run_id: str) -> Resistance:
    """Return how many held-out images of an uploaded model resist the adversarial perturbation."""
    from npd_core.config.npd import NPDConfig
    from npd_core.config.presets import preset
    from npd_core.data.load import load_dataset
    from npd_core.exports.model_archive import read_repaired
    from npd_core.uploads.resistance import resistance

    found = read_repaired(find_run(run_id).folder)
    config = found.run.request.config
    cfg = (
        config
        if isinstance(config, NPDConfig)
        else preset(found.backdoored.card.dataset, size=found.backdoored.card.image_size)
    )
    held_out = load_dataset(found.backdoored.card.dataset, "test")
    return resistance(found.backdoored.net, found.net, held_out, cfg)


def table_datasets(name: str) -> list[str]:
    """Return the data sets on which a table has been recorded."""
    return [path.stem.removeprefix(f"{name}-") for path in list_tables() if path.stem.startswith(f"{name}-")]


@by_files(
    st.cache_data(max_entries=32, show_spinner=False), lambda name, dataset: [table_path(name, dataset)]
)
def table(name: str, dataset: str) -> TableRecord | None:
    """Return the record of a table; None when there is none. Raises StorageError when its file is damaged."""
    path = table_path(name, dataset)
    return read_table(path) if path.is_file() else None

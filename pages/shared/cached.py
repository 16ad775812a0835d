"""Every st.cache_* function of the app.

Keys are names, paths and frozen values; what a cache_resource returns is shared by all visitors and never written to.
Public functions take ids (of a zoo model, of a run) and add what the key needs besides: the folder, and the time stamps
of its files, so that a model trained anew or a polarizer saved again is read again.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import streamlit as st

from npd_core import paths
from npd_core.config.baselines import CONFIGS
from npd_core.errors import CheckpointError, UnknownNameError
from npd_core.experiments.record import TableRecord, list_tables, read_table, table_path
from npd_core.export.bundle import has_polarizer
from npd_core.figures.tables import DEFENSES
from npd_core.polarizer.snapshots import snapshot_epochs, snapshot_file
from npd_core.runs.queue import is_current
from npd_core.runs.store import Run, RunStore
from npd_core.zoo import card as card_file
from npd_core.zoo.card import Card, get_card

if TYPE_CHECKING:
    from torch import Tensor

    from npd_core.attacks import Attack
    from npd_core.config.npd import NPDConfig
    from npd_core.config.request import DefenseRequest
    from npd_core.data.clean import CleanSubset
    from npd_core.evaluation import TestSets
    from npd_core.figures.curves import LossCurves, MetricCurves, Progress
    from npd_core.polarizer.insertion import LayerInfo, PolarizedNet
    from npd_core.polarizer.trace import Trace
    from npd_core.runs.replay import Replay
    from npd_core.uploads.resistance import Resistance
    from npd_core.zoo.weights import Backdoored

Stamp = tuple[tuple[str, int, int], ...]
SHARED = 0.5  # seconds for which viewers of a live run are shown one drawing


class Samples(NamedTuple):
    """Test images by number, and what the attack makes of them. Arrays are C-ordered and never written to."""

    indices: tuple[int, ...]
    clean: np.ndarray  # (N, 3, H, W) uint8
    triggered: np.ndarray  # (N, 3, H, W) uint8
    labels: np.ndarray  # (N,) int64, true class
    targets: np.ndarray  # (N,) int64, class the attacker wants
    eligible: np.ndarray  # (N,) bool: False where the true class already is the target


def stamp(folder: Path) -> Stamp:
    """Name, time and size of every file directly in `folder`; () when it is absent."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # it may go while it is looked at
                if entry.is_file():
                    found.append((entry.name, entry.stat().st_mtime_ns, entry.stat().st_size))
    return tuple(sorted(found))


# ---------------------------------------------------------------------------------------------------------------- zoo


def cards() -> list[Card]:
    """Cards of the zoo, sorted by id; those of networks without a backdoor too."""
    return _zoo()[0]


def unreadable_cards() -> list[str]:
    """A sentence for each model of the zoo that is left out because its card is damaged."""
    return _zoo()[1]


def _zoo() -> tuple[list[Card], list[str]]:
    root = paths.pretrained()
    folders = [one for one in sorted(root.iterdir()) if one.name[0] != "."] if root.is_dir() else []
    return _read_zoo(str(root), tuple((folder.name, stamp(folder)) for folder in folders if folder.is_dir()))


@st.cache_data(max_entries=4, show_spinner=False)
def _read_zoo(root: str, stamps: tuple[tuple[str, Stamp], ...]) -> tuple[list[Card], list[str]]:
    return card_file.list_cards(clean=True), card_file.unreadable_cards()


def card(model_id: str) -> Card:
    """Card of one model. Raises UnknownNameError."""
    return next((found for found in cards() if found.id == model_id), None) or get_card(model_id)


def backdoored(model_id: str) -> Backdoored:
    """The model with its attack: eval, frozen, shared. Raises UnknownNameError, CheckpointError."""
    folder = paths.pretrained() / card(model_id).id
    return _backdoored(model_id, str(folder), stamp(folder))


@st.cache_resource(max_entries=4, show_spinner="Loading the model …")
def _backdoored(model_id: str, folder: str, files: Stamp) -> Backdoored:
    from npd_core.zoo.weights import load_backdoored

    return load_backdoored(model_id)


def points(model_id: str) -> list[LayerInfo]:
    """Insertion points of the model's network, in forward order."""
    folder = paths.pretrained() / card(model_id).id
    return _points(model_id, str(folder), stamp(folder))


@st.cache_data(max_entries=8, show_spinner=False)
def _points(model_id: str, folder: str, files: Stamp) -> list[LayerInfo]:
    from npd_core.polarizer.insertion import insertion_layers

    return list(insertion_layers(backdoored(model_id).net, card(model_id).image_size))


# --------------------------------------------------------------------------------------------------------------- runs


def stores() -> tuple[RunStore, RunStore]:
    """The live store and the one of recorded runs, kept between script runs so that events are read only once."""
    return _store(str(paths.runs())), _store(str(paths.recorded()))


@st.cache_resource(max_entries=8, show_spinner=False)
def _store(root: str) -> RunStore:
    return RunStore(Path(root))


def find_run(run_id: str) -> Run:
    """The run of this id: one with a result first, the live store before the recorded ones. Raises UnknownNameError."""
    found = []
    for store in stores():
        try:
            found.append(store.get(run_id))
        except UnknownNameError:
            continue
    if not found:
        raise UnknownNameError(
            f"There is no run {run_id[:40]!r} on this machine. Choose another one, or start one on the Lab page."
        )
    return next((run for run in found if run.result), found[0])


def all_runs() -> list[Run]:
    """Live runs, newest first, then the recorded ones whose id is not among them."""
    own, shipped = stores()
    live = own.list()
    ids = {run.id for run in live}
    return live + [run for run in shipped.list() if run.id not in ids]


def events(run: Run) -> list[dict[str, Any]]:
    """Every event record of the run so far; shared, not to be changed."""
    own, shipped = stores()
    return (shipped if run.recorded else own).events(run.id)


class Seen(NamedTuple):
    """What the records of a run come to; shared by all who watch it, and never written to."""

    measured: MetricCurves
    losses: LossCurves
    done: Progress
    epochs: int  # of the whole training
    charts: tuple[str, str]  # of ACC, ASR and RA, and of the loss terms, as Plotly's JSON


def seen(run: Run, before: Mapping[str, float | None], mode: str | None) -> Seen:
    """The records of a run, read and drawn once for all who watch it; while it goes on, up to `SHARED` seconds old.

    Args:
        before: ACC, ASR and RA without a polarizer, as far as known.
        mode: "light" or "dark".
    """
    return _seen(run.id, run.state, mode, tuple(before.get(name) for name in ("acc", "asr", "ra")), run)


@st.cache_resource(max_entries=64, ttl=SHARED, show_spinner=False)
def _seen(run_id: str, state: str, mode: str | None, before: tuple[float | None, ...], _run: Run) -> Seen:
    from npd_core.figures import curves

    records = events(_run)
    known = dict(zip(("acc", "asr", "ra"), before, strict=True))
    measured = curves.read_metrics(records, known if known["acc"] is not None else None)
    losses, done = curves.read_losses(records), curves.read_progress(records)
    epochs = done.epochs or getattr(_run.request.config, "epochs", 1)
    metrics = _metric_chart(run_id, f"{state} {len(measured.epochs)}", mode, epochs, measured)
    return Seen(measured, losses, done, epochs, (metrics, curves.loss_figure(losses, mode, epochs).to_json()))


@st.cache_data(max_entries=64, show_spinner=False)
def _metric_chart(run_id: str, mark: str, mode: str | None, epochs: int, _measured: MetricCurves) -> str:
    from npd_core.figures.curves import metric_figure

    return metric_figure(_measured, mode, epochs).to_json()


def comparison_chart(runs: Sequence[Run], tracks: Mapping[str, MetricCurves], mode: str | None) -> str:
    """Chart of ACC, ASR and RA of several runs, as Plotly's JSON; drawn once for all who watch them go on.

    Args:
        tracks: what was measured so far, by the words for each run, in the order of `runs`.
    """
    marks = tuple(
        f"{run.id} {run.state} {len(seen.epochs)}" for run, seen in zip(runs, tracks.values(), strict=True)
    )
    return _comparison_chart(marks, tuple(tracks), mode, tracks)


@st.cache_data(max_entries=32, show_spinner=False)
def _comparison_chart(marks: tuple[str, ...], names: tuple[str, ...], mode: str | None, _tracks: Any) -> str:
    from npd_core.figures.runs import comparison_figure

    return comparison_figure(_tracks, mode).to_json()


def archive(run_id: str) -> bytes:
    """Polarizer, config and metrics of a run as one zip file. Raises CheckpointError when there is no polarizer."""
    run = find_run(run_id)
    return _archive(str(run.folder), run.request.model, stamp(Path(run.folder)))


@st.cache_data(max_entries=8, show_spinner=False)
def _archive(folder: str, model_id: str, files: Stamp) -> bytes:
    from npd_core.export.bundle import archive

    return archive(Path(folder), model_id)


def model_archive(run_id: str, kind: str) -> bytes:
    """The repaired network of a run as a zip file, in a format of MODEL_FORMATS. Raises as the core does."""
    run = find_run(run_id)
    return _model_archive(str(run.folder), kind, stamp(Path(run.folder)))


@st.cache_data(max_entries=6, show_spinner=False)
def _model_archive(folder: str, kind: str, files: Stamp) -> bytes:
    from npd_core.export.formats import model_archive

    return model_archive(Path(folder), kind)


def report(run_id: str) -> bytes:
    """The report of a run, an HTML file. Raises as the core does."""
    run = find_run(run_id)
    return _report(str(run.folder), stamp(Path(run.folder)))


@st.cache_data(max_entries=6, show_spinner=False)
def _report(folder: str, files: Stamp) -> bytes:
    from npd_core.export.report import run_report

    return run_report(Path(folder)).encode()


def usable_runs(model_id: str) -> list[Run]:
    """Runs of this model, as it is now, that left a polarizer behind; newest live one first, recorded ones last."""
    return [
        run
        for run in all_runs()
        if run.request.model == model_id
        and run.state in ("finished", "stopped")
        and has_polarizer(run.folder)
        and is_current(run)
    ]


def no_polarizer(run: Run) -> str:
    """Why a run has no polarizer to show, and what to do, in words."""
    if run.request.defense in CONFIGS:
        name = DEFENSES.get(run.request.defense, run.request.defense)
        return (
            f"Run {run.id} is of {name}, which repairs the whole network: it has no polarizer to show. "
            "Choose a run of NPD."
        )
    why = f": {run.message}" if run.message else " yet."
    return f"Run {run.id} is {run.state} and has no polarizer to show{why} Choose a finished run."


def polarized(run_id: str) -> PolarizedNet:
    """The model of the run with its polarizer in place: eval, shared. Raises UnknownNameError, CheckpointError."""
    run = find_run(run_id)
    folder = Path(run.folder)
    if not has_polarizer(folder):
        raise CheckpointError(no_polarizer(run))
    source = paths.pretrained() / card(run.request.model).id
    return _polarized(run.request.model, str(folder), stamp(source), stamp(folder))


@st.cache_resource(max_entries=6, show_spinner="Inserting the polarizer …")
def _polarized(model_id: str, folder: str, model_files: Stamp, files: Stamp) -> PolarizedNet:
    from npd_core.polarizer.artifact import load_polarizer

    found = backdoored(model_id)
    return load_polarizer(Path(folder), found.net, found.card)


# ---------------------------------------------------------------------------------------------------- recorded tables


def table_datasets(name: str) -> list[str]:
    """Data sets on which a table has been recorded."""
    return [path.stem.removeprefix(f"{name}-") for path in list_tables() if path.stem.startswith(f"{name}-")]


def table(name: str, dataset: str) -> TableRecord | None:
    """The record of a table; None when there is none. Raises StorageError when its file is damaged."""
    path = table_path(name, dataset)
    return _table(str(path), stamp(path.parent)) if path.is_file() else None


@st.cache_data(max_entries=32, show_spinner=False)
def _table(path: str, files: Stamp) -> TableRecord:
    return read_table(Path(path))


# -------------------------------------------------------------------------------------------------------- test images


def test_sets(model_id: str) -> TestSets:
    """All test images of the model's data set, clean and poisoned; shared. Raises DataMissingError."""
    folder = paths.pretrained() / card(model_id).id
    return _test_sets(model_id, str(folder), stamp(folder), str(paths.data()))


@st.cache_resource(max_entries=4, show_spinner="Reading the test images …")
def _test_sets(model_id: str, folder: str, files: Stamp, data: str) -> TestSets:
    from npd_core.evaluation import test_sets

    found = backdoored(model_id)
    return test_sets(found.card.dataset, found.attack)


def class_names(dataset: str) -> tuple[str, ...]:
    """Names of the classes. Raises DataMissingError where they are only in the data set's own files."""
    return _class_names(dataset, str(paths.data()))


@st.cache_data(max_entries=8, show_spinner=False)
def _class_names(dataset: str, data: str) -> tuple[str, ...]:
    from npd_core.data.load import class_names

    return tuple(class_names(dataset))


def test_labels(model_id: str) -> np.ndarray:
    """True class of every test image, (N,) int64."""
    return test_sets(model_id).clean.labels.numpy()


def samples(model_id: str, indices: tuple[int, ...]) -> Samples:
    """These test images, clean and with the trigger. Raises IndexError on a number outside the test set."""
    folder = paths.pretrained() / card(model_id).id
    return _samples(model_id, indices, str(folder), stamp(folder), str(paths.data()))


@st.cache_data(max_entries=64, show_spinner=False)
def _samples(model_id: str, indices: tuple[int, ...], folder: str, files: Stamp, data: str) -> Samples:
    import torch

    attack = backdoored(model_id).attack
    clean = test_sets(model_id).clean
    chosen = torch.tensor(indices, dtype=torch.int64)
    images, labels = clean.images[chosen].contiguous(), clean.labels[chosen]
    with torch.no_grad():
        triggered = attack.apply(images.clone())
    return Samples(
        indices,
        images.numpy().copy(),
        triggered.numpy().copy(),
        labels.numpy().copy(),
        attack.rule.target(labels).numpy().copy(),
        attack.rule.eligible(labels).numpy().copy(),
    )


# ------------------------------------------------------------------------------------------------------------ triggers


def attack(model_id: str) -> Attack:
    """The attack of the model alone, shared. Raises as `backdoored`."""
    folder = paths.pretrained() / card(model_id).id
    return _attack(model_id, str(folder), stamp(folder))


@st.cache_resource(max_entries=32, show_spinner=False)
def _attack(model_id: str, folder: str, files: Stamp) -> Attack:
    from npd_core.zoo.weights import load_backdoored

    return load_backdoored(model_id).attack


def trigger_stamp(model_id: str) -> np.ndarray | None:
    """The trigger as colours and opacity, (4, H, W) uint8, in its place; None for a trigger that is no stamp."""
    folder = paths.pretrained() / card(model_id).id
    return _trigger_stamp(model_id, str(folder), stamp(folder))


@st.cache_data(max_entries=32, show_spinner=False)
def _trigger_stamp(model_id: str, folder: str, files: Stamp) -> np.ndarray | None:
    from npd_core.attacks import stamp as as_stamp

    found = as_stamp(attack(model_id), card(model_id).image_size)
    return None if found is None else found.numpy()


def triggered(model_id: str, pictures: np.ndarray) -> np.ndarray:
    """Any pictures, (N, 3, H, W) uint8, with the model's own trigger. Nothing of them is kept."""
    import torch

    return np.asarray(attack(model_id).apply(torch.from_numpy(pictures.copy())))


def wanted(model_id: str, label: int) -> int:
    """The class that the attacker wants for a picture of class `label`; of a clean network that is `label` itself."""
    import torch

    return int(attack(model_id).rule.target(torch.tensor([label])).item())


def first_pictures(dataset: str, count: int) -> np.ndarray:
    """Test pictures of `count` different classes, (count, 3, H, W) uint8: of each class the first one; class 0, which
    most attackers want, is left out where the others are enough. Raises DataMissingError."""
    return _first_pictures(dataset, count, str(paths.data()))


@st.cache_data(max_entries=8, show_spinner="Reading the test images …")
def _first_pictures(dataset: str, count: int, data: str) -> np.ndarray:
    from npd_core.data.load import load_dataset

    found = load_dataset(dataset, "test")
    labels, places = np.unique(found.labels.numpy(), return_index=True)
    if len(labels) > count:
        places = places[1:]
    return found.images[np.sort(places[:count])].numpy().copy()


class Shown(NamedTuple):
    """What an attack does to a few pictures. Arrays are (N, 3, H, W) uint8."""

    clean: np.ndarray
    triggered: np.ndarray
    crossed: np.ndarray | None
    """With the disturbance that must change no label, of an attack that has one."""


def shown(model_id: str | None, attack_name: str, dataset: str, count: int) -> Shown:
    """The first pictures of `dataset` under an attack: with the trigger of `model_id`, or without a model with the
    trigger that the attack always has. Raises ConfigError where it is made for a model only, DataMissingError."""
    files = () if model_id is None else stamp(paths.pretrained() / card(model_id).id)
    return _shown(model_id, attack_name, dataset, count, str(paths.pretrained()), files, str(paths.data()))


@st.cache_data(max_entries=64, show_spinner=False)
def _shown(
    model_id: str | None, attack_name: str, dataset: str, count: int, zoo: str, files: Stamp, data: str
) -> Shown:
    import torch

    from npd_core.attacks import get_attack

    clean = first_pictures(dataset, count)
    found = get_attack(attack_name, dataset) if model_id is None else attack(model_id)
    images = torch.from_numpy(clean.copy())
    crossed = None if found.cross is None else found.apply_cross(images).numpy()
    return Shown(clean, found.apply(images).numpy(), crossed)


# -------------------------------------------------------------------------------------------------------- predictions


def predict(model_id: str, run_id: str | None, images: np.ndarray) -> np.ndarray:
    """Probabilities, (N, K) float32, of `images`, (N, 3, H, W) uint8 or float in [0, 1]; without a run: backdoored."""
    import torch

    from npd_core.evaluation import predict_proba

    net = backdoored(model_id).net if run_id is None else polarized(run_id)
    return np.asarray(predict_proba(net, torch.from_numpy(np.ascontiguousarray(images))), dtype=np.float32)


def predictions(model_id: str, run_id: str | None, indices: tuple[int, ...], triggered: bool) -> np.ndarray:
    """Probabilities, (N, K) float32, of test images by number, with or without the trigger."""
    folder = paths.pretrained() / card(model_id).id
    files = stamp(folder) + (stamp(Path(find_run(run_id).folder)) if run_id is not None else ())
    return _predictions(model_id, run_id, indices, triggered, str(folder), files, str(paths.data()))


@st.cache_data(max_entries=256, show_spinner=False)
def _predictions(
    model_id: str,
    run_id: str | None,
    indices: tuple[int, ...],
    triggered: bool,
    folder: str,
    files: Stamp,
    data: str,
) -> np.ndarray:
    chosen = samples(model_id, indices)
    return predict(model_id, run_id, chosen.triggered if triggered else chosen.clean)


# ------------------------------------------------------------------------------------------------- epochs of a run


def at_epoch(run_id: str, epoch: int, images: np.ndarray, keep: bool = True) -> np.ndarray:
    """Probabilities, (N, K) float32, of `images`, (N, 3, H, W) uint8, with the polarizer as it was after `epoch`
    epochs of the run, which may still go on. Raises CheckpointError when that epoch was not kept.

    Args:
        keep: False: nothing of the pictures stays in memory, as of one that a visitor brought.
    """
    run = find_run(run_id)
    source = paths.pretrained() / card(run.request.model).id
    file = _file_stamp(snapshot_file(Path(run.folder), epoch))
    return _at_epoch(run.request.model, str(run.folder), epoch, images, keep, stamp(source), file)


@st.cache_data(max_entries=2048, show_spinner=False)
def _at_epoch(
    model_id: str, folder: str, epoch: int, images: np.ndarray, keep: bool, model_files: Stamp, file: Stamp
) -> np.ndarray:
    import torch

    first = min(epochs_of(folder), default=epoch)
    replay = _replay(model_id, folder, first, model_files, _file_stamp(snapshot_file(Path(folder), first)))
    return np.asarray(replay.probabilities(epoch, torch.from_numpy(images.copy()), keep), dtype=np.float32)


def epochs_of(folder: str | Path) -> list[int]:
    """Epochs whose polarizer lies in the folder of a run, ascending."""
    return snapshot_epochs(Path(folder))


@st.cache_resource(max_entries=4, show_spinner=False)
def _replay(model_id: str, folder: str, first: int, model_files: Stamp, file: Stamp) -> Replay:
    from npd_core.runs.replay import Replay

    return Replay(Path(folder), backdoored(model_id), first)


def _file_stamp(path: Path) -> Stamp:
    if not path.is_file():
        return ()
    return ((path.name, path.stat().st_mtime_ns, path.stat().st_size),)


def hijacked(model_id: str, count: int = 6) -> tuple[int, ...]:
    """Numbers of the first test pictures, of different classes where possible, that the network gets right when clean
    and gives to the attacker when triggered; at most `count`, () where the trigger works on none of the first 480."""
    folder = paths.pretrained() / card(model_id).id
    return _hijacked(model_id, count, str(folder), stamp(folder), str(paths.data()))


@st.cache_data(max_entries=8, show_spinner=False)
def _hijacked(model_id: str, count: int, folder: str, files: Stamp, data: str) -> tuple[int, ...]:
    found: dict[int, int] = {}
    total = len(test_labels(model_id))
    for start in range(0, min(total, 480), 48):
        indices = tuple(range(start, min(start + 48, total)))
        chosen = samples(model_id, indices)
        clean, triggered = (predictions(model_id, None, indices, which).argmax(1) for which in (False, True))
        works = (clean == chosen.labels) & (triggered == chosen.targets) & chosen.eligible
        for at in np.flatnonzero(works):
            found.setdefault(int(chosen.labels[at]), indices[at])
        if len(found) >= count:
            break
    return tuple(sorted(found.values())[:count])


# ------------------------------------------------------------------------------------------------------- attributions


class Maps(NamedTuple):
    """Attribution of one test image: by picture (clean, triggered), then by network (backdoored, polarized)."""

    maps: np.ndarray  # (2, 2, H, W) float32, signed
    scale: float  # colours run from -scale to scale in all four


def maps(model_id: str, run_id: str, index: int, method: str, target: int) -> Maps:
    """What speaks for class `target`, in four maps on one scale. Raises as `attribute` does."""
    folder = paths.pretrained() / card(model_id).id
    files = stamp(folder) + stamp(Path(find_run(run_id).folder))
    return _maps(model_id, run_id, index, method, target, str(folder), files, str(paths.data()))


@st.cache_data(max_entries=64, show_spinner="Looking where the network looks …")
def _maps(
    model_id: str,
    run_id: str,
    index: int,
    method: str,
    target: int,
    folder: str,
    files: Stamp,
    data: str,
) -> Maps:
    chosen = samples(model_id, (index,))
    return _maps_of(model_id, run_id, chosen.clean[0], chosen.triggered[0], method, target)


@st.cache_data(max_entries=16, show_spinner="Looking where the network looks …", scope="session")
def own_maps(
    model_id: str, run_id: str, clean: np.ndarray, triggered: np.ndarray, method: str, target: int
) -> Maps:
    """`maps` of a visitor's picture, (3, H, W) uint8 without and with a trigger; kept for this session only."""
    return _maps_of(model_id, run_id, clean, triggered, method, target)


def _maps_of(
    model_id: str, run_id: str, clean: np.ndarray, triggered: np.ndarray, method: str, target: int
) -> Maps:
    from npd_core.attribution import attribute, shared_scale

    x = _pixels(clean, triggered)
    pair = [
        attribute(net, x, target, method).numpy() for net in (backdoored(model_id).net, polarized(run_id))
    ]
    return Maps(np.stack(pair, axis=1), shared_scale(*pair))


class Channels(NamedTuple):
    """`ChannelAttribution` of one test image as plain lists, one number a channel."""

    before: list[float]
    after: list[float]
    activation_before: list[float]
    activation_after: list[float]
    logit_before: float
    logit_after: float


def channels(model_id: str, run_id: str, index: int, triggered: bool, target: int) -> Channels:
    """What the polarizer of the run took from each channel of its layer, for the logit of `target`."""
    folder = paths.pretrained() / card(model_id).id
    files = stamp(folder) + stamp(Path(find_run(run_id).folder))
    return _channels(model_id, run_id, index, triggered, target, str(folder), files, str(paths.data()))


@st.cache_data(max_entries=64, show_spinner=False)
def _channels(
    model_id: str,
    run_id: str,
    index: int,
    triggered: bool,
    target: int,
    folder: str,
    files: Stamp,
    data: str,
) -> Channels:
    chosen = samples(model_id, (index,))
    return _channels_of(model_id, run_id, (chosen.triggered if triggered else chosen.clean)[0], target)


@st.cache_data(max_entries=16, show_spinner=False, scope="session")
def own_channels(model_id: str, run_id: str, picture: np.ndarray, target: int) -> Channels:
    """`channels` of a visitor's picture, (3, H, W) uint8; kept for this session only."""
    return _channels_of(model_id, run_id, picture, target)


def _channels_of(model_id: str, run_id: str, picture: np.ndarray, target: int) -> Channels:
    from npd_core.attribution import polarizer_attribution

    x = _pixels(picture)
    found = polarizer_attribution(polarized(run_id), x, target)
    return Channels(
        found.before.tolist(),
        found.after.tolist(),
        found.activation_before.tolist(),
        found.activation_after.tolist(),
        found.logit_before,
        found.logit_after,
    )


def _pixels(*pictures: np.ndarray) -> Tensor:
    """Pictures (3, H, W) uint8 as a batch: (N, 3, H, W) float32 in [0, 1]."""
    import torch

    return torch.from_numpy(np.stack(pictures)).float() / 255


# ---------------------------------------------------------------------------------------------------- one step, slowly


def clean_images(dataset: str, amount: int | float, seed: int) -> CleanSubset:
    """The clean images that the defender owns; shared. Raises as `load_clean`."""
    return _clean_images(dataset, amount, seed, str(paths.data()))


@st.cache_resource(max_entries=4, show_spinner="Reading the clean images …")
def _clean_images(dataset: str, amount: int | float, seed: int, data: str) -> CleanSubset:
    from npd_core.data.clean import load_clean

    return load_clean(dataset, amount, seed)


def trace(asked: DefenseRequest, place: int, run_id: str | None = None) -> Trace:
    """The first step that the request would take, on its clean image number `place` alone.

    Args:
        run_id: start from the polarizer of this run, at its layer; None: from the identity. Raises as `polarized`.
    """
    folder = paths.pretrained() / card(asked.model).id
    files = stamp(folder) + (stamp(Path(find_run(run_id).folder)) if run_id is not None else ())
    return _trace(asked, place, run_id, str(folder), files, str(paths.data()))


@st.cache_data(max_entries=64, show_spinner="Taking the step …")
def _trace(
    asked: DefenseRequest, place: int, run_id: str | None, folder: str, files: Stamp, data: str
) -> Trace:
    from npd_core.config.npd import NPDConfig
    from npd_core.polarizer.insertion import PolarizedNet
    from npd_core.polarizer.trace import trace

    cfg, found = asked.config, card(asked.model)
    assert isinstance(cfg, NPDConfig)
    assert asked.layer is not None
    clean = clean_images(found.dataset, asked.clean, cfg.seed)
    if run_id is not None:
        net = copy.deepcopy(polarized(run_id))
    else:
        net = PolarizedNet(backdoored(asked.model).net, asked.layer, found.image_size)
        start = NPDConfig(bn_mode=cfg.bn_mode, holdout=cfg.holdout, seed=cfg.seed)
        net.polarizer.load_state_dict(
            _start(asked.model, asked.layer, asked.clean, start, folder, files, data)
        )
    return trace(net, clean.images[place], int(clean.labels[place]), cfg)


@st.cache_resource(max_entries=16, show_spinner="Measuring the features of the clean images …")
def _start(
    model_id: str, layer: str, amount: int | float, cfg: NPDConfig, folder: str, files: Stamp, data: str
) -> dict[str, Tensor]:
    from npd_core.data.load import ImageSet
    from npd_core.polarizer.insertion import PolarizedNet
    from npd_core.polarizer.trace import start

    found = card(model_id)
    clean = clean_images(found.dataset, amount, cfg.seed)
    net = PolarizedNet(backdoored(model_id).net, layer, found.image_size)
    return start(net, ImageSet(clean.images, clean.labels), cfg)


# ------------------------------------------------------------------------------------------------- brought by somebody


@st.cache_data(max_entries=1, show_spinner=False)
def torchvision_names() -> list[str]:
    """The classifiers that torchvision knows."""
    from npd_core.models import torchvision_names

    return torchvision_names()


def uploaded_layers(model_id: str) -> list[str]:
    """Insertion points of a network that somebody brought, in forward order. Raises UnknownNameError."""
    found = card(model_id)
    return _uploaded_layers(model_id, stamp(found.folder))


@st.cache_data(max_entries=8, show_spinner=False)
def _uploaded_layers(model_id: str, files: Stamp) -> list[str]:
    from npd_core.polarizer.insertion import insertion_layers
    from npd_core.zoo.weights import load_backdoored

    found = load_backdoored(model_id)
    return [info.name for info in insertion_layers(found.net, found.card.image_size)]


def resistance(run_id: str) -> Resistance:
    """How many held-out images of a brought model resist the imagined perturbation. Raises as the core does."""
    run = find_run(run_id)
    return _resistance(str(run.folder), stamp(Path(run.folder)), stamp(card(run.request.model).folder))


@st.cache_data(max_entries=16, show_spinner="Imagining perturbations …")
def _resistance(folder: str, files: Stamp, model_files: Stamp) -> Resistance:
    from npd_core.config.npd import NPDConfig
    from npd_core.data.load import load_dataset
    from npd_core.export.formats import read_repaired
    from npd_core.uploads.entry import suggested_config
    from npd_core.uploads.resistance import resistance

    found = read_repaired(Path(folder))
    config = found.run.request.config
    cfg = config if isinstance(config, NPDConfig) else suggested_config(found.backdoored.card)
    return resistance(
        found.backdoored.net, found.net, load_dataset(found.backdoored.card.dataset, "test"), cfg
    )

"""The report of a run: one HTML file with its settings, curves, test images, attributions and origin.

The page, `npd_core/templates/report.html`, loads and runs nothing: no script, every image inside the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from markupsafe import Markup

from npd_core.attacks import NoTarget
from npd_core.attribution import METHODS, attribute, shared_scale
from npd_core.data.load import class_names, load_dataset
from npd_core.errors import ConfigError
from npd_core.evaluation import predict_proba
from npd_core.exports.example_images import choose_examples, first_of_each_class, top_class
from npd_core.exports.model_archive import Repaired, read_repaired
from npd_core.figures import svg
from npd_core.figures.attributions import map_image
from npd_core.figures.curves import DASHES, read_losses, read_metrics
from npd_core.figures.gallery import Prediction
from npd_core.figures.predictions import data_url
from npd_core.names import CURVES, LOSS_TERMS, METRICS
from npd_core.runs.event_log import EventLog
from npd_core.runs.store import EVENTS, Run
from npd_core.templates import percent, render_page
from npd_core.version import __version__

METHOD = "integrated_gradients"
LEGEND = "Orange supports the class, blue opposes it; all maps share one scale."
COLORS = {
    "acc": "benign", "asr": "trigger", "ra": "polarizer",
    "total": "text", "bn": "benign", "bce1": "polarizer", "bce2": "green",
}  # fmt: skip
"""Color of each curve, by its name in the palette."""


class Tile(NamedTuple):
    """One image with its caption."""

    source: str
    """The image as a data URL."""
    title: str
    caption: str
    kind: str = "benign"
    """CSS class: benign, trigger or polarizer."""


class Row(NamedTuple):
    """Tiles that belong together."""

    heading: str
    tiles: list[Tile]


def run_report(folder: Path) -> str:
    """Return the report of a run with a network, as the text of an HTML file.

    Args:
        folder: of a run, or one that `npd defend --save` wrote.
    Raises:
        StorageError, UnknownNameError, CheckpointError, DataMissingError: the run, its model or its data
            cannot be read.
    """
    found = read_repaired(folder)
    run, info = found.run, METHODS[METHOD]
    result = run.result or {}
    log = EventLog(folder / EVENTS)
    log.read()
    images, maps = _examples(found)
    return render_page(
        "report.html",
        title=f"{run.request.defense} on {found.backdoored.card.id}",
        version=__version__,
        run_id=run.id,
        summary=_summary(result),
        layer=result.get("layer"),
        metrics=_metrics(result),
        curves=_curves(log.events, result.get("before")),
        images=images,
        maps=maps,
        legend=f"{info.title} ({info.source}). {info.sentence} {LEGEND}",
        model=_model(found),
        settings=_flat(run.request.to_dict()),
        origin=_origin(run, result),
    )


def _summary(result: Mapping[str, Any]) -> str:
    before, after = result.get("before") or {}, result.get("after") or {}
    if before.get("acc") is None or after.get("acc") is None:
        return "This run was not measured."
    text = f"Clean accuracy went from {percent(before['acc'])} to {percent(after['acc'])}"
    if before.get("asr") is None or after.get("asr") is None:
        return text + ". The attack success rate is unknown: there were no triggered images."
    return text + f", the attack success rate from {percent(before['asr'])} to {percent(after['asr'])}."


def _metrics(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of the table of metrics, none if nothing was measured."""
    before, after, der = result.get("before") or {}, result.get("after") or {}, result.get("der")
    if not after:
        return []
    shown = {key: (percent(before.get(key)), percent(after.get(key))) for key in CURVES}
    shown["der"] = "", "–" if der is None else f"{der:.3f}"
    return [
        {"name": METRICS[key].short, "before": first, "after": second, "help": METRICS[key].help}
        for key, (first, second) in shown.items()
    ]


def _curves(
    records: Sequence[Mapping[str, Any]], before: Mapping[str, Any] | None
) -> list[tuple[Markup, str]]:
    """Return drawings with their captions."""
    drawn = []
    measured, losses = read_metrics(records, before), read_losses(records)
    if len(measured.epochs) > 1:
        lines = [_line(key, METRICS[key].short, measured.epochs, getattr(measured, key)) for key in CURVES]
        drawing = svg.curves(lines, title="ACC, ASR and RA by epoch", x_title="epoch", percent=True)
        caption = "Measured on test images after each epoch; the training does not use them."
        drawn.append((Markup(drawing), caption))
    if losses.x:
        plain = {key: name.replace("<sub>", " ").replace("</sub>", "") for key, name in LOSS_TERMS.items()}
        lines = [_line(key, plain[key], losses.x, values) for key, values in losses.terms.items()]
        drawing = svg.curves(lines, title="Loss terms by epoch", x_title="epoch", log=True)
        caption = "Loss terms, which the training minimizes, on a logarithmic axis. Warm-up is left of 0."
        drawn.append((Markup(drawing), caption))
    return drawn


def _line(key: str, name: str, x: Sequence[float], y: Sequence[float | None]) -> svg.Line:
    return svg.Line(name, x, y, f"var(--{COLORS[key]})", DASHES[key])


def _examples(found: Repaired) -> tuple[list[Row], list[Row]]:
    """Return test images with the predictions of both networks, and attributions for the first of them."""
    attack = found.backdoored.attack
    if isinstance(attack.rule, NoTarget) or attack.carried is not None:
        return _clean_examples(found)
    try:
        examples = choose_examples(found.backdoored, found.net)
    except ConfigError:  # the trigger works on no image
        return _clean_examples(found)
    rows = []
    for item, clean, triggered in zip(*examples, strict=True):
        tiles = [
            _tile(clean, "clean", f"backdoored: {_prediction(item.clean)}"),
            _tile(triggered, "triggered", f"backdoored: {_prediction(item.triggered)}", "trigger"),
            _tile(triggered, "purified", f"after the defense: {_prediction(item.purified)}", "polarizer"),
        ]
        rows.append(Row(f"Test image {item.index}: {item.truth}", tiles))
    names = class_names(found.backdoored.card.dataset)
    target = list(names).index(examples.items[0].triggered.label)
    pair = {"clean": examples.clean[0], "triggered": examples.triggered[0]}
    return rows, _maps(found, pair, names, target)


def _clean_examples(found: Repaired) -> tuple[list[Row], list[Row]]:
    """Return the same for clean test images, one of each of four classes: no trigger can be applied."""
    dataset = found.backdoored.card.dataset
    names, data = class_names(dataset), load_dataset(dataset, "test")
    labels = data.labels[:2000]
    picked = torch.tensor(first_of_each_class(labels, torch.ones(len(labels), dtype=torch.bool), 4))
    images = data.images[picked]
    before, after = predict_proba(found.backdoored.net, images), predict_proba(found.net, images)
    rows = [
        Row(
            f"Clean test image {int(index)}: {names[int(labels[index])]}",
            [
                _tile(image, "clean", f"before: {_prediction(top_class(names, one))}"),
                _tile(image, "clean", f"after: {_prediction(top_class(names, two))}", "polarizer"),
            ],
        )
        for index, image, one, two in zip(picked, images.numpy(), before, after, strict=True)
    ]
    return rows, _maps(found, {"clean": images[0].numpy()}, names, int(labels[picked[0]]))


def _maps(found: Repaired, images: Mapping[str, np.ndarray], names: Sequence[str], target: int) -> list[Row]:
    """Return each image with its attributions for the class `target`, before and after the defense."""
    x = torch.from_numpy(np.stack(list(images.values()))).float() / 255
    before, after = (attribute(net, x, target, METHOD).numpy() for net in (found.backdoored.net, found.net))
    scale = shared_scale(before, after)
    return [
        Row(
            f"Attributions for {names[target]}, {name} image",
            [
                _tile(image, name, ""),
                _tile(map_image(one, scale), "before", "backdoored network", "trigger"),
                _tile(map_image(two, scale), "after", "after the defense", "polarizer"),
            ],
        )
        for (name, image), one, two in zip(images.items(), before, after, strict=True)
    ]


def _tile(image: np.ndarray, title: str, caption: str, kind: str = "benign") -> Tile:
    """Return the tile of an image, (3, H, W) uint8."""
    return Tile(data_url(image), title, caption, kind)


def _prediction(prediction: Prediction) -> str:
    return f"{prediction.label}, {percent(prediction.probability)}"


def _model(found: Repaired) -> dict[str, Any]:
    card = found.backdoored.card
    return {
        "id": card.id, "sha256 of its weights": card.files.get("model.safetensors"),
        "architecture": card.arch, "width": card.width, "classes": card.num_classes,
        "image size": f"{card.image_size} x {card.image_size}",
        "mean": card.mean, "std": card.std, "attack": card.attack, "target": card.target,
        "poison ratio of its training set": card.poison_ratio,
    }  # fmt: skip


def _origin(run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "kind": "recorded, shipped with the project" if run.recorded else "live run",
        "state": run.state,
        "created": _moment(run.created),
        "ended": _moment(run.ended),
        "seconds of training": (result.get("seconds") or {}).get("train"),
        "clean images used": len(result.get("clean_indices") or []) or None,
        **(result.get("environment") or {}),
        "report written": _moment(datetime.now(UTC).timestamp()),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")

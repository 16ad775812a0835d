"""A run as one HTML file that explains itself: settings, curves, pictures, attributions, where the numbers come from.

Nothing in it is fetched and nothing runs: no script, every picture inside the file, every string escaped.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import npd_core
from npd_core.attacks import NoTarget
from npd_core.attribution import METHODS, attribute, shared_scale
from npd_core.data.load import class_names, load_dataset
from npd_core.errors import ConfigError, StorageError
from npd_core.evaluation import predict_proba
from npd_core.export.formats import Repaired, read_repaired
from npd_core.export.gallery import answer, choose_pictures, first_of_each_class
from npd_core.figures import svg, theme
from npd_core.figures.attributions import map_image
from npd_core.figures.curves import DASHES, read_losses, read_metrics
from npd_core.figures.predictions import png
from npd_core.fileio import write_text
from npd_core.names import CURVES, METRICS
from npd_core.runs.store import EVENTS, Run

METHOD = "integrated_gradients"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Picture(NamedTuple):
    """One picture with the words below it."""

    image: np.ndarray
    """(3, H, W) uint8."""
    title: str
    says: str
    tone: str = "benign"


class Row(NamedTuple):
    """Pictures that belong together."""

    heading: str
    pictures: list[Picture]


def write_report(folder: Path, out: Path) -> None:
    """Write the report of the run in `folder` to the file `out`. Raises as `run_report`; StorageError."""
    write_text(out, run_report(folder))


def run_report(folder: Path) -> str:
    """The report of a run with a network, as the text of an HTML file.

    Args:
        folder: of a run, or one that `npd defend --save` wrote.
    Raises:
        StorageError, UnknownNameError, CheckpointError, DataMissingError: the run, its model or its data cannot be
            read.
    """
    found = read_repaired(folder)
    return render(found, read_events(folder), *_pictures(found))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Event records of the run in `folder`; a torn line is left out. Raises StorageError."""
    try:
        lines = (folder / EVENTS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder / EVENTS} cannot be read ({error}): start the run again.") from error
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "type" in record:
            records.append(record)
    return records


def render(
    found: Repaired, records: Sequence[Mapping[str, Any]], rows: Sequence[Row], maps: Sequence[Row]
) -> str:
    """The HTML text, of a run and what was drawn for it."""
    run, card = found.run, found.backdoored.card
    result = run.result or {}
    title = f"{run.request.defense} on {card.id}"
    layer = result.get("layer")
    sections = [
        ("Before and after", _shares(result)),
        ("Training", _curves(records, result.get("before"))),
        ("Pictures", _rows(rows)),
        ("Where the networks look", _rows(maps) + (_note(_legend()) if maps else "")),
        ("The model", _facts(_model(found))),
        ("Settings", _facts(_flat(run.request.to_dict()))),
        ("Where the numbers come from", _facts(_provenance(run, result))),
    ]
    body = "".join(f"<section><h2>{escape(name)}</h2>{text}</section>" for name, text in sections if text)
    where = f" at <code>{escape(str(layer))}</code>" if layer else ""
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head><body><main>"
        f"<p class='small'>Neural Polarizer Lab {escape(npd_core.__version__)} · report of run "
        f"<code>{escape(run.id)}</code></p><h1>{escape(title)}</h1>"
        f"<p>{escape(_summary(result))}{' The polarizer stands' + where + '.' if where else ''}</p>"
        f"{body}</main></body></html>\n"
    )


def _summary(result: Mapping[str, Any]) -> str:
    before, after = result.get("before") or {}, result.get("after") or {}
    if before.get("acc") is None or after.get("acc") is None:
        return "This run was not measured."
    words = f"Clean accuracy went from {_percent(before['acc'])} to {_percent(after['acc'])}"
    if before.get("asr") is None or after.get("asr") is None:
        return words + ". The attack's success cannot be known: there were no pictures with the trigger."
    return words + f", the trigger's success from {_percent(before['asr'])} to {_percent(after['asr'])}."


def _shares(result: Mapping[str, Any]) -> str:
    before, after = result.get("before") or {}, result.get("after") or {}
    if not after:
        return ""
    lines = [
        f"<tr><th scope='row'>{METRICS[key].short}</th><td>{_percent(before.get(key))}</td><td>{_percent(after.get(key))}</td>"
        f"<td class='words'>{escape(METRICS[key].help)}</td></tr>"
        for key in CURVES
    ]
    der = result.get("der")
    lines.append(
        f"<tr><th scope='row'>DER</th><td></td><td>{'–' if der is None else f'{der:.3f}'}</td>"
        "<td class='words'>defense effectiveness: 1 is a full repair, 0.5 is nothing done</td></tr>"
    )
    head = "<tr><th></th><th scope='col'>before</th><th scope='col'>after</th><th></th></tr>"
    return f"<div class='wide'><table>{head}{''.join(lines)}</table></div>"


def _curves(records: Sequence[Mapping[str, Any]], before: Mapping[str, Any] | None) -> str:
    drawn = ""
    measured = read_metrics(records, before)
    if len(measured.epochs) > 1:
        shades = {"acc": "var(--benign)", "asr": "var(--trigger)", "ra": "var(--polarizer)"}
        lines = [
            svg.Line(
                METRICS[name].short, measured.epochs, getattr(measured, name), shades[name], DASHES[name]
            )
            for name in CURVES
        ]
        drawn += _figure(
            svg.curves(lines, title="ACC, ASR and RA by epoch", x_title="epoch", percent=True),
            "On test pictures after each epoch. They are only measured, never trained on.",
        )
    losses = read_losses(records)
    if losses.x:
        names = {"total": "total", "bn": "L bn", "asr": "L asr", "bce1": "L bce1", "bce2": "L bce2"}
        shades = {
            "total": "var(--text)",
            "bn": "var(--benign)",
            "asr": "var(--trigger)",
            "bce1": "var(--polarizer)",
        }
        lines = [
            svg.Line(names[name], losses.x, values, shades.get(name, "var(--green)"), DASHES[name])
            for name, values in losses.terms.items()
        ]
        drawn += _figure(
            svg.curves(lines, title="Loss terms by epoch", x_title="epoch", log=True),
            "Loss terms, which the training lowers; logarithmic. Warm-up is left of 0.",
        )
    return f"<div class='two'>{drawn}</div>" if drawn else ""


def _figure(drawing: str, words: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(words)}</figcaption></figure>"


def _pictures(found: Repaired) -> tuple[list[Row], list[Row]]:
    """Pictures with what both networks say, and maps for the first of them."""
    if isinstance(found.backdoored.attack.rule, NoTarget) or found.backdoored.attack.carried is not None:
        return _clean_pictures(found)
    try:
        chosen = choose_pictures(found.backdoored, found.net)
    except ConfigError:  # the trigger works on no picture: then the clean ones say most
        return _clean_pictures(found)
    rows = []
    for item, clean, triggered in zip(*chosen, strict=True):
        pictures = [
            Picture(clean, "clean", f"backdoored: {_said(item.clean)}"),
            Picture(triggered, "triggered", f"backdoored: {_said(item.triggered)}", "trigger"),
            Picture(triggered, "purified", f"after the defense: {_said(item.purified)}", "polarizer"),
        ]
        rows.append(Row(f"Test picture {item.index}: {item.truth}", pictures))
    names = class_names(found.backdoored.card.dataset)
    first = chosen.items[0]
    pair = {"clean": chosen.clean[0], "triggered": chosen.triggered[0]}
    return rows, _maps(found, pair, names, list(names).index(first.triggered.label))


def _clean_pictures(found: Repaired) -> tuple[list[Row], list[Row]]:
    """Without a trigger that can be stamped: clean test pictures, one of each of four classes."""
    card = found.backdoored.card
    names, data = class_names(card.dataset), load_dataset(card.dataset, "test")
    labels = data.labels[:2000]
    picked = torch.tensor(first_of_each_class(labels, torch.ones(len(labels), dtype=torch.bool), 4))
    images = data.images[picked]
    before, after = predict_proba(found.backdoored.net, images), predict_proba(found.net, images)
    rows = [
        Row(
            f"Clean picture {int(index)}: {names[int(labels[index])]}",
            [
                Picture(image, "clean", f"before: {_said(answer(names, one))}"),
                Picture(image, "clean", f"after: {_said(answer(names, two))}", "polarizer"),
            ],
        )
        for index, image, one, two in zip(picked, images.numpy(), before, after, strict=True)
    ]
    return rows, _maps(found, {"clean": images[0].numpy()}, names, int(labels[picked[0]]))


def _maps(
    found: Repaired, pictures: Mapping[str, np.ndarray], names: Sequence[str], target: int
) -> list[Row]:
    x = torch.from_numpy(np.stack(list(pictures.values()))).float() / 255
    pair = [attribute(net, x, target, METHOD).numpy() for net in (found.backdoored.net, found.net)]
    scale = shared_scale(*pair)
    return [
        Row(
            f"What speaks for {names[target]} in the {name} picture",
            [
                Picture(image, name, ""),
                Picture(map_image(pair[0][at], scale), "before", "backdoored network", "trigger"),
                Picture(map_image(pair[1][at], scale), "after", "after the defense", "polarizer"),
            ],
        )
        for at, (name, image) in enumerate(pictures.items())
    ]


def _legend() -> str:
    info = METHODS[METHOD]
    return f"{info.title} ({info.source}). {info.sentence} Orange speaks for the class, blue against it, on one scale."


def _said(said: Any) -> str:
    return f"{said.label}, {_percent(said.probability)}"


def _rows(rows: Iterable[Row]) -> str:
    return "".join(
        f"<h3>{escape(row.heading)}</h3><div class='pictures'>"
        + "".join(
            f"<figure class='{escape(p.tone)}'><img alt='{escape(f'{row.heading}, {p.title}', quote=True)}' "
            f"src='data:image/png;base64,{base64.b64encode(png(p.image)).decode()}'>"
            f"<figcaption><b>{escape(p.title)}</b> {escape(p.says)}</figcaption></figure>"
            for p in row.pictures
        )
        + "</div>"
        for row in rows
    )


def _model(found: Repaired) -> dict[str, Any]:
    card = found.backdoored.card
    return {
        "id": card.id, "sha256 of its weights": card.files.get("model.safetensors"), "architecture": card.arch,
        "width": card.width, "classes": card.num_classes, "picture size": f"{card.image_size} x {card.image_size}",
        "mean": card.mean, "std": card.std, "attack": card.attack, "attacker's target": card.target,
        "poisoned share of its training set": card.poison_ratio,
    }  # fmt: skip


def _provenance(run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    seconds = result.get("seconds") or {}
    facts: dict[str, Any] = {
        "kind": "recorded, shipped with the project" if run.recorded else "a live run",
        "state": run.state,
        "asked for": _moment(run.created),
        "ended": _moment(run.ended),
        "seconds of training": seconds.get("train"),
        "clean pictures used": len(result.get("clean_indices") or []) or None,
        **(result.get("environment") or {}),
        "report written": _moment(datetime.now(UTC).timestamp()),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _facts(values: Mapping[str, Any]) -> str:
    show: Callable[[Any], str] = lambda v: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)  # noqa: E731
    lines = (f"<div><dt>{escape(str(k))}</dt><dd>{escape(show(v))}</dd></div>" for k, v in values.items())
    return f"<dl>{''.join(lines)}</dl>"


def _note(words: str) -> str:
    return f"<p class='small'>{escape(words)}</p>"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _style() -> str:
    def colors(mode: str) -> str:
        found = theme.palette(mode)
        return "".join(
            f"--{name}: {getattr(found, name)};"
            for name in ("benign", "trigger", "polarizer", "green", "text", "muted", "grid", "background")
        )

    return (
        f":root {{ color-scheme: light dark; {colors('light')} }}"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {colors('dark')} }} }}"
        f"body {{ margin: 0; background: var(--background); color: var(--text); font: 17px/1.5 {theme.FONT}; }}"
        "main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }"
        "h1 { font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; margin: .2rem 0; }"
        "h2 { font-size: 1.35rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }"
        ".small, figcaption { color: var(--muted); font-size: .9rem; }"
        ".wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }"
        "th, td { text-align: right; padding: .35rem .8rem; border-bottom: 1px solid var(--grid); }"
        "th[scope=row], .words { text-align: left; } .words { color: var(--muted); min-width: 12rem; }"
        ".two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }"
        "figure { margin: 0; } svg { width: 100%; height: auto; } svg text { fill: var(--muted); font-size: 13px; }"
        "svg .grid { stroke: var(--grid); fill: none; }"
        ".pictures { display: grid; grid-template-columns: repeat(3, minmax(0, 11rem)); gap: 1rem; }"
        ".pictures img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; box-sizing: border-box;"
        " border-radius: 6px; border: 3px solid var(--benign); }"
        ".trigger img { border: 3px dashed var(--trigger); } .polarizer img { border: 3px double var(--polarizer); }"
        "dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .2rem 2rem;"
        " margin: 0; } dl div { border-bottom: 1px solid var(--grid); padding: .25rem 0; }"
        "dt { color: var(--muted); font-size: .85rem; } dd { margin: 0; overflow-wrap: anywhere; }"
    )

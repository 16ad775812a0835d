"""Pictures with what two networks say of them, as plain HTML: crisp pixels, words and marks beside every colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import streamlit as st

from npd_core.figures import theme
from npd_core.figures.attributions import MapGrid, map_image, scale_stops
from npd_core.figures.predictions import GAIN, data_url, difference, judge, top_classes
from pages.shared.cache.images import Samples

SHOWN = 3
"""Classes with a bar under each picture."""
MARKS = {"right": "✓", "hijacked": "⚠", "wrong": "✗", "open": ""}
SAYINGS = {"right": "right", "hijacked": "hijacked", "wrong": "wrong", "open": "says"}


class Opinion(NamedTuple):
    """What one network says of one picture."""

    who: str
    probabilities: np.ndarray  # (K,) in [0, 1]
    polarized: bool


class Tile(NamedTuple):
    """One picture with the opinions on it."""

    title: str
    image: np.ndarray  # (3, H, W) uint8
    alt: str
    opinions: list[Opinion]
    note: str = ""
    tone: str = "benign"  # benign, trigger or polarizer: the border


class Sample(NamedTuple):
    """One picture in all its states."""

    heading: str
    label: int | None
    """None: the picture shows none of the classes, or nobody knows what it shows."""
    target: int | None
    """None: there is nothing to be hijacked to."""
    tiles: list[Tile]


def mode() -> str:
    """Whether the visitor's theme is "light" or "dark"."""
    return "dark" if st.context.theme.type == "dark" else "light"


def sample(
    chosen: Samples,
    place: int,
    names: Sequence[str],
    backdoored: tuple[np.ndarray, np.ndarray],
    polarized: tuple[np.ndarray, np.ndarray] | None,
    *,
    amplified: bool = False,
    trigger: bool = True,
) -> Sample:
    """One of the chosen test pictures in its states.

    Args:
        place: which of them.
        backdoored, polarized: probabilities (K,) of the clean, then of the triggered picture.
        trigger: False for a network without one: only the clean picture is shown.
    """
    clean, triggered = chosen.clean[place], chosen.triggered[place]
    label, target = int(chosen.labels[place]), int(chosen.targets[place])
    tiles = states(
        clean, triggered if trigger else None, names[label], backdoored, polarized, amplified=amplified
    )
    if trigger and not chosen.eligible[place]:
        tiles[1] = tiles[1]._replace(
            note="This already is the attacker’s class: the trigger has nothing to do."
        )
    return Sample(f"#{chosen.indices[place]} · {names[label]}", label, target, tiles)


def states(
    clean: np.ndarray,
    triggered: np.ndarray | None,
    what: str,
    backdoored: tuple[np.ndarray, np.ndarray],
    polarized: tuple[np.ndarray, np.ndarray] | None,
    *,
    amplified: bool = False,
    before: str = "backdoored",
) -> list[Tile]:
    """A picture clean, triggered and purified, and the difference if asked for.

    Args:
        clean, triggered: (3, H, W) uint8; without a triggered one only the clean picture is shown.
        what: what it shows, in words.
        backdoored, polarized: probabilities (K,) of the clean, then of the triggered picture.
        before: name of the network without the polarizer.
    """
    if triggered is None:
        before = "network"
    found = [
        Tile(
            "Clean",
            clean,
            f"Test picture of {what}",
            [
                Opinion(before, backdoored[0], False),
                *([Opinion("with polarizer", polarized[0], True)] if polarized else []),
            ],
        )
    ]
    if triggered is None:
        return found
    found.append(
        Tile(
            "Triggered",
            triggered,
            f"The same picture of {what} with the trigger",
            [Opinion(before, backdoored[1], False)],
            "",
            "trigger",
        )
    )
    if polarized:
        found.append(
            Tile(
                "Purified",
                triggered,
                f"The triggered picture of {what}, judged through the polarizer",
                [Opinion("with polarizer", polarized[1], True)],
                "",
                "polarizer",
            )
        )
    if amplified:
        found.append(change(clean, triggered))
    return found


def change(clean: np.ndarray, triggered: np.ndarray) -> Tile:
    """What the trigger did to a picture, (3, H, W) uint8 each, made visible."""
    return Tile(
        f"Change × {GAIN}",
        difference(clean, triggered),
        "What the trigger changed, amplified",
        [],
        "Grey: unchanged.",
        "muted",
    )


def show(samples: Sequence[Sample], names: Sequence[str]) -> None:
    """Draw the samples, as many beside each other as fit."""
    body = "".join(_sample(sample, names) for sample in samples)
    st.html(f"<style>{_css()}</style><div class='npd-gallery'>{body}</div>")


def show_maps(grid: MapGrid) -> None:
    """Draw the pictures with their maps, and the one colour scale of them all."""
    cells = []
    for row, picture, maps, notes in zip(grid.rows, grid.pictures, grid.maps, grid.notes, strict=True):
        cells.append(_cell(row, "", picture, row))
        cells += [
            _cell(name, note, map_image(found, grid.scale, mode()), f"Map of {name}, {row}: {note}")
            for name, note, found in zip(grid.columns, notes, maps, strict=True)
        ]
    stops = ", ".join(f"{color} {at:.0%}" for at, color in scale_stops(mode()))
    st.html(
        f"<style>{_css()}</style>"
        f"<div class='npd-maps' style='--columns: {1 + len(grid.columns)}'>{''.join(cells)}</div>"
        f"<div class='npd-legend'><span>against {-grid.scale:.2g}</span>"
        f"<i style='background: linear-gradient(90deg, {stops})'></i><span>{grid.scale:.2g} for</span>"
        f"<em>{escape(grid.unit)}</em></div>"
    )


def thumbnail(image: np.ndarray | None, alt: str, missing: str) -> None:
    """One small picture, (3, H, W) uint8; without one, the word `missing` in a frame of the same size."""
    words = escape(missing)
    inside = words if image is None else f"<img src='{data_url(image)}' alt='{escape(alt, quote=True)}'>"
    st.html(f"<style>{_css()}</style><div class='npd-thumbnail'>{inside}</div>")


def show_rows(titles: Sequence[str], pictures: Sequence[Sequence[np.ndarray]]) -> None:
    """Draw pictures in a table without words: a row for each title, a column for each of `pictures`.

    Args:
        pictures: as many (3, H, W) uint8 arrays in each as there are titles.
    """
    rows = "".join(
        f"<div class='npd-row'><b>{escape(title)}</b>"
        + "".join(
            f"<img src='{data_url(column[i])}' alt='{escape(title, quote=True)}, picture {k}'>"
            for k, column in enumerate(pictures, 1)
        )
        + "</div>"
        for i, title in enumerate(titles)
    )
    st.html(f"<style>{_css()}</style><div class='npd-rows' style='--columns: {len(pictures)}'>{rows}</div>")


def facts(rows: Mapping[str, str]) -> None:
    """Names and values in two columns; long values break wherever they must."""
    body = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows.items())
    st.html(f"<style>{_css()}</style><dl class='npd-facts'>{body}</dl>")


def _cell(title: str, note: str, image: np.ndarray, alt: str) -> str:
    return (
        f"<figure class='npd-tile npd-muted'><figcaption>{escape(title)}<small>{escape(note) or '&nbsp;'}</small>"
        f"</figcaption><img src='{data_url(image)}' alt='{escape(alt, quote=True)}'></figure>"
    )


def _sample(sample: Sample, names: Sequence[str]) -> str:
    drawn = "".join(_tile(tile, sample.label, sample.target, names) for tile in sample.tiles)
    return f"<section class='npd-sample'><h4>{escape(sample.heading)}</h4><div class='npd-tiles'>{drawn}</div></section>"


def _tile(tile: Tile, label: int | None, target: int | None, names: Sequence[str]) -> str:
    if label is None and tile.tone == "benign":
        target = None
    opinions = "".join(_opinion(opinion, label, target, names) for opinion in tile.opinions)
    note = f"<p class='npd-note'>{escape(tile.note)}</p>" if tile.note else ""
    return (
        f"<figure class='npd-tile npd-{tile.tone}'><figcaption>{escape(tile.title)}</figcaption>"
        f"<img src='{data_url(tile.image)}' alt='{escape(tile.alt, quote=True)}'>{opinions}{note}</figure>"
    )


def _verdict(said: int, label: int | None, target: int | None) -> str:
    if label is None:
        return "hijacked" if said == target else "open"
    return judge(said, label, label if target is None else target)


def _opinion(opinion: Opinion, label: int | None, target: int | None, names: Sequence[str]) -> str:
    said = int(opinion.probabilities.argmax())
    verdict = _verdict(said, label, target)
    rows = "".join(
        f"<li class='{'npd-said' if k == said else ''}'><span>{escape(names[k])}</span>"
        f"<span class='npd-number'>{percent(float(opinion.probabilities[k]))}</span>"
        f"<span class='npd-meter'><i style='width:{100 * float(opinion.probabilities[k]):.1f}%'></i></span></li>"
        for k in top_classes([opinion.probabilities], top=SHOWN)
    )
    who = "npd-new" if opinion.polarized else "npd-old"
    return (
        f"<div class='npd-opinion {who}'><p><span class='npd-who'>{escape(opinion.who)}</span> "
        f"<b class='npd-{verdict}'>{MARKS[verdict]} {SAYINGS[verdict]}</b></p><ul>{rows}</ul></div>"
    )


def percent(value: float) -> str:
    """Whole percent, but never a full 100% or 0% for what only comes near."""
    if 0.995 <= value < 0.9995 or 0.0005 <= value < 0.005:
        return f"{value:.1%}"
    return f"{value:.0%}"


def _css() -> str:
    colors = theme.palette(mode())
    panel = "#F3F4FA" if mode() == "light" else "#151C33"
    return f"""
.npd-gallery {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }}
.npd-sample {{ background: {panel}; border-radius: 12px; padding: .75rem 1rem 1rem; color: {colors.text}; }}
.npd-sample h4 {{ margin: 0 0 .5rem; padding: 0; font-size: 1.05rem; font-weight: 600; }}
.npd-tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(5.5rem, 1fr)); gap: .8rem;
    align-items: start; }}
.npd-tile {{ margin: 0; min-width: 0; max-width: 14rem; }}
.npd-tile figcaption {{ white-space: nowrap; font-weight: 600; font-size: .95rem; margin-bottom: .25rem; }}
.npd-tile img {{ width: 100%; aspect-ratio: 1; image-rendering: pixelated; border-radius: 6px; display: block;
    box-sizing: border-box; border: 3px solid {colors.benign}; }}
.npd-trigger img {{ border: 3px dashed {colors.trigger}; }}
.npd-polarizer img {{ border: 3px double {colors.polarizer}; }}
.npd-muted img {{ border: 1px solid {colors.muted}; }}
.npd-opinion {{ margin-top: .5rem; font-size: .85rem; }}
.npd-opinion p {{ margin: 0 0 .15rem; font-size: .9rem; display: flex; flex-wrap: wrap; justify-content: space-between;
    column-gap: .4rem; }}
.npd-who {{ color: {colors.muted}; }}
.npd-right {{ color: {colors.green}; }}
.npd-hijacked {{ color: {colors.trigger}; }}
.npd-open {{ color: {colors.text}; font-weight: 400; }}
.npd-wrong {{ color: {colors.text}; text-decoration: underline dotted; text-underline-offset: 3px; }}
.npd-opinion ul {{ list-style: none; margin: 0; padding: 0; }}
.npd-opinion li {{ margin: 0 0 .3rem; padding: 0; display: flex; flex-wrap: wrap; justify-content: space-between;
    column-gap: .4rem; font-size: .8rem; line-height: 1.25; color: {colors.text}; }}
.npd-opinion li span {{ min-width: 0; overflow-wrap: break-word; }}
.npd-opinion li .npd-number {{ margin-left: auto; font-variant-numeric: tabular-nums; }}
.npd-said {{ font-weight: 600; }}
.npd-opinion li .npd-meter {{ flex: 0 0 100%; height: .4rem; border-radius: 2px; background: {colors.grid};
    overflow: hidden; }}
.npd-meter i {{ display: block; height: 100%; min-width: 1px; }}
.npd-old .npd-meter i {{
    background: repeating-linear-gradient(135deg, {colors.trigger} 0 3px, {colors.trigger}99 3px 5px); }}
.npd-new .npd-meter i {{ background: {colors.polarizer}; }}
.npd-maps {{ display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 1rem; max-width: 62rem;
    color: {colors.text}; }}
.npd-maps .npd-tile {{ max-width: none; display: flex; flex-direction: column; justify-content: space-between; }}
.npd-maps figcaption {{ font-size: clamp(.72rem, 2.6vw, .95rem); line-height: 1.25; white-space: normal; }}
.npd-maps small {{ display: block; font-weight: 400; color: {colors.muted}; }}
.npd-legend {{ display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .7rem; max-width: 62rem;
    margin-top: .8rem; font-size: .9rem; color: {colors.text}; }}
.npd-legend i {{ flex: 1 1 5rem; height: .8rem; border-radius: 3px; border: 1px solid {colors.grid}; }}
.npd-legend em {{ flex-basis: 100%; color: {colors.muted}; font-style: normal; }}
.npd-thumbnail {{ aspect-ratio: 1; border-radius: 6px; overflow: hidden; display: grid; place-items: center;
    border: 1px solid {colors.muted}; color: {colors.muted}; font-size: .9rem; }}
.npd-thumbnail img {{ width: 100%; height: 100%; image-rendering: pixelated; display: block; }}
dl.npd-facts {{ display: grid; grid-template-columns: minmax(8rem, 1fr) 3fr; margin: 0 !important; padding: 0;
    font-size: .95rem; color: {colors.text}; }}
.npd-facts dt, .npd-facts dd {{ margin: 0; padding: .4rem .5rem .4rem 0; border-bottom: 1px solid {colors.grid};
    overflow-wrap: anywhere; }}
.npd-facts dt {{ color: {colors.muted}; }}
.npd-rows {{ display: grid; gap: .7rem; max-width: 44rem; color: {colors.text}; }}
.npd-row {{ display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: .5rem; }}
.npd-row b {{ grid-column: 1 / -1; font-weight: 600; font-size: .95rem; }}
.npd-row img {{ width: 100%; aspect-ratio: 1; image-rendering: pixelated; border-radius: 6px; display: block;
    box-sizing: border-box; border: 1px solid {colors.muted}; }}
.npd-note {{ color: {colors.muted}; font-size: .8rem; margin: .4rem 0 0; }}
"""

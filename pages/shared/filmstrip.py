"""What a network says of one picture at every epoch of a run, frame beside frame: word and mark beside every colour."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import streamlit as st

from npd_core.errors import NPDError
from npd_core.figures import theme
from npd_core.figures.predictions import data_url, judge
from npd_core.zoo.card import Card
from pages.shared import cache, tiles

MOST = 13
"""Frames of a strip, at most: the epochs between are left out evenly."""
PICTURES = 3
"""Strips that a finished run is shown with."""


class Film(NamedTuple):
    """One picture through the epochs. `said` and `sure` have one value per epoch."""

    title: str
    picture: np.ndarray  # (3, H, W) uint8
    label: int
    target: int
    epochs: list[int]
    said: list[int]
    sure: list[float]


def film(
    title: str, picture: np.ndarray, label: int, target: int, epochs: list[int], answers: Sequence[np.ndarray]
) -> Film:
    """The film of a picture, given the probabilities (K,) of each epoch."""
    said = [int(answer.argmax()) for answer in answers]
    return Film(
        title, picture, label, target, epochs, said, [float(a[k]) for a, k in zip(answers, said, strict=True)]
    )


def thinned(epochs: Sequence[int], most: int = MOST, always: int | None = None) -> list[int]:
    """At most `most` epochs, evenly spread, first and last among them, and `always` in place of its nearest."""
    if len(epochs) <= most:
        return list(epochs)
    places = {round(i * (len(epochs) - 1) / (most - 1)) for i in range(most)}
    kept = sorted(epochs[i] for i in places)
    if always is not None and always in epochs and always not in kept:
        distances = {abs(epoch - always): epoch for epoch in reversed(kept[1:-1])}
        kept[kept.index(distances[min(distances)])] = always
    return sorted(kept)


def show(
    films: Sequence[Film], names: Sequence[str], chosen: int | None = None, coming: Sequence[int] = ()
) -> None:
    """Draw the films below each other, the frame of epoch `chosen` marked. Long ones scroll in their own line.

    Args:
        coming: epochs that are still to come, for which an empty frame is kept.
    """
    rows = "".join(_row(one, names, chosen, coming) for one in films)
    st.html(f"<style>{_css()}</style><div class='npd-films'>{rows}</div>")


def of_run(run_id: str, card: Card, chosen: int | None) -> None:
    """A few triggered test pictures through the epochs that a run kept, or a sentence on why there are none."""
    epochs = thinned(cache.runs.epochs_of(cache.runs.find_run(run_id).folder), always=chosen)
    try:
        indices = cache.images.hijacked(card.id)[:PICTURES]
        if not indices:
            st.caption("The trigger hijacks none of the first test pictures, so there is no film to show.")
            return
        pictures = cache.images.samples(card.id, indices)
        answers = [cache.runs.at_epoch(run_id, epoch, pictures.triggered) for epoch in epochs]
        names = cache.images.class_names(card.dataset)
    except NPDError as error:
        st.caption(f":material/info: {error}")
        return
    films = [
        film(
            f"Test picture #{index} · {names[int(pictures.labels[row])]}, with the trigger",
            pictures.triggered[row],
            int(pictures.labels[row]),
            int(pictures.targets[row]),
            epochs,
            [answer[row] for answer in answers],
        )
        for row, index in enumerate(indices)
    ]
    show(films, names, chosen)


def _row(one: Film, names: Sequence[str], chosen: int | None, coming: Sequence[int]) -> str:
    frames = "".join(
        _frame(one, names, epoch, said, sure, epoch == chosen)
        for epoch, said, sure in zip(one.epochs, one.said, one.sure, strict=True)
    )
    frames += "".join(
        f"<li class='npd-f-coming'><i></i><small>{_when(epoch)}</small></li>" for epoch in coming
    )
    address = data_url(one.picture)
    return (
        f"<section><h5>{escape(one.title)}</h5><ol tabindex='0' aria-label='{escape(one.title, quote=True)}, by epoch' "
        f"style='--picture: url(\"{address}\")'>{frames}</ol></section>"
    )


def _frame(one: Film, names: Sequence[str], epoch: int, said: int, sure: float, on: bool) -> str:
    verdict = judge(said, one.label, one.target)
    mark = tiles.MARKS[verdict]
    return (
        f"<li class='npd-f-{verdict}{' npd-on' if on else ''}'><i></i><small>{_when(epoch)}</small>"
        f"<b>{mark} {escape(names[said])}</b><span>{tiles.percent(sure)}</span></li>"
    )


def _when(epoch: int) -> str:
    return "start" if epoch == 0 else f"epoch {epoch}"


def _css() -> str:
    colors = theme.palette(tiles.mode())
    return f"""
.npd-films section {{ margin: 0 0 .8rem; }}
.npd-films h5 {{ margin: 0 0 .3rem; padding: 0; font-size: .95rem; font-weight: 600; }}
.npd-films ol {{ list-style: none; display: flex; gap: .5rem; margin: 0; padding: 4px 4px .6rem; overflow-x: auto;
    scrollbar-width: thin; }}
.npd-films ol:focus-visible {{ outline: 3px solid {colors.polarizer}; outline-offset: 1px; border-radius: 6px; }}
.npd-films li {{ flex: 0 0 4.8rem; min-height: 9.5rem; margin: 0; padding: 0;
    font-size: .82rem; line-height: 1.25; color: {colors.text}; }}
.npd-films li i {{ display: block; width: 100%; aspect-ratio: 1; background: var(--picture) 0 0 / 100% 100%;
    image-rendering: pixelated; border-radius: 6px; box-sizing: border-box; border: 3px solid {colors.muted}; }}
.npd-films li.npd-f-right i {{ border: 3px solid {colors.green}; }}
.npd-films li.npd-f-hijacked i {{ border: 3px dashed {colors.trigger}; }}
.npd-films li.npd-f-coming i {{ background: none; border: 2px dotted {colors.grid}; }}
.npd-films li small {{ display: block; color: {colors.muted}; font-size: .8rem; margin-top: .2rem; }}
.npd-films li b {{ display: block; font-weight: 600; overflow-wrap: anywhere; }}
.npd-films li.npd-f-right b {{ color: {colors.green}; }}
.npd-films li.npd-f-hijacked b {{ color: {colors.trigger}; }}
.npd-films li span {{ font-variant-numeric: tabular-nums; }}
.npd-films li.npd-on {{ outline: 3px solid {colors.polarizer}; outline-offset: 1px; border-radius: 6px; }}
"""

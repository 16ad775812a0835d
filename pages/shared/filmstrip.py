"""The predictions for a few images after each epoch of a run, frame beside frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import streamlit as st

from npd_core.errors import NPDError
from npd_core.figures.predictions import data_url
from npd_core.zoo.card import Card
from pages.shared import cache, tiles
from pages.shared.text import message

MOST = 13
"""Most frames of a film; the epochs between are left out evenly."""
FILMS = 3
"""Films of a finished run."""


def film(
    title: str, image: np.ndarray, known: tiles.Judge, epochs: Sequence[int], answers: Sequence[np.ndarray]
) -> tiles.Film:
    """Return the film of an image, (3, H, W) uint8, given the probabilities (K,) after each epoch."""
    predictions = [known.prediction(answer, bars=0) for answer in answers]
    return tiles.Film(title, data_url(image), list(zip(epochs, predictions, strict=True)))


def thinned(epochs: Sequence[int], most: int = MOST, always: int | None = None) -> list[int]:
    """Return at most `most` epochs, evenly spread, with the first and the last.

    Args:
        always: an epoch that takes the place of its nearest one.
    """
    if len(epochs) <= most:
        return list(epochs)
    places = {round(i * (len(epochs) - 1) / (most - 1)) for i in range(most)}
    kept = sorted(epochs[i] for i in places)
    if always is not None and always in epochs and always not in kept:
        distances = {abs(epoch - always): epoch for epoch in reversed(kept[1:-1])}
        kept[kept.index(distances[min(distances)])] = always
    return sorted(kept)


def show_run(run_id: str, card: Card, chosen: int | None) -> None:
    """Show triggered test images after the epochs that a run kept. Args: chosen: epoch that is marked."""
    epochs = thinned(cache.runs.epochs_of(cache.runs.find_run(run_id).folder), always=chosen)
    try:
        indices = cache.images.clear(card.id)[:FILMS]
        if not indices:
            return
        images = cache.images.samples(card.id, indices)
        answers = [cache.runs.at_epoch(run_id, epoch, images.triggered) for epoch in epochs]
        names = cache.images.class_names(card.dataset)
    except NPDError as error:
        st.caption(f":material/info: {message(error)}")
        return
    films = []
    for row, index in enumerate(indices):
        known = tiles.Judge(names, int(images.labels[row]), int(images.targets[row]))
        title = f"Test image #{index} · {names[int(images.labels[row])]}, with the trigger"
        films.append(film(title, images.triggered[row], known, epochs, [answer[row] for answer in answers]))
    tiles.show_films(films, chosen)

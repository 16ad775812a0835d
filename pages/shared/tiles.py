"""Images with predictions as HTML: whole pixels, and a word and a mark beside every color.

The markup is `tiles.html`, the style `assets/ui/tiles.css`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import streamlit as st

from npd_core.figures.attributions import MapGrid, map_image, scale_stops
from npd_core.figures.predictions import GAIN, data_url, difference, judge, top_classes
from pages.shared.cache.images import Samples

if TYPE_CHECKING:
    from jinja2.environment import TemplateModule

BARS = 3
"""Classes with a bar beside a prediction."""
MARKS = {"right": "✓", "hijacked": "⚠", "wrong": "✗", "open": ""}
WORDS = {"right": "right", "hijacked": "hijacked", "wrong": "wrong", "open": "predicts"}


class Prediction(NamedTuple):
    """What one network predicts for one image, ready to be shown."""

    who: str
    name: str
    """Predicted class."""
    probability: float
    verdict: str
    """A key of MARKS; "open" where the true class is unknown."""
    bars: Sequence[tuple[str, float]] = ()
    """The most probable classes with their probabilities, most probable first."""
    polarized: bool = False
    say: str = ""
    """The verdict in other words than those of WORDS."""

    @property
    def mark(self) -> str:
        return MARKS[self.verdict]

    @property
    def word(self) -> str:
        return self.say or WORDS[self.verdict]


class Tile(NamedTuple):
    """One image with predictions."""

    title: str
    image: str
    """Data URL of a PNG."""
    alt: str
    predictions: Sequence[Prediction] = ()
    note: str = ""
    tone: str = "benign"
    """Border: benign, trigger, polarizer or muted."""


class Sample(NamedTuple):
    """The tiles of one image."""

    heading: str
    tiles: Sequence[Tile]


class Film(NamedTuple):
    """The predictions for one image after each epoch."""

    title: str
    image: str
    """Data URL of a PNG."""
    frames: Sequence[tuple[int, Prediction]]
    """Epoch and prediction; epoch 0 is the start."""


class Judge(NamedTuple):
    """The known facts of an image: the names of the classes, its true class and the target class."""

    names: Sequence[str]
    label: int | None
    """None: the image shows none of the classes, or its content is unknown."""
    target: int | None
    """None: there is nothing to be hijacked to."""

    def prediction(
        self, probabilities: np.ndarray, who: str = "", *, bars: int = BARS, polarized: bool = False
    ) -> Prediction:
        """Judge probabilities, (K,). Args: bars: number of classes with a bar."""
        found = int(probabilities.argmax())
        if self.label is None:
            verdict = "hijacked" if found == self.target else "open"
        else:
            verdict = judge(found, self.label, self.label if self.target is None else self.target)
        top = top_classes([probabilities], top=bars) if bars else []
        rows = [(self.names[k], float(probabilities[k])) for k in top]
        return Prediction(who, self.names[found], float(probabilities[found]), verdict, rows, polarized)


def mode() -> str:
    """Return whether the visitor's theme is "light" or "dark"."""
    return "dark" if st.context.theme.type == "dark" else "light"


def percent(value: float) -> str:
    """Return a whole percentage, but never 100% or 0% for what only comes near."""
    if 0.995 <= value < 0.9995 or 0.0005 <= value < 0.005:
        return f"{value:.1%}"
    return f"{value:.0%}"


def epoch_name(epoch: int) -> str:
    return f"epoch {epoch}" if epoch else "start"


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
    """Return the tiles of one of the chosen test images.

    Args:
        place: which of them.
        backdoored, polarized: probabilities (K,) of the clean, then of the triggered image.
        trigger: False for a clean model: only the clean image is shown.
    """
    clean, triggered = chosen.clean[place], chosen.triggered[place] if trigger else None
    known = Judge(names, int(chosen.labels[place]), int(chosen.targets[place]))
    name = names[int(chosen.labels[place])]
    tiles = states(clean, triggered, name, known, backdoored, polarized, amplified=amplified)
    if trigger and not chosen.eligible[place]:
        tiles[1] = tiles[1]._replace(note="The image already belongs to the target class.")
    return Sample(f"#{chosen.indices[place]} · {name}", tiles)


def states(
    clean: np.ndarray,
    triggered: np.ndarray | None,
    what: str,
    known: Judge,
    backdoored: tuple[np.ndarray, np.ndarray],
    polarized: tuple[np.ndarray, np.ndarray] | None,
    *,
    amplified: bool = False,
    before: str = "backdoored",
) -> list[Tile]:
    """Return an image clean, triggered and purified, and the amplified difference if requested.

    Args:
        clean, triggered: (3, H, W) uint8; without a triggered one only the clean image is shown.
        what: what the image shows, in words.
        backdoored, polarized: probabilities (K,) of the clean, then of the triggered image.
        before: name of the network without the polarizer.
    """
    # An unknown clean image that gets the target class is not hijacked.
    clean_judge = known._replace(target=None) if known.label is None else known
    before, after = "network" if triggered is None else before, "with polarizer"
    predictions = [clean_judge.prediction(backdoored[0], before)]
    if polarized:
        predictions.append(clean_judge.prediction(polarized[0], after, polarized=True))
    found = [Tile("Clean", data_url(clean), f"Test image of {what}", predictions)]
    if triggered is None:
        return found
    image, alt = data_url(triggered), f"The same image of {what} with the trigger"
    found.append(Tile("Triggered", image, alt, [known.prediction(backdoored[1], before)], "", "trigger"))
    if polarized:
        purified = known.prediction(polarized[1], after, polarized=True)
        alt = f"The triggered image of {what}, predicted with the polarizer"
        found.append(Tile("Purified", image, alt, [purified], "", "polarizer"))
    if amplified:
        change, alt = data_url(difference(clean, triggered)), "What the trigger changed, amplified"
        found.append(Tile(f"Change × {GAIN}", change, alt, (), "Gray: unchanged.", "muted"))
    return found


def show(samples: Sequence[Sample], *, small: bool = False) -> None:
    """Draw the samples, as many side by side as fit. Args: small: in narrower cards."""
    _draw("gallery", samples, small)


def show_answer(found: Prediction, image: np.ndarray | None, *, alt: str, source: str) -> None:
    """Draw a prediction in big type beside its image.

    Args:
        image: (3, H, W) uint8; None where another part of the page shows it.
        source: where the numbers come from.
    """
    _draw("answer", found, None if image is None else data_url(image), alt, source)


def show_picture(image: np.ndarray, verdict: str, *, alt: str) -> None:
    """Draw an image, (3, H, W) uint8, whose prediction stands beside it. Args: verdict: a key of MARKS."""
    _draw("picture", data_url(image), verdict, alt)


def show_films(films: Sequence[Film], chosen: int | None = None, coming: Sequence[int] = ()) -> None:
    """Draw films below each other; a long one scrolls in its own line.

    Args:
        chosen: epoch whose frame is marked.
        coming: epochs that will follow; each gets an empty frame.
    """
    _draw("films", films, chosen, coming)


def show_maps(grid: MapGrid, about: Mapping[str, str]) -> None:
    """Draw images with their maps, and beside them the one color scale of all maps.

    Args:
        about: paragraphs by their headings.
    """
    cells = []
    for row, image, maps, notes in zip(grid.rows, grid.images, grid.maps, grid.notes, strict=True):
        cells.append((row, "", data_url(image), row))
        for name, note, found in zip(grid.columns, notes, maps, strict=True):
            drawn = data_url(map_image(found, grid.scale, mode()))
            cells.append((name, note, drawn, f"Map of {name}, {row}: {note}"))
    stops = ", ".join(f"{color} {at:.0%}" for at, color in scale_stops(mode()))
    _draw("maps", cells, 1 + len(grid.columns), grid.scale, stops, grid.unit, about)


def thumbnail(image: np.ndarray | None, alt: str, missing: str) -> None:
    """Draw one small image, (3, H, W) uint8, or the word `missing` in a frame of the same size."""
    thumbnail_of(None if image is None else data_url(image), alt, missing)


def thumbnail_of(image: str | None, alt: str, missing: str) -> None:
    """Draw one small image, the data URL of a PNG, as `thumbnail` does."""
    _draw("thumbnail", image, alt, missing)


def show_rows(titles: Sequence[str], columns: Sequence[Sequence[np.ndarray]]) -> None:
    """Draw a table of images: a row for each title. Args: columns: (3, H, W) uint8 arrays, one a title."""
    rows = [(title, [data_url(column[i]) for column in columns]) for i, title in enumerate(titles)]
    _draw("rows", rows, len(columns))


def facts(rows: Mapping[str, str]) -> None:
    """Draw names and values in two columns; long values break anywhere."""
    _draw("facts", rows)


def _draw(macro: str, *values: Any) -> None:
    st.html(str(getattr(_template(), macro)(*values)))


@functools.cache
def _template() -> TemplateModule:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"percent": percent, "epoch_name": epoch_name}
    return environment.get_template("tiles.html").module

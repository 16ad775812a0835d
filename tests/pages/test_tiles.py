"""Images with predictions: verdicts, escaped names, colors of the style sheet."""

from __future__ import annotations

import re

import numpy as np
import pytest

from npd_core import paths
from npd_core.figures.theme import PALETTES
from pages.shared import tiles

NAMES = ("stop", "yield", "<go & stop>")


@pytest.mark.parametrize(
    ("label", "target", "verdicts"),
    [
        (0, 1, ["right", "hijacked", "wrong"]),
        (0, None, ["right", "wrong", "wrong"]),
        (None, 1, ["open", "hijacked", "open"]),
        (None, None, ["open", "open", "open"]),
    ],
)
def test_verdicts(label: int | None, target: int | None, verdicts: list[str]) -> None:
    known = tiles.Judge(NAMES, label, target)
    assert [known.prediction(row).verdict for row in np.eye(3, dtype=np.float32)] == verdicts


def test_a_prediction_lists_the_most_probable_classes_first() -> None:
    found = tiles.Judge(NAMES, 0, 1).prediction(np.array([0.1, 0.3, 0.6]), bars=2)
    assert (found.name, found.probability) == (NAMES[2], 0.6)
    assert [name for name, _ in found.bars] == [NAMES[2], NAMES[1]]


@pytest.mark.parametrize(
    ("share", "words"), [(0.9999, "100%"), (0.996, "99.6%"), (0.42, "42%"), (0.004, "0.4%"), (0.0, "0%")]
)
def test_only_what_rounds_to_it_at_one_digit_is_a_full_percentage(share: float, words: str) -> None:
    assert tiles.percent(share) == words


def test_names_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(tiles.st, "html", drawn.append)
    found = tiles.Judge(NAMES, 2, 1).prediction(np.array([0.1, 0.3, 0.6]))
    tiles.show_answer(found, np.zeros((3, 4, 4), np.uint8), alt="'<b>'", source="<i>")
    assert "<go" not in drawn[0]
    assert "&lt;go &amp; stop&gt;" in drawn[0]
    assert "alt='&#39;&lt;b&gt;&#39;'" in drawn[0]


def test_the_style_sheet_has_the_colors_of_the_figures() -> None:
    style = (paths.assets() / "ui" / "tiles.css").read_text(encoding="utf-8")
    colors = {
        name: (light.upper(), dark.upper())
        for name, light, dark in re.findall(r"--npd-(\w+): light-dark\((#\w+), (#\w+)\)", style)
    }
    for name in ("benign", "trigger", "polarizer", "green", "text", "muted", "grid"):
        assert colors[name] == tuple(getattr(PALETTES[mode], name) for mode in ("light", "dark")), name

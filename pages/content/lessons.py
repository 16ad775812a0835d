"""Lessons for a class, and views that hide parts of a page; texts in `lessons.toml`. Imports no torch.

The URL names a view as `?view=NAME`: one of `VIEWS`, a lesson ("layer", its first step) or a step
("layer-2").
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from npd_core.errors import unknown_name

_CONTENT = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PARTS: dict[str, str] = _CONTENT["parts"]
"""Parts of a page that a view may hide, with their titles."""


@dataclass(frozen=True)
class View:
    """The parts of a page that are shown, and what that is good for."""

    shows: frozenset[str]
    about: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One exercise on one page."""

    lesson_id: str
    number: int
    """From 1."""
    title: str
    page: str
    """URL path of the page."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the page, by their names in its URL."""
    shows: frozenset[str] = frozenset()
    do: str
    see: str
    question: str
    answer: str

    @property
    def lesson(self) -> Lesson:
        """The lesson of this step."""
        return LESSONS[self.lesson_id]

    @property
    def name(self) -> str:
        """The value of `view` in the URL, as "layer-2"."""
        return f"{self.lesson_id}-{self.number}"

    @property
    def next(self) -> Step | None:
        """The step after this one; None at the end."""
        return next((step for step in self.lesson.steps if step.number == self.number + 1), None)

    @property
    def previous(self) -> Step | None:
        """The step before this one; None at the beginning."""
        return next((step for step in self.lesson.steps if step.number == self.number - 1), None)

    def query(self) -> dict[str, str]:
        """Return the query of the step's URL: its view, then its settings."""
        values = {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in self.settings.items()
        }
        return {"view": self.name, **values}

    def url(self) -> str:
        """Return path and query of the step, as "lab?view=layer-2&layer=layer4.1.conv1"."""
        return f"{self.page}?{urlencode(self.query())}"


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A few steps with one aim."""

    id: str
    title: str
    about: str
    minutes: int
    steps: tuple[Step, ...]
    model: str = ""
    """The model that is chosen when the lesson begins, if the zoo has it; "": any."""


def _step(lesson_id: str, number: int, entry: Mapping[str, Any]) -> Step:
    shows = frozenset(entry.get("shows", ()))
    return Step(lesson_id=lesson_id, number=number, **{**entry, "shows": shows})


def _lesson(entry: Mapping[str, Any]) -> Lesson:
    steps = tuple(_step(entry["id"], number, step) for number, step in enumerate(entry["steps"], 1))
    return Lesson(**{**entry, "steps": steps})


VIEWS = {name: View(frozenset(entry["shows"]), entry["about"]) for name, entry in _CONTENT["views"].items()}
LESSONS = {entry["id"]: _lesson(entry) for entry in _CONTENT["lessons"]}
_STEPS = {step.name: step for lesson in LESSONS.values() for step in lesson.steps}


def get_view(name: str) -> View | Step:
    """Return the view, or the step of a lesson, of `?view=NAME`. Raises UnknownNameError."""
    if name in LESSONS:
        return LESSONS[name].steps[0]
    found = VIEWS.get(name) or _STEPS.get(name)
    if found is None:
        raise unknown_name("view", name[:40], [*VIEWS, *LESSONS, *_STEPS])
    return found

"""The glossary: the terms of `glossary.toml` and the attacks, with a search. Imports no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npd_core.attack_info import ATTACK_INFO
from npd_core.errors import unknown_name
from npd_core.names import METRICS


@dataclass(frozen=True)
class Term:
    """One term. Its id is part of its URL: /glossary?term=asr and #asr."""

    id: str
    title: str
    text: str
    also: tuple[str, ...] = ()
    """Other names that a search finds."""
    see: tuple[str, ...] = ()
    """Ids of related terms."""


def _term(
    id: str, title: str = "", text: str = "", also: Iterable[str] = (), see: Iterable[str] = ()
) -> Term:
    if metric := METRICS.get(id):
        title, text = metric.full, f"{metric.help} {text}".strip()
    return Term(id, title, text, tuple(also), tuple(see))


def _section(entry: dict[str, Any]) -> tuple[Term, ...]:
    terms = [_term(**term) for term in entry["terms"]]
    if entry["title"] == "Attacks":
        terms += [
            Term(name, info.title, f"{info.sentence} {info.source}.", (name,), ("attack",))
            for name, info in ATTACK_INFO.items()
        ]
    return tuple(terms)


_CONTENT = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SECTIONS = {entry["title"]: _section(entry) for entry in _CONTENT["sections"]}
TERMS = {term.id: term for terms in SECTIONS.values() for term in terms}


def get_term(name: str) -> Term:
    """Return the term of this id. Raises UnknownNameError."""
    if name not in TERMS:
        raise unknown_name("term", name, TERMS)
    return TERMS[name]


def search(words: str) -> dict[str, list[Term]]:
    """Return the terms in which every word of `words` occurs, by section; all of them for an empty text.

    Case does not matter. Matches in titles and names come before matches in texts.
    """
    parts = words.casefold().split()
    found = {}
    for section, terms in SECTIONS.items():
        ranked = [(rank, term) for term in terms if (rank := _rank(term, parts)) is not None]
        ranked.sort(key=lambda pair: pair[0])
        if ranked:
            found[section] = [term for _, term in ranked]
    return found


def _rank(term: Term, words: list[str]) -> int | None:
    """Return how many of the words occur only in the text (0 is best); None when one occurs nowhere."""
    names = " ".join((term.title, term.id, *term.also)).casefold()
    text = term.text.casefold()
    if any(word not in names and word not in text for word in words):
        return None
    return sum(word not in names for word in words)

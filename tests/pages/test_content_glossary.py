"""The glossary: every reference leads somewhere, every name of the project is explained, search finds it."""

from __future__ import annotations

import re

import pytest

from npd_core.attack_info import ATTACK_INFO
from npd_core.defenses import DEFENSES
from npd_core.errors import UnknownNameError
from pages.content.glossary import SECTIONS, TERMS, get_term, search


def section_of(term: str) -> str:
    return next(section for section, terms in SECTIONS.items() if TERMS[term] in terms)


def found(words: str) -> list[str]:
    return [term.id for terms in search(words).values() for term in terms]


def test_every_term_has_one_place():
    ids = [term.id for terms in SECTIONS.values() for term in terms]
    assert len(ids) == len(set(ids)) == len(TERMS)
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in ids), "an id is part of a URL"


@pytest.mark.parametrize("term", TERMS.values(), ids=lambda term: term.id)
def test_a_term_is_explained(term):
    assert term.text.endswith(".")
    assert len(term.text) < 400
    assert set(term.see) <= set(TERMS) - {term.id}


NAMES = [*ATTACK_INFO, *DEFENSES, "npd_tu", "ACC", "ASR", "RA", "DER", "D_bn", "rho", "lambda2"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_project_are_found(name):
    assert found(name)


def test_a_name_comes_before_a_text():
    assert search("asr")[section_of("asr")][0].id == "asr"
    assert search("RHO")[section_of("rho")][0].id == "rho"


def test_every_word_counts():
    assert "der" in found("effectiveness rating")
    assert found("effectiveness patch") == []
    assert found("  ") == list(TERMS)


def test_an_unknown_term_names_the_nearest():
    assert get_term("asr") is TERMS["asr"]
    with pytest.raises(UnknownNameError, match="'trigger'"):
        get_term("triger")

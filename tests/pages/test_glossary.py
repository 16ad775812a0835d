"""The glossary as a page: one word by its address, search, and nothing found said plainly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from pages.content.glossary import TERMS

Open = Callable[..., AppTest]
pytestmark = pytest.mark.usefixtures("tiny_zoo", "runs_dir")


def titles(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.subheader]


def test_all_terms_with_a_link_to_each(open_page: Open) -> None:
    page = open_page("glossary").run()
    assert titles(page) == [term.title for term in TERMS.values()]
    assert [element.anchor for element in page.subheader] == list(TERMS)
    assert page.text_input(key="words").value == ""


def test_search(open_page: Open) -> None:
    page = open_page("glossary", words="fine-pruning").run()
    assert titles(page) == ["FP, fine-pruning"]
    page.text_input(key="words").set_value("no such thing").run()
    assert titles(page) == []
    assert "No word fits" in page.info[0].value


def test_one_word_by_its_address(open_page: Open) -> None:
    page = open_page("glossary", term="rho").run()
    assert page.markdown[1].value.startswith("**ρ, the budget**")
    wrong = open_page("glossary", term="<b>rhos</b>").run()
    assert "Unknown term" in wrong.error[0].value
    assert len(titles(wrong)) == len(TERMS)

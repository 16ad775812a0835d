"""The glossary as a page: one term by its URL, the search, and a search without a result."""

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
    assert titles(page) == [TERMS["fp"].title]
    page.text_input(key="words").set_value("no such thing").run()
    assert titles(page) == []
    assert len(page.info) == 1


def test_one_term_by_its_url(open_page: Open) -> None:
    page = open_page("glossary", term="rho").run()
    assert TERMS["rho"].text in page.markdown[1].value
    wrong = open_page("glossary", term="<b>rhos</b>").run()
    assert [all(name in error.value for name in ("term", "rhos")) for error in wrong.error] == [True]
    assert "<b>" not in wrong.error[0].value.replace("\\<", "")
    assert len(titles(wrong)) == len(TERMS)

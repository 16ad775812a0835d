"""Values of the URL survive a switch of pages, fall back to the default, and are quoted as plain text."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.errors import NPDError
from pages.shared import text, url_state

SCRIPT = """
import streamlit as st
from pages.shared import url_state
STEP = url_state.integer("step", 1, 6, default=1)
st.session_state["new"] = STEP.is_new()
st.session_state["problem"] = STEP.problem()
st.session_state["step"] = STEP.get()
url_state.show_notices(STEP)
st.button("4", key="four", on_click=STEP.set, args=(4,))
st.button("clear", key="clear", on_click=STEP.clear)
"""


def opened(**query: str) -> AppTest:
    page = AppTest.from_string(SCRIPT)
    for name, value in query.items():
        page.query_params[name] = value
    return page.run()


def test_the_url_comes_first_and_the_value_survives_a_switch_of_pages() -> None:
    page = opened(step="3")
    assert (page.session_state["step"], page.session_state["new"]) == (3, True)
    page.query_params.clear()
    page.run()
    assert (page.session_state["step"], page.session_state["new"]) == (3, False)
    assert page.query_params["step"] in ("3", ["3"])
    page.button(key="four").click().run()
    assert page.session_state["step"] == 4
    assert page.query_params["step"] in ("4", ["4"])
    page.button(key="clear").click().run()
    assert page.session_state["step"] == 1
    assert "step" not in page.query_params


def test_the_default_leaves_the_url_clean() -> None:
    assert "step" not in opened(step="1").query_params


@pytest.mark.parametrize(
    "value", ["", "0", "7", "two", "1e3", "inf", "nan", "²", "9" * 5000, "![x](http://host)"]
)
def test_a_value_that_does_not_fit_gives_the_default_and_one_notice(value: str) -> None:
    page = opened(step=value)
    assert not page.exception, page.exception
    assert page.session_state["step"] == 1
    assert "step" not in page.query_params
    assert page.session_state["problem"] == page.error[0].value
    assert len(page.error) == 1
    assert all(part in page.error[0].value for part in ("step", "from 1 to 6"))
    assert "![" not in page.error[0].value
    assert "://" not in page.error[0].value
    page.button(key="four").click().run()
    assert not page.error


@pytest.mark.parametrize(
    ("value", "bad", "good"),
    [
        (url_state.number("rho", 0.1, 10, 3.0), "inf", 2.5),
        (url_state.choice("norm", ["l1", "l2"], "l2"), "l3", "l1"),
        (url_state.integers("images", 0, 9, most=3), "1,10", (4, 2)),
        (url_state.ids("runs", most=2), "a,b,c", ("a", "b")),
        (url_state.short_text("words", longest=3), "four", "two"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_is_written_is_read_again(value: url_state.UrlValue, bad: str, good: object) -> None:
    assert value.parse(value.write(good)) == good
    with pytest.raises(NPDError):
        value.parse(bad)


FOREIGN = """
![x](http://host/a.png)
[a](b)
`code`
**bold**
_it_
<b>x</b>
$x$
# head
- item
1. one
:red[x]
:material/home:
https://host
www.host.org
a@host.org
~~x~~
a|b
&amp;
> quote
"""


@pytest.mark.parametrize("foreign", FOREIGN.strip().splitlines())
def test_plain_text_has_no_markdown(foreign: str) -> None:
    from markdown_it import MarkdownIt

    parsed = MarkdownIt("js-default", {"linkify": False}).parseInline(text.plain(foreign))[0]
    block = MarkdownIt("commonmark").parse(text.plain(foreign))
    assert [token.type for token in block] == ["paragraph_open", "inline", "paragraph_close"]
    assert {token.type for token in parsed.children or []} <= {"text", "text_special"}
    assert "".join(token.content for token in parsed.children or []).replace(text.JOINER, "") == foreign
    assert not any(mark in text.plain(foreign) for mark in ("://", ":material/", ":red", "www.", "@host"))


def test_plain_text_is_one_line_and_may_be_cut() -> None:
    assert text.plain("a\n\nb  c") == "a b c"
    assert text.plain("abcdef", longest=3) == "abc…"
    assert text.plain("signs-badnets_a2o-w16") == "signs-badnets_a2o-w16"


def test_a_message_keeps_its_names_in_backticks() -> None:
    assert text.message("`rho` must be *positive*, see `a_b`.") == r"`rho` must be \*positive\*, see `a_b`."

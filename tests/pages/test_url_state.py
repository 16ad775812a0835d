"""Values of the URL survive a switch of pages, fall back to the default, and are quoted as plain text."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.errors import NPDError
from npd_core.runs.store import Run
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


HOSTILE = [
    *(
        "",
        " ",
        "inf",
        "-inf",
        "nan",
        "NaN",
        "Infinity",
        "1e999",
        "1e309",
        "-1",
        "--1",
        "1_000",
        "0x10",
        "1e3",
    ),
    *("9" * 19, "9" * 400, "9" * 5000, "-" + "9" * 400, "1.5", ".", "1.", "1,2", "1,,2", ",", "," * 5000),
    *("²", "١", "一", "½", "\x00", "\u202e1", "\ud800", "True", "None", "null", "[]", "{}", "[" * 5000),
    *("../../etc/passwd", "/etc/passwd", "..", "%00", "a" * 100_000, "![x](http://host)", "<img src=x>"),
    *("1e" + "9" * 30, "1" * 70, "+1", "0", "00", "-0", "1 2", "1\n2", "a,b,c,d,e,f,g,h,i,j,k,l,m", "✓"),
]
PAGES = ("attributions", "comparison", "lab", "predictions", "step_by_step")
OTHERS = ("ablations", "attacks", "defenses", "glossary", "layers", "lessons", "my_models", "runs", "story")


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, url_state.UrlValue[Any]]:
    """Every value of the URL that a page reads while it runs, by name."""
    found: dict[str, url_state.UrlValue[Any]] = {}
    for method in ("get", "problem"):
        read = getattr(url_state.UrlValue, method)

        def noted(self: url_state.UrlValue[Any], read: Any = read) -> Any:
            found[self.name] = self
            return read(self)

        monkeypatch.setattr(url_state.UrlValue, method, noted)
    return found


@pytest.mark.parametrize("name", [*PAGES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_no_text_in_the_url_ends_in_a_traceback(
    name: str,
    open_page: Callable[..., AppTest],
    make_run: Callable[..., Run],
    manager: object,
    declared: dict[str, url_state.UrlValue[Any]],
) -> None:
    run = make_run()
    page = open_page(name, run=run.id).run()
    assert not page.exception, page.exception
    values = dict(declared)
    assert {"model", "run"} <= set(values)
    rng = random.Random(name)
    texts = HOSTILE + ["".join(rng.choices("0123456789eE.+-,naifty ²\x00[]", k=9)) for _ in range(300)]
    for value in values.values():
        for found in texts:
            try:
                read = value.parse(found)
            except NPDError:
                continue
            assert not isinstance(read, float) or math.isfinite(read), (value.name, found)
            value.write(read)
    again = open_page(name, **dict.fromkeys(values, "inf")).run()  # all at once, in a new session
    assert not again.exception, again.exception
    assert again.error


def test_every_widget_in_the_url_has_a_declared_value() -> None:
    pages = Path(url_state.__file__).parent.parent
    writers = {path.name for path in pages.rglob("*.py") if '"query-params"' in path.read_text("utf-8")}
    assert writers == {"url_state.py"}


def test_a_bound_widget_starts_with_its_default_where_the_url_does_not_fit() -> None:
    script = """
import streamlit as st
from pages.shared import url_state
st.number_input("n", 0, 9, 4, **url_state.bound(url_state.integer("n", 0, 9, 4)))
"""
    for found, value in {"7": 7, "inf": 4, "9" * 400: 4}.items():
        page = AppTest.from_string(script)
        page.query_params["n"] = found
        page.run()
        assert not page.exception, page.exception
        assert page.number_input(key="n").value == value
        assert len(page.error) == (found != "7")
        page.number_input(key="n").set_value(2).run()
        assert page.number_input(key="n").value == 2
        page.run()
        assert page.number_input(key="n").value == 2

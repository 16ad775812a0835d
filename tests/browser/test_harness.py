"""The harness notices what it is there to notice."""

from __future__ import annotations

import textwrap

import pytest


def write_app(path, text):
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture(scope="module")
def faulty(serve, tmp_path_factory):
    return serve(
        write_app(
            tmp_path_factory.mktemp("app") / "faulty.py",
            """
            import streamlit as st
            st.title("Faulty")
            if st.query_params.get("fault") == "picture":
                st.html('<img src="http://elsewhere.invalid/picture.png">')
            if st.query_params.get("fault") == "error":
                st.html("<script>console.error('on purpose')</script>", unsafe_allow_javascript=True)
            """,
        )
    )


def test_a_calm_page_passes(faulty, page, settle):
    page.goto(faulty.url)
    settle(page)
    assert page.get_by_role("heading", name="Faulty").is_visible()


def test_an_outside_request_is_seen_and_fails(faulty, page, watch, settle):
    page.goto(f"{faulty.url}/?fault=picture")
    settle(page)
    page.wait_for_selector("img")
    with pytest.raises(AssertionError, match=r"elsewhere\.invalid"):
        watch.check()
    watch.outside.clear()
    watch.allow("ERR_NAME_NOT_RESOLVED")
    page.goto("about:blank")


def test_a_console_error_is_seen_and_fails(faulty, page, watch):
    with page.expect_console_message(lambda message: "on purpose" in message.text):
        page.goto(f"{faulty.url}/?fault=error")
    with pytest.raises(AssertionError, match="on purpose"):
        watch.check()
    watch.allow("on purpose")

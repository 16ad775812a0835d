"""What the URL says about the screen: the parts of a page that a view shows, and whether it is at a booth.

Both hold on every page. A part that a view may hide is drawn in a container with the key "view-" and the name
of the part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import streamlit as st
from streamlit.errors import StreamlitAPIException

from npd_core import paths
from npd_core.errors import NPDError
from npd_core.runs.store import Run
from pages.content.lessons import PARTS, Step, View, get_view
from pages.shared import cache, choice, url_state
from pages.shared.components.idle import IDLE, countdown


def _parse_view(found: str) -> str:
    get_view(found)
    return found


VIEW = url_state.UrlValue("view", _parse_view, "")
BOOTH = url_state.short_text("booth")
CHECK = 5.0
"""Seconds between two checks whether a run of the visitor is active."""
BIG_TYPE = """<style>
:root { font-size: clamp(18px, min(1.45vw, 2.6vh), 56px) !important; --npd-sky: max(230px, min(19vw, 34vh)); }
</style>"""


def current_view() -> View | Step | None:
    """Return the view or the step of a lesson that the URL names; None without one."""
    name = VIEW.get()
    return get_view(name) if name else None


def shown_parts() -> frozenset[str]:
    """Return the parts of a page that are shown, out of `PARTS`."""
    view = current_view()
    return frozenset(PARTS) if view is None else view.shows


def at_booth() -> bool:
    """Return whether this screen stands at a booth."""
    return BOOTH.get() == "1"


def draw(page: str) -> None:
    """Hide the parts that the view leaves out, and draw the bar of the lesson. Call it before the page.

    Args:
        page: URL path of the page.
    """
    view, parts = current_view(), shown_parts()
    url_state.show_notices(VIEW)
    hidden = [f'[class*="st-key-view-{part}"]' for part in PARTS if part not in parts]
    if hidden:
        st.html(f"<style>{', '.join(hidden)} {{ display: none; }}</style>")
    if isinstance(view, Step):
        _draw_bar(view, page)


def open_step(step: Step) -> None:
    """Open the page of a step with the settings of the step. Not for callbacks."""
    state = st.session_state
    if step.page == "lab":
        about = step.lesson.model
        model = about if about in choice.cards() else state.get("model")
        if model:
            choice.choose_model(model)
    for name, value in step.settings.items():
        state[name] = value
    page = f"pages/{step.page}.py"
    try:
        st.switch_page(page, query_params=step.query())
    except StreamlitAPIException:  # the widgets of the settings are on show: they write the URL themselves
        st.switch_page(page, query_params={"view": step.name})


def watch_idle(page: str) -> None:
    """Draw big type, and return to the booth's loop after a while without input.

    Not while a run is active that a URL of this session has named.
    """
    st.html(BIG_TYPE)

    @st.fragment(run_every=CHECK)
    def watch() -> None:
        try:
            active = {run.id: run for run in cache.runs.all_runs() if run.active}
        except NPDError:  # shown by the page
            return
        mine: set[str] = st.session_state.setdefault("_mine", set())
        mine |= runs_in_url(active.values(), st.query_params.to_dict())
        countdown(page=page, busy=not mine.isdisjoint(active), idle=IDLE, key="idle")

    watch()


def runs_in_url(runs: Iterable[Run], query: Mapping[str, str]) -> set[str]:
    """Return the ids of those runs that the URL names, by their own id or by that of an uploaded model."""
    parts = {part for value in query.values() for part in value.split(",")}
    return {
        run.id
        for run in runs
        if run.id in parts or (run.request.model in parts and paths.uploaded(run.request.model) is not None)
    }


def _draw_bar(step: Step, page: str) -> None:
    with st.container(key="lesson", border=True):
        st.markdown(
            f":violet[:material/school: **{step.lesson.title}**] · step {step.number} of "
            f"{len(step.lesson.steps)} · **{step.title}**"
        )
        here = page in (step.page, "alone")
        if here:
            st.markdown(f":material/touch_app: {step.do}\n\n:material/visibility: {step.see}")
            with st.expander(f"Question: {step.question}", key="lesson-question"):
                st.markdown(step.answer)
        else:
            st.markdown("This step of the lesson is on another page.")
        with st.container(horizontal=True):
            if not here and st.button("Go to the page of this step", key="lesson-here", type="primary"):
                open_step(step)
            if step.previous and st.button("Back", key="lesson-back", icon=":material/arrow_back:"):
                open_step(step.previous)
            if step.next and st.button("Next", key="lesson-next", icon=":material/arrow_forward:"):
                open_step(step.next)
            st.button(
                "Leave the lesson" if step.next else "End the lesson",
                key="lesson-leave",
                icon=":material/close:",
                type="tertiary",
                on_click=VIEW.clear,
            )

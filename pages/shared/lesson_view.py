"""What the address says about the screen itself: which parts of a page a lesson shows, and whether this is a booth.

Both travel from page to page. `frame.header` draws what they ask for; pages need to know nothing of it, except that a
part which a view may leave out stands in a container whose key starts with "view-" and the part's name. What one page
alone has in its address, and comes back to after another page, is kept in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import streamlit as st
from streamlit.errors import StreamlitAPIException

from npd_core import paths
from npd_core.errors import NPDError
from npd_core.runs.store import Run
from pages.content.lessons import PARTS, Place, View, get_view
from pages.shared import cache, controls
from pages.shared.components.idle import IDLE, countdown

Go = Callable[[str, dict[str, str]], NoReturn]

CHECK = 5.0
"""Seconds between two looks at whether a visitor's run goes on."""
BIG_TYPE = """<style>
:root { font-size: clamp(18px, min(1.45vw, 2.6vh), 56px) !important; --npd-sky: max(230px, min(19vw, 34vh)); }
</style>"""


def carried(name: str) -> str:
    """Value of `name` in the address, kept in it from page to page until `drop` is called; "" when there is none."""
    kept = st.session_state.setdefault("_carried", {})
    asked = st.query_params.get(name)
    if asked is not None:
        kept[name] = asked
    elif kept.get(name):
        st.query_params[name] = kept[name]
    return str(kept.get(name, ""))


def forget(name: str) -> None:
    """Do not come back to the value of `name` that the address has now, as it leads nowhere."""
    st.session_state.setdefault("_carried", {})[name] = ""


def drop(name: str) -> None:
    """Take `name` out of the address; for a button's `on_click`."""
    forget(name)
    st.query_params.pop(name, None)


def asked() -> View | Place | None:
    """The view that the address names; None without one. An unknown name is said once and shows everything."""
    name = carried("view")
    if not name:
        return None
    try:
        return get_view(name)
    except NPDError as error:
        st.session_state["_unknown_view"] = f"{error} Everything is shown instead."
        drop("view")
        return None


def shown() -> frozenset[str]:
    """The parts of a page that are shown, out of `PARTS`."""
    view = asked()
    return frozenset(PARTS) if view is None else (view.view if isinstance(view, Place) else view).shows


def booth() -> bool:
    """Whether this screen stands at a booth."""
    return carried("booth") == "1"


def dress(page: str, go: Go) -> None:
    """Leave out what the view leaves out, and draw the lesson's bar; before the page.

    Args:
        page: url path of the page on show.
        go: opens the page of a url path with values in the address.
    """
    view, parts = asked(), shown()
    sentence = st.session_state.pop("_unknown_view", None)
    if sentence:
        st.info(sentence, icon=":material/visibility:")
    hidden = [f'[class*="st-key-view-{part}"]' for part in PARTS if part not in parts]
    if hidden:
        st.html(f"<style>{', '.join(hidden)} {{ display: none; }}</style>")
    if isinstance(view, Place):
        _bar(view, go, page)


def open_step(place: Place, go: Go) -> None:
    """Open the page of a step, set as the step asks. Call it while the script runs, not from a callback."""
    state, about = st.session_state, place.lesson.model
    model = about if about in [card.id for card in cache.zoo.cards()] else state.get("model")
    if place.step.page == "lab":
        state["_chosen"] = {"model": model, "run": "none"}
        if model:
            controls.reset(cache.zoo.card(model))
    for name, value in place.step.settings.items():
        state[name] = value
    try:
        go(place.step.page, place.query())
    except StreamlitAPIException:  # its widgets are on show: they write the address themselves
        go(place.step.page, {"view": place.name})


def keep_watch(page: str) -> None:
    """At a booth: big type, and back to the loop when nobody has touched anything for a while. While a run goes on that
    an address of this session was about, nothing is reset."""
    st.html(BIG_TYPE)

    @st.fragment(run_every=CHECK)
    def watch() -> None:
        try:
            active = {run.id: run for run in cache.runs.all_runs() if run.active}
        except NPDError:  # the page says so
            return
        mine: set[str] = st.session_state.setdefault("_mine", set())
        mine |= named(active.values(), st.query_params.to_dict())
        countdown(page=page, busy=not mine.isdisjoint(active), idle=IDLE, key="idle")

    watch()


def named(runs: Iterable[Run], address: Mapping[str, str]) -> set[str]:
    """Those of `runs` that the address names, by their ids or as runs of a network that the visitor brought; a model
    of the zoo is named without a run of one's own."""
    parts = {part for value in address.values() for part in value.split(",")}
    return {
        run.id
        for run in runs
        if run.id in parts or (run.request.model in parts and paths.own(run.request.model) is not None)
    }


def _bar(place: Place, go: Go, page: str) -> None:
    step, lesson = place.step, place.lesson
    with st.container(key="lesson", border=True):
        st.markdown(
            f":violet[:material/school: **{lesson.title}**] · step {place.number} of {len(lesson.steps)} "
            f"· **{step.title}**"
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
                open_step(place, go)
            if place.previous and st.button("Back", key="lesson-back", icon=":material/arrow_back:"):
                open_step(place.previous, go)
            if place.next and st.button("Next", key="lesson-next", icon=":material/arrow_forward:"):
                open_step(place.next, go)
            st.button(
                "Leave the lesson" if place.next else "End the lesson",
                key="lesson-leave",
                icon=":material/close:",
                type="tertiary",
                on_click=drop,
                args=("view",),
            )

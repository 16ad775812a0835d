"""Lessons for a class: each step is a page of the app, set for it, with something to do and a question."""

import streamlit as st
from streamlit.errors import StreamlitAPIException

from pages.content.lessons import LESSONS, PARTS, VIEWS, Lesson, Place
from pages.shared import lesson_view, shell


def link_for(path: str) -> str:
    """Whole address of a path of the app, as the visitor's own browser reaches it."""
    here = (st.context.url or "").split("?")[0].rstrip("/")
    return f"{here.removesuffix('/lessons')}/{path}"


def lesson_card(lesson: Lesson) -> None:
    first = Place(lesson, 1)
    with st.container(border=True):
        st.subheader(lesson.title, anchor=lesson.id)
        st.markdown(
            f"{lesson.about}\n\n:material/schedule: about {lesson.minutes} minutes, {len(lesson.steps)} steps"
        )
        if st.button("Begin", key=f"begin-{lesson.id}", icon=":material/play_arrow:", type="primary"):
            try:
                lesson_view.open_step(first, shell.open_page)
            except StreamlitAPIException:
                st.info(f"In the app, open {first.address()}.", icon=":material/link:")
        with st.expander("Steps, and a link for each", icon=":material/link:"):
            for number, step in enumerate(lesson.steps, 1):
                st.markdown(f"**{number}. {step.title}**")
                st.code(link_for(Place(lesson, number).address()), language=None, wrap_lines=True)


shell.selection()
st.title("Lessons", anchor=False)
st.write(
    "Each step shows one page, set for it, and leaves out what is not needed. A bar above the page says what to do and "
    "what to look at, and asks a question; the answer is folded away. A link opens the same step for the whole class."
)
with st.grid("auto", min_column_width=300):
    for lesson in LESSONS.values():
        lesson_card(lesson)

st.header("Views", anchor=False)
st.write("Any page can be shown with less on it. Add the view to its address; it stays until it is left.")
st.table(
    {
        "view": [f"`?view={name}`" for name in VIEWS],
        "what is left": [found.about for found in VIEWS.values()],
        "hidden": [
            ", ".join(words for part, words in PARTS.items() if part not in found.shows)
            for found in VIEWS.values()
        ],
    },
    border="horizontal",
)
current = lesson_view.carried("view")
if current:
    st.button(
        "Show everything again",
        key="all",
        icon=":material/visibility:",
        on_click=lesson_view.drop,
        args=("view",),
    )

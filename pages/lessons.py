"""Lessons for a class: each step opens a page of the app, with a task and a question."""

import streamlit as st
from streamlit.errors import StreamlitAPIException

from pages.content.lessons import LESSONS, PARTS, VIEWS, Lesson
from pages.shared import lesson_view, shell


def full_url(path: str) -> str:
    """Return the whole URL of a path of the app, as the visitor's browser reaches it."""
    here = (st.context.url or "").split("?")[0].rstrip("/")
    return f"{here.removesuffix('/lessons')}/{path}"


def draw_lesson(lesson: Lesson) -> None:
    with st.container(border=True):
        st.subheader(lesson.title, anchor=lesson.id)
        st.markdown(
            f"{lesson.about}\n\n:material/schedule: about {lesson.minutes} minutes, {len(lesson.steps)} steps"
        )
        if st.button("Begin", key=f"begin-{lesson.id}", icon=":material/play_arrow:", type="primary"):
            try:
                lesson_view.open_step(lesson.steps[0])
            except StreamlitAPIException:
                st.info(f"In the app, open {lesson.steps[0].url()}.", icon=":material/link:")
        with st.expander("Steps, and a link to each", icon=":material/link:"):
            for step in lesson.steps:
                st.markdown(f"**{step.number}. {step.title}**")
                st.code(full_url(step.url()), language=None, wrap_lines=True)


shell.selection()
st.title("Lessons", anchor=False)
st.write(
    "Each step opens one page with the settings of the step and hides the rest. A bar above the page gives a "
    "task and a question; the answer is folded away. A link opens the same step for the whole class."
)
with st.grid("auto", min_column_width=300):
    for lesson in LESSONS.values():
        draw_lesson(lesson)

st.header("Views", anchor=False)
st.write("A view hides parts of every page. Add it to the URL of a page; it stays until you leave it.")
st.table(
    {
        "view": [f"`?view={name}`" for name in VIEWS],
        "shows": [view.about for view in VIEWS.values()],
        "hides": [
            ", ".join(title for part, title in PARTS.items() if part not in view.shows)
            for view in VIEWS.values()
        ],
    },
    border="horizontal",
)
if lesson_view.VIEW.get():
    st.button(
        "Show everything again", key="all", icon=":material/visibility:", on_click=lesson_view.VIEW.clear
    )

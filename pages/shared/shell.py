"""The shell around every page: the menu, the choice of model and run, links between pages.

`app.py` draws the choice of model and run above each page; a page that runs alone, as in a test, draws it
itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, NoReturn
from urllib.parse import urlsplit

import streamlit as st
from streamlit.errors import StreamlitAPIException

from npd_core import paths
from npd_core.errors import NPDError
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, choice, lesson_view, text, tiles, url_state
from pages.shared.components import appearance


class Page(NamedTuple):
    """A page of the menu: `file` is its name in `pages/` and its path in the URL."""

    file: str
    title: str
    icon: str
    help: str
    section: str = ""
    """Section of the menu; "" is the bar itself."""


PAGES = (
    Page(
        "story",
        "Story",
        "wb_twilight",
        "What a backdoor is and how a thin layer filters it out, in six steps that you do yourself.",
    ),
    Page(
        "lab",
        "Lab",
        "science",
        "Choose a backdoored model and a layer, then train a neural polarizer live.",
    ),
    Page(
        "predictions",
        "Predictions",
        "image_search",
        "Clean, triggered and purified images side by side, with the predictions of the network.",
        "Inspect",
    ),
    Page(
        "attributions",
        "Attributions",
        "center_focus_strong",
        "Which pixels decide, before and after the polarizer, on one scale.",
        "Inspect",
    ),
    Page(
        "attacks",
        "Attacks",
        "bug_report",
        "The eight attacks: how each changes an image, how it poisons the training, and how well it works.",
        "Inspect",
    ),
    Page(
        "layers",
        "Layers",
        "layers",
        "How well the polarizer works at each insertion layer, on a drawing of the network.",
        "Compare",
    ),
    Page(
        "defenses",
        "Defenses",
        "shield",
        "Every defense against every attack, measured beside the paper's numbers.",
        "Compare",
    ),
    Page(
        "ablations",
        "Ablations",
        "tune",
        "Loss terms, targets, poison ratio and number of clean images, one at a time.",
        "Compare",
    ),
    Page(
        "comparison",
        "Comparison",
        "compare_arrows",
        "Train two defenses of one model side by side and compare them epoch by epoch.",
        "Compare",
    ),
    Page(
        "step_by_step",
        "Step by step",
        "slow_motion_video",
        "One training step in detail: each formula beside its numbers.",
        "Learn",
    ),
    Page(
        "lessons",
        "Lessons",
        "school",
        "Three lessons for a class, step by step, with a link to each step; and views that hide settings.",
        "Learn",
    ),
    Page(
        "glossary",
        "Glossary",
        "menu_book",
        "Every technical term of the app, explained in a sentence or two.",
        "Learn",
    ),
    Page(
        "my_models",
        "My models",
        "upload_file",
        "Upload a network and a few clean images; then defend, compare and export it.",
        "My models",
    ),
    Page(
        "runs",
        "Runs",
        "history",
        "Every run on this machine: compare, download, open again.",
        "My models",
    ),
)
WITHOUT_MODEL = ("glossary", "lessons", "my_models")
"""Pages that need no choice of model and run; at a booth the first page shows none either."""
OLD_ADDRESSES = {"your_model": "my_models", "race": "comparison", "learn": "step_by_step"}
OLD_QUERY = {"own": "uploaded_model", "own_run": "uploaded_run", "race": "runs"}


class Selection(NamedTuple):
    """The model and the run of the URL. Either is None when nothing valid is chosen."""

    card: Card | None
    run: Run | None
    """Where the URL names none, the default one of the model."""
    named: bool = False
    """Whether the URL names the run."""

    @property
    def named_run(self) -> Run | None:
        """The run that the URL names."""
        return self.run if self.named else None


def navigation() -> st.Page:
    """Draw the menu and return the page of the URL. An old address leads to the page that took its place."""
    sections: dict[str, list[st.Page]] = {}
    for page in PAGES:
        sections.setdefault(page.section, []).append(_streamlit_page(page))
    hidden = [st.Page("pages/booth.py", title="Booth", visibility="hidden")]
    hidden += [st.Page(_nothing, url_path=old, visibility="hidden") for old in OLD_ADDRESSES]
    sections[""] += hidden
    position: Literal["top", "hidden"] = "top" if "menu" in lesson_view.shown_parts() else "hidden"
    current = st.navigation(sections, position=position)
    if current.url_path in OLD_ADDRESSES:
        query = {OLD_QUERY.get(name, name): value for name, value in st.query_params.to_dict().items()}
        open_page(OLD_ADDRESSES[current.url_path], query)
    return current


def configure_page() -> None:
    """Set title, icon and style. Call it before `st.navigation`, which would fetch an icon from elsewhere."""
    ui = paths.assets() / "ui"
    st.set_page_config(page_title="Neural Polarizer Lab", page_icon=str(ui / "favicon.png"), layout="wide")
    st.logo(str(ui / "logo.svg"), size="large")
    styles = "".join((ui / name).read_text(encoding="utf-8") for name in ("app.css", "tiles.css"))
    st.html(f"<style>{styles}</style>")


def header(page: str = "") -> None:
    """Draw the choice of model and run. Call it once in a script run, before the page of this URL path."""
    state = st.session_state
    state["_framed"] = True
    state["_page"] = page
    appearance.follow(tiles.mode())
    if page == "booth":
        return
    lesson_view.draw(page)
    cards = choice.cards()
    for sentence in cache.zoo.unreadable_cards():
        st.warning(text.message(sentence), icon=":material/warning:")
    try:
        runs = {run.id: run for run in cache.runs.all_runs()}
    except NPDError as error:
        text.show_error(error)
        runs = {}
    choice.read_url(cards, runs)
    if page not in WITHOUT_MODEL and not (lesson_view.at_booth() and page == ""):
        choice.draw(cards, runs)
    if lesson_view.at_booth():
        lesson_view.watch_idle(page)
    url_state.show_notices(choice.model_value(cards), choice.RUN)


def selection() -> Selection:
    """Return the model and the run of the URL; a page that runs alone draws the choice first."""
    if not st.session_state.get("_framed"):
        join_app()
        header("alone")
        st.session_state["_framed"] = False
    card = run = None
    try:
        if st.session_state.get("model"):
            card = cache.zoo.card(st.session_state["model"])
        if st.session_state.get("run", choice.NO_RUN) != choice.NO_RUN:
            run = cache.runs.find_run(st.session_state["run"])
    except NPDError as error:
        text.show_error(error)
    return Selection(card, run, choice.RUN.get() not in (choice.NO_RUN, choice.DEFAULT_RUN))


def title(words: str, about: str = "") -> None:
    """Draw the title of a page, small, with one sentence about the page beside it."""
    with st.container(key="page-title", horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.title(words, anchor=False, width="content")
        if about:
            st.caption(about)


def open_page(page: str, query: Mapping[str, str]) -> NoReturn:
    """Go to the page of this URL path, with `query` in its URL. Not for callbacks.

    Raises:
        StreamlitAPIException: a value belongs to a widget on show, or the current page runs alone.
    """
    st.switch_page(f"pages/{page or PAGES[0].file}.py", query_params=dict(query))


def link(page: str, label: str, icon: str, query: Mapping[str, str] | None = None) -> None:
    """Link to another page; the label as a caption when the current page runs alone.

    Args:
        page: file of the page, as "pages/lab.py".
        query: values of that page's URL.
    """
    try:
        st.page_link(page, label=label, icon=icon, query_params=query)
    except StreamlitAPIException:
        st.caption(label)


def join_app() -> None:
    """Start the script again inside the app when a page was opened before `app.py` ran.

    Until then Streamlit takes every file in `pages/` for a page. A page that was started alone stays alone.
    """
    if st.context.url and urlsplit(st.context.url).path.rstrip("/"):
        configure_page()
        navigation()
        st.rerun()


def _streamlit_page(page: Page) -> st.Page:
    return st.Page(
        f"pages/{page.file}.py",
        title=page.title,
        icon=f":material/{page.icon}:",
        help=page.help,
        default=page is PAGES[0],
    )


def _nothing() -> None:
    """Draw nothing: `navigation` leaves an old address before its page runs."""

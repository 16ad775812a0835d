"""What every page shares: the model and the run that the address names, links between pages, honest labels.

`app.py` draws the choice of model and run above each page; a page opened alone (by AppTest) draws it itself. Both are
kept in the address by hand: a selectbox bound to it would write its titles there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Literal, NamedTuple, NoReturn
from urllib.parse import urlsplit

import streamlit as st
from streamlit.errors import StreamlitAPIException

from npd_core import paths
from npd_core.config.baselines import CONFIGS
from npd_core.errors import NPDError
from npd_core.names import ATTACKS, architecture_name, attack_name, dataset_name, defense_name
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import cache, controls, lesson_view, tiles
from pages.shared.components import appearance

NO_RUN = "none"
WITHOUT_MODEL = ("glossary", "lessons")  # pages of words, where a choice of model would only be in the way
STATES = {
    "queued": (":material/hourglass_empty:", "gray"),
    "running": (":material/play_circle:", "violet"),
    "finished": (":material/check_circle:", "blue"),
    "stopped": (":material/stop_circle:", "blue"),
    "failed": (":material/error:", "red"),
    "interrupted": (":material/power_off:", "orange"),
}


class Selection(NamedTuple):
    """What the address names. Either is None when nothing (valid) was chosen."""

    card: Card | None
    run: Run | None


def pages() -> dict[str, list[st.Page]]:
    """The pages by section of the menu, in their order; those of the section without a name stand in the bar itself."""
    return {
        "": [
            st.Page(
                "pages/story.py",
                title="Story",
                icon=":material/wb_twilight:",
                default=True,
                help="What a backdoor is and how a thin lens filters it out, in six steps that you do yourself.",
            ),
            st.Page(
                "pages/lab.py",
                title="Lab",
                icon=":material/science:",
                help="Choose a backdoored model and a layer, then train a neural polarizer live.",
            ),
            st.Page("pages/booth.py", title="Booth", visibility="hidden"),
        ],
        "Look": [
            st.Page(
                "pages/predictions.py",
                title="Predictions",
                icon=":material/image_search:",
                help="Clean, triggered and purified images side by side, with what the network says.",
            ),
            st.Page(
                "pages/attributions.py",
                title="Attributions",
                icon=":material/center_focus_strong:",
                help="Which pixels decide, before and after the polarizer, on one scale.",
            ),
            st.Page(
                "pages/attacks.py",
                title="Attacks",
                icon=":material/bug_report:",
                help="The eight attacks: what each does to a picture, how it is trained in, and how well it works.",
            ),
        ],
        "Compare": [
            st.Page(
                "pages/layers.py",
                title="Layers",
                icon=":material/layers:",
                help="What the polarizer achieves at each place of the network, on its drawing.",
            ),
            st.Page(
                "pages/defenses.py",
                title="Defenses",
                icon=":material/shield:",
                help="Every defense against every attack, measured beside the paper's numbers.",
            ),
            st.Page(
                "pages/ablations.py",
                title="Ablations",
                icon=":material/tune:",
                help="Loss terms, targets, poison ratio and number of clean images, one at a time.",
            ),
            st.Page(
                "pages/comparison.py",
                title="Race",
                icon=":material/flag:",
                help="Two repairs of the same network, trained by turns and compared epoch by epoch.",
            ),
        ],
        "Learn": [
            st.Page(
                "pages/step_by_step.py",
                title="Step by step",
                icon=":material/slow_motion_video:",
                help="One step of the training in slow motion: each formula beside the numbers that it gives.",
            ),
            st.Page(
                "pages/lessons.py",
                title="Lessons",
                icon=":material/school:",
                help="Three lessons for a class, step by step, each with a link; and views that hide settings.",
            ),
            st.Page(
                "pages/glossary.py",
                title="Glossary",
                icon=":material/menu_book:",
                help="Every word of the field that this app uses, in a sentence or two.",
            ),
        ],
        "Yours": [
            st.Page(
                "pages/my_models.py",
                title="Your model",
                icon=":material/upload_file:",
                help="Bring a network of your own and a few clean pictures: polarize, compare, take it home.",
            ),
            st.Page(
                "pages/runs.py",
                title="Runs",
                icon=":material/history:",
                help="Every run on this machine: compare, download, open again.",
            ),
        ],
    }


def dress() -> None:
    """Title, icon and width of the tab; before `st.navigation`, which would fetch a page's icon from a font server."""
    ui = paths.assets() / "ui"
    st.set_page_config(page_title="Neural Polarizer Lab", page_icon=str(ui / "favicon.png"), layout="wide")
    st.logo(str(ui / "logo.svg"), size="large")
    st.html(f"<style>{(ui / 'app.css').read_text(encoding='utf-8')}</style>")


def menu() -> Literal["top", "hidden"]:
    """Where `st.navigation` puts the menu: nowhere in a view that goes without it."""
    return "top" if "menu" in lesson_view.shown() else "hidden"


def header(page: str = "") -> None:
    """Draw the choice of model and run. Called once a script run, before the page.

    Args:
        page: url path of the page; "", the first page, and `your_model`, which has a network of its own, keep the
            choice folded away.
    """
    state = st.session_state
    state["_framed"] = True
    state["_page"] = page
    appearance.follow(tiles.mode())
    if page == "booth":
        return
    lesson_view.dress(page, open_page)
    cards = {card.id: card for card in _cards()}
    for sentence in cache.zoo.unreadable_cards():
        st.warning(sentence, icon=":material/warning:")
    try:
        runs = {run.id: run for run in cache.runs.all_runs()}
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
        runs = {}
    chosen = state.setdefault("_chosen", {"model": None, "run": NO_RUN})
    _read_address(cards, runs)
    if chosen["model"] not in cards:
        chosen["model"] = next(iter(cards), None)
    state["model"] = chosen["model"]
    fitting = [NO_RUN, *(run.id for run in runs.values() if run.request.model == state["model"])]
    if chosen["run"] not in fitting:
        chosen["run"] = NO_RUN
    state["run"] = chosen["run"]
    if page not in WITHOUT_MODEL:
        _draw_choice(page, cards, runs, fitting)
    _write_address(default=next(iter(cards), None))
    if lesson_view.booth():
        lesson_view.keep_watch(page)
    for sentence in state.get("_notices", []):
        st.error(sentence, icon=":material/error:")


def selection() -> Selection:
    """The model and run that the address names; draws the choice first when no frame did."""
    if not st.session_state.get("_framed"):
        join_app()
        header("alone")
        st.session_state["_framed"] = False
    card = run = None
    try:
        if st.session_state.get("model"):
            card = cache.zoo.card(st.session_state["model"])
        if st.session_state.get("run", NO_RUN) != NO_RUN:
            run = cache.runs.find_run(st.session_state["run"])
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
    return Selection(card, run)


def open_run(run_id: str) -> None:
    """Make `run_id` the run of the address (on the next script run, which this starts)."""
    st.session_state["_open_run"] = run_id
    st.session_state["_notices"] = []
    st.rerun()


def open_page(page: str, values: dict[str, str]) -> NoReturn:
    """Go to the page of this url path, with `values` in the address. Not for callbacks.

    Raises:
        StreamlitAPIException: one of the values belongs to a widget that is on show, or the page runs alone.
    """
    target = next((p for section in pages().values() for p in section if p.url_path == page), page)
    st.switch_page(target, query_params=values)


def link(page: str, label: str, icon: str, query: dict[str, str] | None = None) -> None:
    """Link to another page that keeps the choices of the address; plain words when the page runs alone.

    Args:
        page: file of the page, as "pages/lab.py".
        query: what the address of that page is to carry.
    """
    try:
        st.page_link(page, label=label, icon=icon, query_params=query)
    except StreamlitAPIException:
        st.caption(label)


def model_title(card: Card) -> str:
    """One line for a visitor: data set, attack, architecture, width."""
    arch, attack = architecture_name(card.arch), attack_name(card.attack)
    return f"{dataset_name(card.dataset)} · {attack} · {arch}, width {card.width}"


def run_title(run: Run | None) -> str:
    """One line for a visitor: what was asked, how it ended, when."""
    if run is None:
        return "no run yet"
    result = run.result or {}
    end = f"ASR {result['after']['asr']:.1%}" if result.get("after", {}).get("asr") is not None else run.state
    kind = "recorded" if run.recorded else "live"
    when = local_time(run.created)
    return f"{kind} · {repair(run)} · {end} · {when}"


def repair(run: Run) -> str:
    """The defense of a run and its layer, as "NPD · layer4.1.conv1"; a baseline has none: "FP"."""
    name = defense_name(run.request.defense)
    if run.request.defense in CONFIGS:
        return name
    return f"{name} · {run.request.layer or (run.result or {}).get('layer') or 'default layer'}"


def brief(run: Run) -> str:
    """Of a run's id what tells it from others: the start, and the number among those of the same request. A recorded
    run is called by its whole id, which is that of its model."""
    return run.id if run.recorded else f"{run.id[:6]}{run.id[16:]}"


def provenance(run: Run) -> str:
    """Where a number comes from, in one line: live or recorded, seed, device, date."""
    result = run.result or {}
    environment = result.get("environment", {})
    device = environment.get("device") or run.request.device
    kind = "recorded" if run.recorded else "live"
    return f"{kind} · seed {run.request.config.seed} · {device} · {local_time(run.ended or run.created)}"


def local_time(moment: object) -> str:
    """A time stamp as "2026-01-31 14:05", from seconds since 1970 or ISO text; empty for None."""
    if moment is None:
        return ""
    if isinstance(moment, int | float):
        return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M")
    return str(moment).replace("T", " ")[:16]


def join_app() -> None:
    """Start over inside the frame when only the frame is missing.

    Until a server has run `app.py` once, Streamlit takes every file in `pages/` for a page of its own: whoever opens
    /lab first gets that page without its frame. Naming the pages ends that. A page that was started alone stays alone.
    """
    if st.context.url and urlsplit(st.context.url).path.rstrip("/"):
        dress()
        st.navigation(pages(), position=menu())
        st.rerun()


def _cards() -> list[Card]:
    """The zoo, the built-in data set first: what it shows works on every machine. Honest networks come last of each."""
    order = {attack: place for place, attack in enumerate(ATTACKS)}
    return sorted(
        cache.zoo.cards(),
        key=lambda c: (c.dataset != "signs", c.dataset, order.get(c.attack, len(order)), c.width, c.id),
    )


def _draw_choice(page: str, cards: dict[str, Card], runs: dict[str, Run], fitting: list[str]) -> None:
    place: AbstractContextManager[Any]
    if page in ("", "my_models"):
        with st.container(key="view-model", horizontal_alignment="right"):
            place = st.popover("Model and run", icon=":material/tune:", help="Whose record this page shows.")
    else:
        place = st.container(key="view-model")
    with place:
        left, right = st.columns(2)
        left.selectbox(
            "Model",
            list(cards),
            format_func=lambda name: model_title(cards[name]) if name in cards else name,
            key="model",
            on_change=_model_changed,
            disabled=not cards,
            help="Shipped networks that were trained on poisoned data. They work well, until the trigger appears. "
            "Those that are not backdoored show what the polarizer does to an honest network.",
        )
        right.selectbox(
            "Run",
            fitting,
            format_func=lambda name: run_title(runs.get(name)),
            key="run",
            on_change=_run_changed,
            help="What was trained for this model: a polarizer, or another defense. The link in the address bar opens "
            "the same run elsewhere.",
        )


def _read_address(cards: dict[str, Card], runs: dict[str, Run]) -> None:
    """Follow an address that somebody opened, edited or went back to. Unknown names become notices.

    The ids themselves stand in the address, not the titles that the lists show: those change while a run goes on, and
    a list whose titles change forgets what was chosen, so the choice is kept beside it.
    """
    state = st.session_state
    chosen = state["_chosen"]
    wrote = state.get("_address", {})
    asked = {
        name: value
        for name in ("model", "run")
        if (value := st.query_params.get(name)) not in (None, wrote.get(name))
    }
    if "_open_run" in state:
        asked = {"run": state.pop("_open_run")}
    notices = []
    try:
        if asked.get("model"):
            chosen["model"] = cache.zoo.card(asked["model"]).id
    except NPDError as error:
        notices.append(str(error))
    try:
        if asked.get("run") and asked["run"] != NO_RUN:
            run = runs.get(asked["run"]) or cache.runs.find_run(asked["run"])
            runs.setdefault(run.id, run)
            chosen["run"] = run.id
            if run.request.model in cards:
                chosen["model"] = run.request.model
    except NPDError as error:
        notices.append(str(error))
    if asked:
        state["_notices"] = notices


def _write_address(default: str | None) -> None:
    """Keep the address in step with the choice: what is not the default stands in it, on every page."""
    state = st.session_state
    wanted = {
        "model": state["model"] if state["model"] != default else None,
        "run": state["run"] if state["run"] != NO_RUN else None,
    }
    for name, value in wanted.items():
        if value is None:
            st.query_params.pop(name, None)
        elif st.query_params.get(name) != value:
            st.query_params[name] = value
    state["_address"] = wanted


def _run_changed() -> None:
    st.session_state["_chosen"]["run"] = st.session_state["run"]
    st.session_state["_notices"] = []


def choose_model(model_id: str) -> None:
    """Make `model_id` the model of the whole app, without a run; for a button's `on_click`."""
    st.session_state["_chosen"] = {"model": model_id, "run": NO_RUN}
    st.session_state["_notices"] = []
    controls.reset(cache.zoo.card(model_id))


def _model_changed() -> None:
    choose_model(st.session_state["model"])

"""The widgets of a run's settings: from widgets and URL to a `DefenseRequest`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from npd_core.config import presets
from npd_core.config.npd import VARIANTS, NPDConfig
from npd_core.config.presets import PAPER_LAYERS, default_layer, defense_config, step_length
from npd_core.config.request import DefenseRequest
from npd_core.data.spec import get_dataset
from npd_core.errors import ConfigError, NPDError, UnknownNameError, unknown_name
from npd_core.figures import network as drawing
from npd_core.zoo.card import Card
from pages.shared import cache, text, url_state
from pages.shared.settings import ADVANCED, ALL, LOSSES, MAX_EPOCHS, TRAINING, Setting

EVAL_IMAGES = 300
"""Test images behind the live curves."""


def defaults(card: Card, defense: str = "npd") -> DefenseRequest:
    """Return the default request for a defense of a model. Raises ConfigError."""
    return DefenseRequest(
        model=card.id,
        defense=defense,
        layer=default_layer(card.arch, card.dataset) if defense in VARIANTS else None,
        clean=get_dataset(card.dataset).train_images // 20,
        config=defense_config(defense, card),
        eval_images=EVAL_IMAGES,
    )


def default_values(card: Card) -> dict[str, Any]:
    """Return the default of every setting, by key."""
    start = defaults(card)
    return {"clean": start.clean, **start.config.to_dict()}


def layers(card: Card) -> list[str]:
    """Return every insertion layer. Raises CheckpointError when the network has to be loaded and cannot."""
    try:
        return drawing.plan(card.arch, card.width, card.image_size, card.num_classes).layers()
    except UnknownNameError:
        return [str(info.layer) for info in cache.zoo.insertion_layers(card.id)]


def layer_select(card: Card) -> str:
    """Draw the list of insertion layers and return the chosen one."""
    if "_problems" not in st.session_state:
        st.session_state["_problems"] = _url_problems(card)
    options, default = layers(card), defaults(card).layer or ""
    if st.session_state.get("layer", default) not in options:
        st.session_state.pop("layer", None)
    paper = PAPER_LAYERS["preact_resnet18"]
    choice = st.selectbox(
        "Insertion layer",
        options,
        index=options.index(default) if default in options else 0,
        **url_state.bound(url_state.choice("layer", options), quiet=True),
        help="The polarizer, a 1×1 convolution with BatchNorm, is inserted here. The paper inserts it before "
        f"{paper}" + ("." if default == paper else f"; the default here is {default}."),
    )
    return str(choice)


def draw_settings(card: Card, layer: str, *, folded: bool = False) -> DefenseRequest | None:
    """Draw all settings and return their request; None, with a message, when it is not valid.

    Args:
        folded: start with the settings folded away.
    """
    values = default_values(card)
    show_problems()
    with st.expander(
        "Losses and training", key="view-settings", icon=":material/balance:", expanded=not folded
    ):
        for setting in LOSSES:
            values[setting.key] = _draw(setting, values[setting.key])
        _draw_pairs(TRAINING, values)
    with st.expander("Advanced settings", key="view-advanced", icon=":material/tune:"):
        _draw_pairs(ADVANCED, values)
        st.button(
            "Reset to defaults", icon=":material/restart_alt:", on_click=reset, args=(card,), key="reset"
        )
    return checked(card, layer, values)


def draw(keys: Sequence[str], values: dict[str, Any]) -> None:
    """Draw these settings in two columns, starting from `values`, and put the results there."""
    _draw_pairs([ALL[key] for key in keys], values)


def checked(card: Card, layer: str, values: dict[str, Any]) -> DefenseRequest | None:
    """Return the request of these values; None, with a message, when it is not valid."""
    try:
        return build(card, layer, values)
    except NPDError as error:
        text.show_error(error)
        return None


def build(card: Card, layer: str, values: dict[str, Any]) -> DefenseRequest:
    """Return the request of these values, after every check. Raises ConfigError, UnknownNameError."""
    values = dict(values)
    clean = values.pop("clean")
    if layer not in layers(card):
        raise unknown_name("layer", layer, layers(card))
    config = NPDConfig.from_dict(values)
    if config.epochs > MAX_EPOCHS:
        raise ConfigError(
            f"`epochs` is limited to {MAX_EPOCHS} in the app, got {config.epochs}; `npd defend` has no limit."
        )
    if isinstance(clean, bool) or not isinstance(clean, int) or clean < 1:
        raise ConfigError(f"`clean` must be a whole number of images, at least 1, got {clean!r}.")
    available = get_dataset(card.dataset).train_images
    if clean > available:
        raise ConfigError(f"`clean` is {clean}, but {card.dataset} has only {available} training images.")
    return DefenseRequest(model=card.id, layer=layer, clean=clean, config=config, eval_images=EVAL_IMAGES)


def preset_buttons(card: Card, layer: str) -> None:
    """Draw a button for each preset; highlight the current one and say what to watch for."""
    try:
        values = {
            name: st.session_state[name] for name in ALL if name != "clean" and name in st.session_state
        }
        config = NPDConfig.from_dict({**defaults(card).config.to_dict(), **values})
        current = presets.recognize(layer, config, card.arch, card.dataset)
    except NPDError:
        current = None
    with st.container(key="view-settings-presets"):
        with st.container(horizontal=True, gap="small"):
            for name, preset in presets.PRESETS.items():
                st.button(
                    preset.title,
                    key=f"preset-{name}",
                    type="primary" if name == current else "secondary",
                    on_click=_apply_preset,
                    args=(card, name),
                    help=preset.help,
                )
        if current is not None:
            st.caption(presets.PRESETS[current].help)


def show_problems() -> None:
    """Show the settings of the URL, or of an adopted run, that could not be used, until `forget_problems`."""
    for sentence in st.session_state.get("_problems", []):
        st.error(sentence, icon=":material/error:")


def forget_problems() -> None:
    """Stop showing problems."""
    st.session_state["_problems"] = []


def reset(card: Card) -> None:
    """Set every widget to its default. Also for callbacks."""
    adopt(defaults(card))


def can_adopt(request: DefenseRequest) -> bool:
    """Return whether the Lab, which trains NPD itself, has the settings of a request."""
    return request.defense == "npd"


def nothing_set() -> bool:
    """Return whether neither the URL nor this session has a setting yet."""
    return not any(name in st.session_state or name in st.query_params for name in (*ALL, "layer"))


def adopt(request: DefenseRequest) -> None:
    """Set every widget to the settings of a request; note what they cannot show. Also for callbacks."""
    values = _widget_values(request)
    shown = {**defaults(cache.zoo.card(request.model)).config.to_dict(), **values}
    st.session_state["_problems"] = [
        f"`{key}` was {value} in this run; the Lab uses {shown[key]}."
        for key, value in request.config.to_dict().items()
        if key in shown and value != shown[key]
    ]
    for key, value in values.items():
        st.session_state[key] = value


def url_query(request: DefenseRequest) -> dict[str, str]:
    """Return the query of a URL with the settings of a request: all that are not the default.

    An empty optional setting that is not the default, as an early stop of `never`, cannot be written.
    """
    default = _widget_values(defaults(cache.zoo.card(request.model)))
    values = _widget_values(request)
    return {key: str(value) for key, value in values.items() if value not in (None, default.get(key))}


def _url_problems(card: Card) -> list[str]:
    """Return a sentence for each setting of the URL that does not fit; its widget shows the default."""
    layer = url_state.choice("layer", layers(card), "")
    problems = [value.problem() for value in (*(setting.url_value() for setting in ALL.values()), layer)]
    return [f"{sentence} The default is used instead." for sentence in problems if sentence]


def _widget_values(request: DefenseRequest) -> dict[str, Any]:
    """Return what each widget shows for a request, by key; without the layer when the request has none."""
    clean = request.clean
    if isinstance(clean, float):
        clean = round(clean * get_dataset(cache.zoo.card(request.model).dataset).train_images)
    values = {"clean": clean, **request.config.to_dict()}
    found: dict[str, Any] = {"layer": request.layer} if request.layer else {}
    return found | {key: ALL[key].inside(value) for key, value in values.items() if key in ALL}


def _apply_preset(card: Card, name: str) -> None:
    """Set every widget to a preset; the clean images and the seed stay."""
    start = defaults(card)
    clean, seed = st.session_state.get("clean", start.clean), st.session_state.get("seed", start.config.seed)
    config = replace(presets.preset(card.dataset, name), seed=int(seed))
    layer = presets.preset_layer(name, card.arch, card.dataset)
    adopt(replace(start, layer=layer, config=config, clean=int(clean)))


def _draw_pairs(settings: Sequence[Setting], values: dict[str, Any]) -> None:
    for at in range(0, len(settings), 2):
        columns = st.columns(2, vertical_alignment="bottom")
        for column, setting in zip(columns, settings[at : at + 2], strict=False):
            with column:
                values[setting.key] = _draw(setting, values[setting.key])


def _draw(setting: Setting, default: Any) -> Any:
    common: dict[str, Any] = {"help": setting.help, **url_state.bound(setting.url_value(), quiet=True)}
    if setting.kind == "choice":
        options = list(setting.choices)
        changed = _fit_inner_lr if setting.key == "inner_step" else None
        return st.selectbox(setting.label, options, options.index(default), on_change=changed, **common)
    low, high, step = setting.low, setting.high, setting.step
    if setting.kind == "int":
        return st.number_input(setting.label, int(low), int(high), int(default), int(step), **common)
    start = None if default is None else float(default)
    if setting.kind == "slider":
        return st.slider(setting.label, low, high, start, step, **common)
    return st.number_input(
        setting.label, low, high, start, step, format="%g", placeholder=setting.empty, **common
    )


def _fit_inner_lr() -> None:
    """Set the length of an inner step to the default of the new direction, which has another unit."""
    state = st.session_state
    if {"rho", "inner_steps", "inner_lr"} <= state.keys():
        state["inner_lr"] = step_length(state["inner_step"], state["rho"], state["inner_steps"])

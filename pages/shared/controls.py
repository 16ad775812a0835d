"""Widgets and address -> `DefenseRequest`. Every setting is bound to the address; the core checks every value again."""

from __future__ import annotations

import ast
import functools
import inspect
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import streamlit as st

from npd_core.config import npd as settings
from npd_core.config import presets
from npd_core.config.npd import PAPER_LAYERS, VARIANTS, NPDConfig, default_layer
from npd_core.config.request import DefenseRequest
from npd_core.data.spec import get_dataset
from npd_core.errors import ConfigError, NPDError, UnknownNameError, unknown_name
from npd_core.experiments.grid import config_for
from npd_core.figures import network as drawing
from npd_core.zoo.card import Card
from pages.shared import cache

EVAL_IMAGES = 300
"""Test images behind the live curves."""
MAX_EPOCHS = 200


@dataclass(frozen=True)
class Setting:
    """One widget, named as the field that it sets."""

    key: str
    label: str
    kind: Literal["slider", "float", "int", "choice", "optional"]
    low: float = 0.0
    high: float | None = None
    step: float = 0.05
    choices: Sequence[str] = ()
    help: str = ""
    """Empty: the field's own documentation."""
    empty: str = ""
    """What an empty `optional` means."""


LOSSES = (
    Setting(
        "lambda1",
        "λ₁ · clean images keep their label (L_bn)",
        "slider",
        high=2.0,
        help="Weight of the loss on clean images, Eq. 5 of the paper, which uses 1. Without it accuracy is lost.",
    ),
    Setting(
        "lambda2",
        "λ₂ · leave the attacker's class (L_asr)",
        "slider",
        high=2.0,
        help="Weight of the loss that pushes perturbed images away from the class they were pulled to, Eq. 2. "
        "The paper uses 0.4, and 0.1 where the perturbation does not follow the polarizer; 0 shows what the other "
        "terms do alone.",
    ),
    Setting(
        "lambda3",
        "λ₃ · return to the true class (L_bce)",
        "slider",
        high=2.0,
        help="Weight of the boosted cross entropy that gives perturbed images their true label back, Eq. 3. "
        "The paper uses 0.4 and 0.1, as for λ₂. It is what makes a purified picture right, not merely different.",
    ),
)
TRAINING = (
    Setting(
        "rho",
        "ρ · size of the imagined trigger",
        "float",
        low=0.001,
        high=1000.0,
        step=0.5,
        help="Budget of the inner perturbation, in [0, 1] pixel units and the norm beside it. "
        "The paper uses 3 (l2) for 32×32 images and 6 for 64×64.",
    ),
    Setting(
        "norm",
        "Norm of ρ",
        "choice",
        choices=settings.NORMS,
        help="How the size of a perturbation is measured. The paper uses l2; try ρ near 0.1 for linf and 50 for l1.",
    ),
    Setting(
        "attack_on",
        "Network the imagined trigger is made for",
        "choice",
        choices=("base", "polarized"),
        help="Eq. 4 of the paper in words: perturb the backdoored network f_w (`base`). It never changes, so each "
        "image is perturbed once and later epochs are cheap. Eq. 4 as a formula: perturb the network with the "
        "polarizer (`polarized`), in every batch anew; watch the backdoor come back when training goes on.",
    ),
    Setting(
        "epochs",
        "Epochs",
        "int",
        low=1,
        high=MAX_EPOCHS,
        step=1,
        help="Rounds after the warm-up: one pass over the clean images each, or as many as **Least steps of an epoch** "
        f"(advanced settings) takes. The paper trains 50; the app allows {MAX_EPOCHS}.",
    ),
    Setting(
        "clean",
        "Clean images",
        "int",
        low=10,
        high=100000,
        step=50,
        help="Images the defender owns, drawn evenly from all classes. The paper uses 5 % of the training set.",
    ),
    Setting(
        "seed",
        "Seed",
        "int",
        low=0,
        high=2**31 - 1,
        step=1,
        help="Chooses the clean images and their order. The same seed on the same device gives the same run.",
    ),
)
ADVANCED = (
    Setting("lambda4", "λ₄ · strongest wrong class (L_bce2)", "optional", high=10.0, empty="tied to λ₃"),
    Setting("bn_mode", "BatchNorm of the polarizer", "choice", choices=settings.BN_MODES),
    Setting("lr", "Learning rate", "float", low=1e-5, high=1.0, step=0.001),
    Setting(
        "batch_size",
        "Batch size",
        "int",
        low=2,
        high=1024,
        step=16,
        help="Images per step; the paper uses 128.",
    ),
    Setting(
        "epoch_steps",
        "Least steps of an epoch",
        "int",
        low=1,
        high=1000,
        step=12,
        help="An epoch passes over the clean images as often as it takes to make so many batches, so that few images "
        "are trained on as long as many. 1 is one pass, as in the paper.",
    ),
    Setting("warmup_epochs", "Warm-up epochs (T₀)", "int", high=50, step=1),
    Setting("inner_steps", "Inner steps (S)", "int", low=1, high=20, step=1),
    Setting("inner_step", "Direction of an inner step", "choice", choices=settings.INNER_STEPS),
    Setting("inner_lr", "Length of an inner step", "float", low=0.001, high=150.0, step=0.05),
    Setting("early_stop", "Early stop of the inner loop", "optional", high=1.0, empty="never"),
    Setting("clip_grad", "Gradient clipping", "optional", high=1000.0, empty="no bound"),
    Setting("ema", "Running average (EMA)", "optional", high=0.9999, step=0.01, empty="off"),
    Setting("schedule", "Learning-rate schedule", "choice", choices=("constant", "cosine")),
    Setting("holdout", "Share held out to choose the epoch", "float", high=0.5, step=0.05),
    Setting("log_form", "Form of the logarithms", "choice", choices=settings.LOG_FORMS),
    Setting("bce1_label", "Label in L_bce1", "choice", choices=("true", "pred")),
)
ALL = {setting.key: setting for setting in (*LOSSES, *TRAINING, *ADVANCED)}


def defaults(card: Card, defense: str = "npd") -> DefenseRequest:
    """Return the default request for a defense of a model; NPD takes seconds to minutes. Raises ConfigError."""
    return DefenseRequest(
        model=card.id,
        defense=defense,
        layer=default_layer(card.arch, card.dataset) if defense in VARIANTS else None,
        clean=get_dataset(card.dataset).train_images // 20,
        config=config_for(defense, card),
        eval_images=EVAL_IMAGES,
    )


def layers(card: Card) -> list[str]:
    """Every insertion point. Raises CheckpointError for an architecture that has to be loaded and cannot."""
    try:
        return drawing.plan(card.arch, card.width, card.image_size, card.num_classes).layers()
    except UnknownNameError:
        return [str(info.layer) for info in cache.zoo.insertion_layers(card.id)]


def layer_select(card: Card) -> str:
    """The insertion point as a list, for those who know its name; the drawing shows and sets the same choice."""
    if "_problems" not in st.session_state:  # before a widget puts the address right
        st.session_state["_problems"] = address_problems(card)
    options, default = layers(card), defaults(card).layer or ""
    if st.session_state.get("layer", default) not in options:
        st.session_state.pop("layer", None)
    choice = st.selectbox(
        "Insertion layer",
        options,
        index=options.index(default) if default in options else 0,
        key="layer",
        bind="query-params",
        help="Where the polarizer, a 1×1 convolution with BatchNorm, is put. The paper puts it before "
        + PAPER_LAYERS["preact_resnet18"]
        + (
            ", as the default does here."
            if default == PAPER_LAYERS["preact_resnet18"]
            else f"; the default here is {default}."
        ),
    )
    return str(choice)


def request(card: Card, layer: str, *, folded: bool = False) -> DefenseRequest | None:
    """Draw all settings. Returns what they ask for; None, with one sentence shown, when it cannot be done.

    Args:
        folded: start with the settings folded away, as while a run goes on.
    """
    values = start_values(card)
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
            "Back to the preset", icon=":material/restart_alt:", on_click=reset, args=(card,), key="reset"
        )
    return ask(card, layer, values)


def start_values(card: Card) -> dict[str, Any]:
    """Every setting as the preset of the model has it, by name."""
    start = defaults(card)
    return {"clean": start.clean, **start.config.to_dict()}


def draw(keys: Sequence[str], values: dict[str, Any]) -> None:
    """Draw these settings, two in a row, and put what they say into `values`, which holds what they start from."""
    _draw_pairs([ALL[key] for key in keys], values)


def ask(card: Card, layer: str, values: dict[str, Any]) -> DefenseRequest | None:
    """What `build` makes of the values; None, with its sentence shown, when it refuses."""
    try:
        return build(card, layer, values)
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
        return None


def show_problems() -> None:
    """The sentences of `address_problems`, until they are settled."""
    for sentence in st.session_state.get("_problems", []):
        st.error(sentence, icon=":material/error:")


def scenes(card: Card, layer: str) -> None:
    """Buttons for the named settings, and what to watch for where the settings are one of them."""
    try:
        values = {
            name: st.session_state[name] for name in ALL if name != "clean" and name in st.session_state
        }
        now = NPDConfig.from_dict({**defaults(card).config.to_dict(), **values})
        name = presets.recognise(layer, now, card.arch, card.dataset)
    except NPDError:
        name = None
    with st.container(key="view-settings-presets"):
        with st.container(horizontal=True, gap="small"):
            for key, scene in presets.SCENES.items():
                st.button(
                    scene.title,
                    key=f"preset-{key}",
                    type="primary" if key == name else "secondary",
                    on_click=play,
                    args=(card, key),
                    help=scene.watch,
                )
        if name is not None:
            st.caption(f"**What to watch for.** {presets.SCENES[name].watch}")


def play(card: Card, name: str) -> None:
    """Set every widget to a named setting; clean images and seed stay as they are. For a button's `on_click`."""
    start = defaults(card)
    clean, seed = st.session_state.get("clean", start.clean), st.session_state.get("seed", start.config.seed)
    layer, config = presets.scene(name, card.arch, card.dataset, int(seed))
    adopt(replace(start, layer=layer, config=config, clean=int(clean)))


def build(card: Card, layer: str, values: dict[str, Any]) -> DefenseRequest:
    """The request that these values ask for. Raises ConfigError or UnknownNameError, whatever the browser sent."""
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
    there = get_dataset(card.dataset).train_images
    if clean > there:
        raise ConfigError(f"`clean` asks for {clean} images, but {card.dataset} has {there} training images.")
    return DefenseRequest(model=card.id, layer=layer, clean=clean, config=config, eval_images=EVAL_IMAGES)


def address_problems(card: Card) -> list[str]:
    """One sentence for each setting in the address that cannot be used; its default is shown instead."""
    problems = []
    for key, setting in ALL.items():
        if key in st.query_params:
            sentence = problem(setting, st.query_params[key])
            if sentence:
                problems.append(f"{sentence} The address asked for it; the preset is used instead.")
    asked = st.query_params.get("layer")
    if asked and asked not in layers(card):
        problems.append(f"{unknown_name('layer', asked, layers(card))} The default is used instead.")
    return problems


def problem(setting: Setting, text: str) -> str:
    """What is wrong with a value of the address; empty when nothing is."""
    value: Any = text
    if setting.kind == "optional" and text in ("", "none", "None"):
        return ""
    if setting.kind != "choice":
        try:
            value = int(text) if setting.kind == "int" else float(text)
        except ValueError:
            return f"`{setting.key}` must be a {'whole ' if setting.kind == 'int' else ''}number, got {text[:40]!r}."
    try:
        DefenseRequest(model="", clean=value) if setting.key == "clean" else NPDConfig.from_dict(
            {setting.key: value}
        )
    except NPDError as error:
        return str(error)
    if setting.kind != "choice" and not setting.low <= value <= (
        setting.high if setting.high is not None else value
    ):
        return f"`{setting.key}` must be between {setting.low:g} and {setting.high:g} here, got {text[:40]}."
    return ""


def forget_problems() -> None:
    """What was wrong with the address is settled."""
    st.session_state["_problems"] = []


def reset(card: Card) -> None:
    """Back to the preset of the model. For a button's `on_click`, as is `adopt`."""
    adopt(defaults(card))


def adoptable(asked: DefenseRequest) -> bool:
    """Whether a run was asked for with settings of the Lab, which trains NPD itself."""
    return asked.defense == "npd"


def untouched() -> bool:
    """Whether neither the address nor this session has a setting yet."""
    return not any(name in st.session_state or name in st.query_params for name in (*ALL, "layer"))


def adopt(asked: DefenseRequest) -> None:
    """Set every widget to what a run was asked for, and say what the widgets cannot."""
    st.session_state["_problems"] = lost(asked)
    for key, value in _widget_values(asked).items():
        st.session_state[key] = value


def lost(asked: DefenseRequest) -> list[str]:
    """A sentence for each setting of a run that has no widget, or a value out of its range, and is not what the Lab
    would ask for."""
    ours = {**defaults(cache.zoo.card(asked.model)).config.to_dict(), **_widget_values(asked)}
    return [
        f"`{key}` was {value} in this run; the Lab uses {ours[key]}."
        for key, value in asked.config.to_dict().items()
        if key in ours and value != ours[key]
    ]


def in_address(asked: DefenseRequest) -> dict[str, str]:
    """What an address says that sets every widget to what a run was asked for: all that differs from the preset, but
    for the early stop of `never`, which an address cannot say."""
    preset = _widget_values(defaults(cache.zoo.card(asked.model)))
    wanted = _widget_values(asked)
    return {key: str(value) for key, value in wanted.items() if value not in (None, preset.get(key))}


def _widget_values(asked: DefenseRequest) -> dict[str, Any]:
    """By key, within the range of each widget; without the layer where the default is asked for."""
    clean = asked.clean
    if isinstance(clean, float):
        clean = round(clean * get_dataset(cache.zoo.card(asked.model).dataset).train_images)
    found: dict[str, Any] = {"layer": asked.layer} if asked.layer else {}
    for key, value in {"clean": clean, **asked.config.to_dict()}.items():
        if key not in ALL:
            continue
        setting = ALL[key]
        if value is None or setting.kind == "choice":
            found[key] = value
        else:
            high = setting.high if setting.high is not None else value
            inside = min(max(value, setting.low), high)
            found[key] = int(inside) if setting.kind == "int" else float(inside)
    return found


def _draw_pairs(rows: Sequence[Setting], values: dict[str, Any]) -> None:
    for at in range(0, len(rows), 2):
        for column, setting in zip(
            st.columns(2, vertical_alignment="bottom"), rows[at : at + 2], strict=False
        ):
            with column:
                values[setting.key] = _draw(setting, values[setting.key])


def _draw(setting: Setting, default: Any) -> Any:
    told = setting.help or field_docs().get(setting.key)
    words: dict[str, Any] = {"key": setting.key, "bind": "query-params", "help": told}
    if setting.kind == "choice":
        options = list(setting.choices)
        follow = _fit_step if setting.key == "inner_step" else None
        return st.selectbox(setting.label, options, index=options.index(default), on_change=follow, **words)
    if setting.kind == "slider":
        return st.slider(setting.label, setting.low, setting.high, float(default), setting.step, **words)
    if setting.kind == "int":
        if _infinite(st.query_params.get(setting.key, "")):
            del words["bind"]  # Streamlit would make a whole number of it, and fail
        return st.number_input(
            setting.label, int(setting.low), int(setting.high or 0), int(default), int(setting.step), **words
        )
    optional = setting.kind == "optional"
    return st.number_input(
        setting.label,
        setting.low,
        setting.high,
        None if default is None else float(default),
        setting.step,
        format="%g",
        placeholder=setting.empty if optional else None,
        **words,
    )


def _fit_step() -> None:
    """Another direction of an inner step was chosen: its length is in another unit then."""
    state = st.session_state
    if {"rho", "inner_steps", "inner_lr"} <= state.keys():
        state["inner_lr"] = settings.step_length(state["inner_step"], state["rho"], state["inner_steps"])


def _infinite(text: str) -> bool:
    try:
        return math.isinf(float(text))
    except ValueError:
        return False


@functools.cache
def field_docs() -> dict[str, str]:
    """Documentation of each field of NPDConfig, as written under it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(NPDConfig)))
    body, docs = tree.body[0].body, {}  # type: ignore[attr-defined]
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            docs[field.target.id] = str(text.value.value)  # type: ignore[union-attr]
    return docs

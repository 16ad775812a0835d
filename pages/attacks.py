"""The eight attacks: what each does to a picture, how it is trained into a network, and what it achieved there."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from npd_core.attack_info import ATTACK_INFO
from npd_core.errors import NPDError
from npd_core.figures.predictions import data_url
from npd_core.zoo.card import Card, model_id
from pages.shared import cached, selectors, shell, tiles
from pages.shared.components.compare import compare

PICTURES = 4
WEAK = 0.5  # ASR below which the page says that the attack did not take


def nearest(attack: str, cards: list[Card], like: Card | None) -> Card | None:
    """The model of this attack that has most in common with `like`; None when the zoo has none."""
    found = [card for card in cards if card.attack == attack]
    if like is None or not found:
        return next(iter(found), None)
    return min(found, key=lambda c: (c.dataset != like.dataset, c.arch != like.arch, c.width != like.width))


def choose_attack(attack: str, card: Card | None) -> None:
    """A button of the picker was pressed: the model of the attack, where there is one, becomes that of the app."""
    if card is None:
        st.query_params["attack"] = attack
    else:
        st.query_params.pop("attack", None)
        shell.choose_model(card.id)


def chosen_attack(card: Card | None, models: dict[str, Card | None]) -> str:
    """The attack of the address, of the last press, or of the model; another choice of model settles it anew."""
    state = st.session_state
    current = card.attack if card is not None and card.attack in ATTACK_INFO else next(iter(ATTACK_INFO))
    asked = st.query_params.get("attack")
    if state.get("_attack_of") not in (None, card and card.id):
        st.query_params.pop("attack", None)
        asked = None
    state["_attack_of"] = card and card.id
    if asked is None:
        return current
    if asked not in ATTACK_INFO:
        st.query_params.pop("attack", None)
        st.error(
            f"There is no attack {asked[:40]!r}. Choose one of: {', '.join(ATTACK_INFO)}.",
            icon=":material/error:",
        )
        return current
    if models[asked] is not None and models[asked] != card:
        choose_attack(asked, models[asked])
        st.rerun()
    return asked


def pictures(attack: str, model: Card | None, dataset: str, count: int) -> cached.Shown | str:
    """What the attack does to a few pictures; where that cannot be shown, the reason in a sentence."""
    try:
        return cached.shown(model.id if model else None, attack, model.dataset if model else dataset, count)
    except NPDError as error:
        return str(error)


def picker(chosen: str, models: dict[str, Card | None], dataset: str) -> None:
    """A tile for each attack: its picture, and a button with its name."""
    with st.container(horizontal=True, gap="small"):
        for attack, info in ATTACK_INFO.items():
            model = models[attack]
            found = pictures(attack, model, dataset, 1)
            with st.container(width=168, border=True, key=f"attack_{attack}"):
                tiles.thumbnail(
                    None if isinstance(found, str) else found.triggered[0],
                    f"A picture with the trigger of {info.title}",
                    "needs a model" if model is None and info.made_for_model else "no picture",
                )
                st.button(
                    info.title,
                    key=f"choose_{attack}",
                    type="primary" if attack == chosen else "secondary",
                    icon=":material/check:" if attack == chosen else None,
                    width="stretch",
                    on_click=choose_attack,
                    args=(attack, model),
                    help=info.sentence,
                )
                st.caption("no model here" if model is None else f"ASR {model.asr:.1%}")


def facts(attack: str) -> None:
    """The attack in words."""
    info = ATTACK_INFO[attack]
    st.header(info.title)
    st.markdown(f"**{info.sentence}**")
    st.caption(f"Source: {info.source}")
    st.markdown(
        f"- **What it does to the pixels.** {info.trigger}\n"
        f"- **What the attacker does in training.** {info.training}\n"
        f"- **What the attacker wants.** {info.rule}"
    )


def model_card(model: Card) -> None:
    """Everything that the card of a model says."""
    st.caption(f"`{model.id}` · measured on the whole test split when the model was made")
    measured: list[tuple[str, float | None, str]] = [
        ("ACC", model.acc, "Clean test pictures that get their true label."),
        ("ASR", model.asr, "Triggered test pictures that become what the attacker wants."),
        ("RA", model.ra, "Triggered test pictures that still get their true label."),
    ]
    if model.cross_acc is not None:
        words = "Test pictures with the disturbance that must change nothing, given their true label."
        measured.append(("Cross-trigger ACC", model.cross_acc, words))
    for column, (name, value, words) in zip(st.columns(len(measured)), measured, strict=True):
        column.metric(name, "–" if value is None else f"{value:.1%}", help=words)
    if model.asr is not None and model.asr < WEAK:
        st.warning(
            f"The backdoor did not take in this model: the trigger works on {model.asr:.1%} of the test pictures. It "
            "is shown as it was measured.",
            icon=":material/warning:",
        )
    tiles.facts(
        {
            "data set": model.dataset,
            "architecture": f"{model.arch}, width {model.width}",
            "poisoned training images": f"{model.poison_ratio:.0%}",
            "attacker’s target": model.target,
            "settings of the attack": _listed(model.attack_params) or "none",
            "recipe": _listed(model.recipe) or "not recorded",
            "seed": str(model.seed),
            "time to train": f"{model.seconds:.0f} s" if model.seconds else "not recorded",
            "size": f"{model.bytes / 1e6:.1f} MB",
            "made again by": model.command,
            **{f"sha256 of {name}": value for name, value in model.files.items()},
        }
    )


def _listed(values: Mapping[str, object]) -> str:
    shown = {name: value for name, value in values.items() if name != "seed" and value not in ([], ())}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


selection = shell.selection()
card = selection.card
st.title("Attacks")
st.write(
    "A backdoor is planted while a network learns: a trigger on some training pictures, and a false label under them. "
    "These are the eight attacks of the paper. Choosing one chooses its model for the whole app."
)
dataset = card.dataset if card is not None else "signs"
with selectors.working():
    models = {attack: nearest(attack, cached.cards(), card) for attack in ATTACK_INFO}
attack = chosen_attack(card, models)
model = models[attack]
if card is not None and card.attack == attack:
    model = card
elif card is not None and card.asr is None:
    st.info(
        f"The chosen model, {shell.model_title(card)}, was trained without any of them. Below is an attack to compare "
        "it with.",
        icon=":material/verified:",
    )
    with st.expander("Card of the chosen model", icon=":material/badge:"):
        model_card(card)
picker(attack, models | {attack: model}, dataset)
facts(attack)

if model is None:
    command = f"npd zoo train {model_id(dataset, attack, 'preact_resnet18', card.width if card else 32)}"
    st.info(
        f"There is no model of this attack on this machine. `{command}` makes one; it takes minutes to hours.",
        icon=":material/inventory_2:",
    )
found = pictures(attack, model, dataset, PICTURES)
if isinstance(found, str):
    if model is not None or not ATTACK_INFO[attack].made_for_model:
        st.warning(found, icon=":material/folder_off:")
    else:
        st.caption("Its trigger is made for a model, so without one there is nothing to show.")
else:
    st.subheader("Clean, poisoned, and the difference × 10")
    st.caption(
        "Test pictures, one of each class. The difference is amplified around grey, which means unchanged."
        + (
            ""
            if model is not None
            else " Shown with the trigger that this attack always has: no model is needed."
        )
    )
    left, right = st.columns([3, 7], gap="large")
    with left:
        compare(
            data_url(found.clean[0]),
            data_url(found.triggered[0]),
            names=("clean", "poisoned"),
            alt="A test picture",
            key="attack_compare",
        )
    with right:
        tiles.show_rows(
            [
                "Clean",
                "Poisoned",
                "Difference × 10",
                *([] if found.crossed is None else ["Must change nothing"]),
            ],
            [
                [
                    clean,
                    bad,
                    tiles.change(clean, bad).image,
                    *([] if found.crossed is None else [found.crossed[i]]),
                ]
                for i, (clean, bad) in enumerate(zip(found.clean, found.triggered, strict=True))
            ],
        )
        if found.crossed is not None:
            st.caption(
                "*Must change nothing*: the disturbance of the last row is trained with the true label, so that only "
                "the exact trigger works."
            )
if model is not None:
    st.subheader("Model card")
    model_card(model)
    with st.container(horizontal=True):
        shell.link(
            "pages/predictions.py",
            "See it hijack predictions, or try your own picture",
            ":material/image_search:",
        )
        shell.link("pages/lab.py", "Filter it out in the Lab", ":material/science:")

"""The eight attacks: what each does to an image, how it is planted in training, and how well it works."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from npd_core.attack_info import ATTACK_INFO
from npd_core.errors import NPDError
from npd_core.figures.predictions import GAIN, difference
from npd_core.names import CURVES, METRICS, architecture_name, dataset_name
from npd_core.zoo.card import Card, model_id
from pages.shared import cache, choice, describe, selectors, shell, tiles, url_state
from pages.shared.components.compare import compare

ATTACK = url_state.choice("attack", list(ATTACK_INFO), default="")
IMAGES = 4
WEAK = 0.5  # ASR below which the page warns that the backdoor was not learned


def choose_attack(attack: str, card: Card | None) -> None:
    """Select the model of an attack, where there is one, for the whole app; for `on_click`."""
    if card is None:
        ATTACK.set(attack)
    else:
        ATTACK.clear()
        choice.choose_model(card.id)


def chosen_attack(card: Card | None, models: dict[str, Card | None]) -> str:
    """Return the attack of the URL or of the model; choosing another model resets it."""
    model_id = card.id if card is not None else None
    if st.session_state.get("_attack_of", model_id) != model_id:
        ATTACK.clear()
    st.session_state["_attack_of"] = model_id
    attack = ATTACK.get()
    url_state.show_notices(ATTACK)
    if not attack:
        return card.attack if card is not None and card.attack in ATTACK_INFO else next(iter(ATTACK_INFO))
    if models[attack] is not None and models[attack] != card:
        choose_attack(attack, models[attack])
        st.rerun()
    return attack


def images(attack: str, model: Card | None, dataset: str, count: int) -> cache.images.Examples | str:
    """Return a few images under the attack, or the reason why they cannot be shown."""
    try:
        return cache.images.examples(
            model.id if model else None, attack, model.dataset if model else dataset, count
        )
    except NPDError as error:
        return str(error)


def picker(chosen: str, models: dict[str, Card | None], dataset: str) -> None:
    """Show a tile for each attack: an image, and a button with its name."""
    with st.container(horizontal=True, gap="small"):
        for attack, info in ATTACK_INFO.items():
            model = models[attack]
            found = images(attack, model, dataset, 1)
            with st.container(width=168, border=True, key=f"attack_{attack}"):
                tiles.thumbnail(
                    None if isinstance(found, str) else found.triggered[0],
                    f"An image with the trigger of {info.title}",
                    "needs a model" if model is None and info.made_for_model else "no image",
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
                st.caption("no model" if model is None else f"ASR {model.asr:.1%}")


def facts(attack: str) -> None:
    """Describe the attack."""
    info = ATTACK_INFO[attack]
    st.header(info.title)
    st.markdown(f"**{info.sentence}**")
    st.caption(f"Source: {info.source}")
    st.markdown(f"- **Trigger.** {info.trigger}\n- **Training.** {info.training}\n- **Target.** {info.rule}")


def model_card(model: Card) -> None:
    """Show the card of a model."""
    st.caption(f"`{model.id}` · measured on the whole test split after training")
    measured = [(METRICS[name].short, getattr(model, name), METRICS[name].help) for name in CURVES]
    if model.cross_acc is not None:
        words = "Cross-trigger test images predicted as their true class."
        measured.append(("Cross-trigger ACC", model.cross_acc, words))
    for column, (name, value, words) in zip(st.columns(len(measured)), measured, strict=True):
        column.metric(name, "–" if value is None else f"{value:.1%}", help=words)
    if model.asr is not None and model.asr < WEAK:
        st.warning(
            f"The backdoor was not learned: the trigger works on {model.asr:.1%} of the test images.",
            icon=":material/warning:",
        )
    tiles.facts(
        {
            "data set": dataset_name(model.dataset),
            "architecture": f"{architecture_name(model.arch)}, width {model.width}",
            "poisoned training images": f"{model.poison_ratio:.0%}",
            "target": model.target,
            "attack settings": _listed(model.attack_params) or "none",
            "recipe": _listed(model.recipe) or "not recorded",
            "seed": str(model.seed),
            "training time": f"{model.seconds:.0f} s" if model.seconds else "not recorded",
            "size": f"{model.bytes / 1e6:.1f} MB",
            "command": model.command,
            **{f"sha256 of {name}": value for name, value in model.files.items()},
        }
    )


def _listed(values: Mapping[str, object]) -> str:
    shown = {name: value for name, value in values.items() if name != "seed" and value not in ([], ())}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


selection = shell.selection()
card = selection.card
shell.title(
    "Attacks",
    "What each attack does to an image and how well it works. Choosing one selects its model for the whole "
    "app.",
)
dataset = card.dataset if card is not None else "signs"
with selectors.working():
    models = {attack: choice.nearest(cache.zoo.cards(), card, attack=attack) for attack in ATTACK_INFO}
attack = chosen_attack(card, models)
model = models[attack]
if card is not None and card.attack == attack:
    model = card
elif card is not None and card.asr is None:
    st.info(
        f"The chosen model, {describe.model(card)}, is a clean model. An attack is shown for comparison.",
        icon=":material/verified:",
    )
    with st.expander("Card of the clean model", icon=":material/badge:"):
        model_card(card)
picker(attack, models | {attack: model}, dataset)
facts(attack)

if model is None:
    command = f"npd zoo train {model_id(dataset, attack, 'preact_resnet18', card.width if card else 32)}"
    st.info(
        f"There is no model of this attack on this machine. `{command}` trains one in minutes to hours.",
        icon=":material/inventory_2:",
    )
found = images(attack, model, dataset, IMAGES)
if isinstance(found, str):
    if model is not None or not ATTACK_INFO[attack].made_for_model:
        st.warning(found, icon=":material/folder_off:")
    else:
        st.caption("The trigger of this attack is made for one model, so it cannot be shown without a model.")
else:
    st.subheader("Clean, triggered, and the difference × 10")
    st.caption(
        "Test images of different classes. The difference is amplified; gray means unchanged."
        + ("" if model is not None else " This attack has the same trigger with every model.")
    )
    left, right = st.columns([3, 7], gap="large")
    with left:
        compare(found.clean[0], found.triggered[0], alt="A test image", key="attack_compare")
    with right:
        change = difference(found.clean, found.triggered)
        rows = {"Clean": found.clean, "Triggered": found.triggered, f"Difference × {GAIN}": change}
        if found.cross_trigger is not None:
            rows["Cross-trigger (label kept)"] = found.cross_trigger
        tiles.show_rows(list(rows), list(zip(*rows.values(), strict=True)))
        if found.cross_trigger is not None:
            st.caption(
                "Cross-trigger images keep their label in training, so that only the exact trigger works."
            )
if model is not None:
    st.subheader("Model card")
    model_card(model)
    with st.container(horizontal=True):
        shell.link(
            "pages/predictions.py",
            "See it hijack predictions, or try your own image",
            ":material/image_search:",
        )
        shell.link("pages/lab.py", "Remove the backdoor in the Lab", ":material/science:")

"""Bring a network of your own and a few clean pictures: polarize it, see what can be known, take it home."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from npd_core import paths
from npd_core.config.request import DefenseRequest
from npd_core.data.spec import NORMALISATIONS, get_dataset
from npd_core.errors import NPDError
from npd_core.figures import curves
from npd_core.runs import queue
from npd_core.runs.store import Run
from npd_core.zoo.card import Card, get_card
from pages.shared import cached, downloads, lesson_view, selectors, shell, tiles
from pages.shared.components.chart import chart

if TYPE_CHECKING:
    from npd_core.data.spec import Colour

MB = 1_000_000
CHECKPOINT_MB, IMAGES_MB = 300, 200  # largest uploads
MOST_EPOCHS = 50
TORCHVISION = "a classifier of torchvision"
ARCHITECTURES = {
    "auto": "find out (PreAct-ResNet18 or VGG19-BN)",
    "preact_resnet18": "PreAct-ResNet18",
    "vgg19_bn": "VGG19-BN",
    TORCHVISION: TORCHVISION,
}
OTHER = "other numbers"


def in_address() -> Card | None:
    """The brought network that the address names, or named before the visitor went to another page; None without one,
    and after a sentence where it is unknown."""
    asked = lesson_view.carried("own")
    if not asked:
        return None
    try:
        card = get_card(asked)
        if paths.own(card.id) is not None:
            return card
        st.error(f"{asked[:60]} is a model of the zoo: choose it in the Lab.", icon=":material/error:")
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
    lesson_view.forget("own")
    return None


def leave() -> None:
    """Take the network and its run out of the address."""
    lesson_view.drop("own")
    lesson_view.drop("own_run")


# ------------------------------------------------------------------------------------------------------------- bringing


def intake() -> None:
    """Ask for the files and what they do not say; a network that can be used goes into the address."""
    st.write(
        "You have a classifier that somebody else trained, and no idea whether it has a backdoor. Bring its weights "
        "and a few clean pictures that you trust. Half of them train the polarizer, the other half only measure it."
    )
    left, right = st.columns(2)
    with left:
        st.subheader("1 · The checkpoint")
        weights = st.file_uploader(
            "Checkpoint",
            type=["safetensors", "pt", "pth", "bin", "tar"],
            key="own_checkpoint",
            max_upload_size=CHECKPOINT_MB,
            help="A safetensors file, a state dict, or BackdoorBench’s attack_result.pt. It is read as numbers only: "
            "nothing in it is executed, and a file that asks for more is refused.",
        )
        arch = st.selectbox(
            "Architecture",
            list(ARCHITECTURES),
            format_func=ARCHITECTURES.__getitem__,
            key="own_arch",
            help="Width and number of classes are read from the shapes of the weights.",
        )
        if arch == TORCHVISION:
            names = cached.torchvision_names()
            arch = st.selectbox(
                "Classifier",
                names,
                index=names.index("resnet18"),
                key="own_torchvision",
                help="By torchvision’s name.",
            )
        size = int(
            st.number_input(
                "Picture size in pixels",
                16,
                256,
                32,
                key="own_size",
                help="Height and width the network was trained with.",
            )
        )
    with right:
        st.subheader("2 · Clean pictures")
        clean = st.file_uploader(
            "Clean pictures",
            type=["zip", "parquet"],
            key="own_clean",
            max_upload_size=IMAGES_MB,
            help="A zip archive with a folder for each class, or a parquet file in the layout of Hugging Face. Folders "
            "named 0, 1, 2, … are labels; other names get their labels in alphabetical order.",
        )
        mean, std = _normalisation()
        with st.expander("Pictures that carry the trigger (only if you have some)"):
            triggered = st.file_uploader(
                "Triggered pictures",
                type=["zip", "parquet"],
                key="own_triggered",
                max_upload_size=IMAGES_MB,
                help="The same layout, folders by the TRUE class. Without them the attack’s success cannot be known.",
            )
            target = int(st.number_input("Label that the attacker wants", 0, 1999, 0, key="own_target"))
    if st.button(
        "Check and open",
        key="own_bring",
        type="primary",
        icon=":material/fact_check:",
        disabled=not (weights and clean),
    ):
        card = _bring(weights, clean, triggered, arch, mean, std, size, target if triggered else None)
        if card is not None:
            st.query_params["own"] = card.id
            st.rerun()
    st.caption(
        f"Limits: {CHECKPOINT_MB} MB for the checkpoint, {IMAGES_MB} MB and 20,000 files for the pictures. Your files "
        "stay on the machine that serves this app until you remove them; whoever has the address of this page can see "
        "the network’s results and export it."
    )


def _normalisation() -> tuple[Colour, Colour]:
    """Mean and deviation that the visitor chose."""
    name = st.selectbox(
        "Normalisation",
        [*NORMALISATIONS, OTHER],
        key="own_normalisation",
        help="What was subtracted from the pixels and divided by in training. BackdoorBench leaves GTSRB as it is.",
    )
    if name != OTHER:
        return NORMALISATIONS[name]
    columns = st.columns(3)
    mean = tuple(
        columns[k].number_input(f"Mean {c}", 0.0, 1.0, 0.5, key=f"own_mean_{c}") for k, c in enumerate("RGB")
    )
    std = tuple(
        columns[k].number_input(f"Deviation {c}", 0.01, 2.0, 0.25, key=f"own_std_{c}")
        for k, c in enumerate("RGB")
    )
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _bring(
    weights: Any,
    clean: Any,
    triggered: Any,
    arch: str,
    mean: Colour,
    std: Colour,
    size: int,
    target: int | None,
) -> Card | None:
    """Hand the uploads to the core as files; None, with its sentence, when it refuses them."""
    from npd_core.uploads.entry import Settings, bring

    with tempfile.TemporaryDirectory(prefix="npd-own-") as folder, st.spinner("Checking the files …"):
        files = {}
        for name, upload, most in (
            ("checkpoint", weights, CHECKPOINT_MB),
            ("clean", clean, IMAGES_MB),
            ("triggered", triggered, IMAGES_MB),
        ):
            if upload is None:
                continue
            if upload.size > most * MB:
                st.error(
                    f"{upload.name[:60]} is larger than {most} MB: bring a smaller file.",
                    icon=":material/error:",
                )
                return None
            files[name] = Path(folder) / name
            files[name].write_bytes(upload.getbuffer())
        try:
            settings = Settings(arch=arch, mean=mean, std=std, image_size=size, target=target)
            return bring(files["checkpoint"], files["clean"], settings, files.get("triggered"))
        except NPDError as error:
            st.error(str(error), icon=":material/error:")
            return None


# ---------------------------------------------------------------------------------------------------- polarizing


def workbench(card: Card) -> None:
    """What is known of the network, the settings of the next run, and the runs so far."""
    spec = get_dataset(card.dataset)
    width = f", width {card.width}" if card.width else ""
    st.markdown(
        f"**{card.arch.removeprefix('torchvision:')}**{width} · {card.num_classes} classes · "
        f"{card.image_size} × {card.image_size} pixels · `{card.id}`"
    )
    with st.grid("auto", min_column_width=230):
        st.metric(
            "Clean accuracy",
            f"{card.acc:.1%}",
            border=True,
            help="Of the network as you brought it, held out.",
        )
        st.metric("Pictures to train on", spec.train_images, border=True, help="D_bn: half of each class.")
        st.metric(
            "Pictures held out", spec.test_images, border=True, help="The other half. They are only measured."
        )
    if card.acc < 2 / card.num_classes:
        st.warning(
            "The network is hardly better than guessing on your pictures. Check the normalisation, the picture size, "
            "and that folders have the labels that the network was trained with.",
            icon=":material/warning:",
        )
    runs = [run for run in cached.all_runs() if run.request.model == card.id]
    request = _settings(card, spec.train_images)
    if request is not None and st.button(
        "Polarize", key="own_polarize", type="primary", icon=":material/play_arrow:"
    ):
        with selectors.working():
            st.session_state["own_run"] = queue.manager().submit(request)
        st.rerun()
    if runs:
        by_id = {run.id: run for run in runs}
        _follow_address(by_id)
        chosen = st.session_state["own_run"]
        if len(runs) > 1:
            chosen = st.selectbox(
                "Run", list(by_id), key="own_run", format_func=lambda run_id: _title(by_id[run_id])
            )
        st.query_params["own_run"] = st.session_state["_own_run_wrote"] = chosen
        run = by_id[chosen]
        st.subheader("Before and after")
        if run.active:
            st.fragment(follow, run_every=0.7)(run.id)
        else:
            outcome(run, card)
    with st.expander("Share or remove", icon=":material/qr_code_2:"):
        st.write("This link opens the network on this page.")
        downloads.share("my_models", own=card.id)
        if st.button(
            "Remove the network and its pictures",
            key="own_remove",
            icon=":material/delete:",
            disabled=_busy(runs),
        ):
            from npd_core.uploads.entry import remove

            with selectors.working():
                remove(card.id)
            st.session_state["_own_notice"] = "The network and its pictures are removed from this machine."
            leave()
            st.rerun()


def _follow_address(runs: dict[str, Run]) -> None:
    """Choose the run that the address names when somebody opened or edited it; without one the newest."""
    state, asked = st.session_state, lesson_view.carried("own_run")
    if asked in runs and asked != state.get("_own_run_wrote"):
        state["own_run"] = asked
    elif state.get("own_run") not in runs:
        state["own_run"] = next(iter(runs))


def _settings(card: Card, images: int) -> DefenseRequest | None:
    """The request that the widgets ask for; None, with a sentence, when a value is out of its range."""
    from npd_core.uploads.entry import suggested_config

    with selectors.working():
        points = cached.uploaded_layers(card.id)
    suggested = suggested_config(card)
    layer = card.recipe.get("layer")
    left, right = st.columns(2)
    chosen = left.selectbox(
        "Layer",
        points,
        index=points.index(layer) if layer in points else 0,
        key="own_layer",
        help="Where the polarizer goes: the name of a convolution means just before it, `after:` just behind it, "
        "`stream:` the residual stream before a block.",
    )
    epochs = right.slider("Epochs", 1, MOST_EPOCHS, suggested.epochs, key="own_epochs")
    with st.expander("Weights of the loss and the budget"):
        first, second, third = st.columns(3)
        lambda2 = first.number_input("λ2", 0.0, 10.0, suggested.lambda2, step=0.05, key="own_lambda2")
        lambda3 = second.number_input("λ3", 0.0, 10.0, suggested.lambda3, step=0.05, key="own_lambda3")
        rho = third.number_input("ρ", 0.1, 50.0, suggested.rho, step=0.5, key="own_rho")
    try:
        config = replace(suggested, epochs=epochs, lambda2=lambda2, lambda3=lambda3, rho=rho)
        return DefenseRequest(model=card.id, layer=chosen, clean=images, config=config, eval_images=200)
    except NPDError as error:
        st.error(str(error), icon=":material/error:")
        return None


def _title(run: Run) -> str:
    epochs = getattr(run.request.config, "epochs", 0)
    return f"{shell.repair(run)} · {epochs} epochs · {run.state} · {shell.local_time(run.created)}"


def _busy(runs: list[Run]) -> bool:
    return any(run.active for run in runs)


def follow(run_id: str) -> None:
    """One refresh of a run that waits or trains."""
    run = queue.manager().store.get(run_id)
    if not run.active:
        st.rerun()
    if run.state == "queued":
        place = queue.manager().position(run.id)
        st.progress(0.0, f":material/hourglass_empty: Queued: place {place or '?'}. It starts by itself.")
    else:
        epoch = "preparing"
        if run.epoch is not None:
            epoch = "warm-up" if run.epoch < 0 else f"epoch {min(run.epoch + 1, run.epochs)} of {run.epochs}"
        st.progress(run.share, f":material/play_circle: Training, {epoch}")
    _chart(run)
    if st.button(
        "Stop", key="own_stop", icon=":material/stop_circle:", help="The best state so far is kept."
    ):
        queue.manager().cancel(run.id)


def _chart(run: Run) -> None:
    losses = curves.read_losses(cached.events(run))
    if losses.x:
        chart(
            curves.loss_figure(losses, tiles.mode(), getattr(run.request.config, "epochs", None)),
            key="own_losses",
            alt="Loss terms of the training by epoch.",
        )


def outcome(run: Run, card: Card) -> None:
    """What an ended run measured, and what that does and does not tell."""
    result = run.result or {}
    before, after = result.get("before") or {}, result.get("after") or {}
    if run.state in ("failed", "interrupted") or not after:
        st.error(run.message or "This run ended without a result. Start it again.", icon=":material/error:")
        return
    with st.grid("auto", min_column_width=150):
        for name, title in (
            ("acc", "ACC, held out"),
            ("asr", "ASR, your trigger"),
            ("ra", "RA, your trigger"),
        ):
            if after.get(name) is None:
                continue
            st.metric(
                title,
                f"{after[name]:.1%}",
                f"{100 * (after[name] - before[name]):+.1f} points",
                border=True,
                delta_color="inverse" if name == "asr" else "normal",
            )
    if after.get("asr") is None:
        st.info(
            "Whether a backdoor is gone cannot be known without its trigger. What can be known: the clean accuracy "
            "above, and how many held-out pictures resist the perturbation that the training imagines in the trigger’s "
            "place.",
            icon=":material/info:",
        )
    asked = st.session_state.setdefault("_own_resist", set())
    if run.id not in asked and st.button(
        "Test the imagined perturbation",
        key="own_resist",
        icon=":material/blur_on:",
        help="Perturbs up to 200 held-out pictures toward their strongest wrong class, with the run’s own budget.",
    ):
        asked.add(run.id)
        st.rerun()
    if run.id in asked:
        _resistance(run)
    _chart(run)
    st.caption(
        f"{shell.provenance(run)} · {shell.repair(run)} · D_bn of {len(result.get('clean_indices', []))} pictures"
    )
    st.subheader("Take it home")
    downloads.downloads(run)


def _resistance(run: Run) -> None:
    with selectors.working():
        found = cached.resistance(run.id)
    rows = [
        ("as you brought it, perturbed against itself", found.before),
        ("polarized, given the same pictures", found.transferred),
        ("polarized, perturbed against itself anew", found.after),
    ]
    st.dataframe(
        [{"network": words, "pictures that keep their class": share} for words, share in rows],
        column_config={"pictures that keep their class": st.column_config.NumberColumn(format="percent")},
        hide_index=True,
        key="own_resistance",
    )
    st.caption(
        f"{found.images} held-out pictures, ρ = {getattr(run.request.config, 'rho', 0):g}. A clean network is moved by "
        "such perturbations too: a rise tells that the filter does its work, not that there was a backdoor. Where the "
        "last share does not rise, the network can still be moved by perturbations made against the filter itself."
    )


shell.selection()
st.title("Your model")
if notice := st.session_state.pop("_own_notice", ""):
    st.success(notice, icon=":material/check_circle:")
own = in_address()
if own is None:
    intake()
else:
    st.session_state.setdefault("_own", set()).add(own.id)
    workbench(own)
    st.button(
        "Bring another network",
        key="own_another",
        icon=":material/arrow_back:",
        on_click=leave,
    )

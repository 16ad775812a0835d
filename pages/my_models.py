"""Import a classifier with a few clean images, inspect it, train a polarizer for it, export the result."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st

from npd_core import paths
from npd_core.config.request import DefenseRequest
from npd_core.data.spec import NORMALISATIONS, get_dataset
from npd_core.errors import UnknownNameError
from npd_core.names import ARCHITECTURES, EXPORT, architecture_name
from npd_core.runs import queue
from npd_core.runs.store import Run
from npd_core.zoo import Zoo
from npd_core.zoo.card import Card
from pages.shared import cache, describe, downloads, run_panel, selectors, shell, url_state
from pages.shared.text import plain, show_error
from pages.shared.url_state import UrlValue

MB = 1_000_000
LIMITS = {"checkpoint": 300, "clean": 200, "triggered": 200}  # largest uploads, in MB
MOST_EPOCHS = 50
TORCHVISION = "a classifier of torchvision"
CHAIN = "a chain of layers"
CHOICES = {
    "auto": "detect",
    **ARCHITECTURES,
    TORCHVISION: TORCHVISION,
    CHAIN: CHAIN,
}
OTHER = "other values"


def uploaded(model_id: str) -> str:
    """Check that this is the id of an imported model. Raises UnknownNameError."""
    if paths.uploaded(Zoo().card(model_id).id) is None:
        raise UnknownNameError(f"{model_id} is a model of the zoo: choose it in the Lab.")
    return model_id


MODEL = UrlValue("uploaded_model", uploaded, "")


def run_value(runs: Iterable[str]) -> UrlValue[str]:
    return url_state.choice("uploaded_run", list(runs), default="")


def leave() -> None:
    """Take the model and its run out of the URL."""
    MODEL.clear()
    run_value([]).clear()


def import_form() -> None:
    """Ask for the files and for what they do not say. A model that can be used goes into the URL."""
    left, right = st.columns(2)
    with left:
        st.subheader("1 · Checkpoint")
        checkpoint = st.file_uploader(
            "Checkpoint",
            type=["safetensors", "pt", "pth", "ckpt", "bin", "tar", "onnx"],
            key="upload_checkpoint",
            max_upload_size=LIMITS["checkpoint"],
            help="A safetensors file, a state dict, attack_result.pt of BackdoorBench, or ONNX. Only tensors "
            "are read: no code in the file is executed.",
        )
        with st.expander("Any other network: export it as ONNX"):
            st.code("\n".join(EXPORT), language="python")
        arch = architecture()
        size = st.number_input(
            "Image size in pixels",
            16,
            256,
            32,
            key="upload_size",
            help="Height and width of the images that the network was trained on.",
        )
    with right:
        st.subheader("2 · Clean images")
        clean = image_files(
            "clean",
            "Clean images",
            "A zip archive with one folder per class, or a parquet file in the layout of Hugging Face. "
            "Folder names 0, 1, 2, … are labels; other names get their labels in alphabetical order.",
        )
        mean, std = normalization()
        with st.expander("Images with the trigger (optional)"):
            triggered = image_files(
                "triggered",
                "Triggered images",
                "The same layout, in folders of the TRUE class. The attack success rate can be measured "
                "only with them.",
            )
            target = st.number_input("Target label of the attack", 0, 1999, 0, key="upload_target")
    best = st.checkbox(
        "Use the preparation that fits the clean images best",
        key="upload_best",
        help="Normalization, channel order, size and border are tried on them. Without this, another one "
        "than yours is used only if it is far ahead.",
    )
    if st.button(
        "Import",
        key="upload_import",
        type="primary",
        icon=":material/fact_check:",
        disabled=not (checkpoint and clean),
    ):
        settings = {"arch": arch, "mean": mean, "std": std, "image_size": int(size)}
        settings["adapt"] = "best" if best else "far"
        settings["target"] = int(target) if triggered else None
        card = import_files({"checkpoint": checkpoint, "clean": clean, "triggered": triggered}, settings)
        if card is not None:
            MODEL.set(card.id)
            st.rerun()
    st.caption(
        f"Limits: {LIMITS['checkpoint']} MB for the checkpoint, {LIMITS['clean']} MB and 20,000 files for "
        "the images. Your files stay on this server until you remove them. Anyone with the URL of the "
        "imported model can see its results and export it."
    )


def image_files(name: str, label: str, about: str) -> Any:
    return st.file_uploader(
        label, type=["zip", "parquet"], key=f"upload_{name}", max_upload_size=LIMITS[name], help=about
    )


def architecture() -> str:
    arch = st.selectbox(
        "Architecture",
        list(CHOICES),
        format_func=CHOICES.__getitem__,
        key="upload_arch",
        help="The width and the number of classes are read from the shapes of the weights.",
    )
    if arch == CHAIN:
        text = st.text_area(
            "Layers, in order",
            "conv, bn, relu, maxpool 2, conv, bn, relu, maxpool 2, linear",
            key="upload_chain",
            help="conv, bn, linear; relu, elu, leakyrelu, gelu, silu, tanh, sigmoid; maxpool N, avgpool N, "
            "globalpool, flatten, dropout, softmax. A convolution may have a stride and a pad: "
            "conv stride 2 pad 0. Sizes are read from the weights.",
        )
        return f"chain:{text}"
    if arch != TORCHVISION:
        return arch
    names = cache.zoo.torchvision_names()
    return st.selectbox("Name in torchvision", names, index=names.index("resnet18"), key="upload_torchvision")


def normalization() -> tuple[Any, Any]:
    """Return the chosen mean and standard deviation, one number a channel."""
    name = st.selectbox(
        "Normalization",
        [*NORMALISATIONS, OTHER],
        key="upload_normalization",
        help="Mean and standard deviation of the pixels in training. BackdoorBench does not normalize GTSRB.",
    )
    if name != OTHER:
        return NORMALISATIONS[name]
    found = []
    for title, low, high, value in (("Mean", 0.0, 1.0, 0.5), ("Std", 0.01, 2.0, 0.25)):
        columns = zip("RGB", st.columns(3), strict=True)
        key = f"upload_{title.lower()}"
        found.append(
            tuple(c.number_input(f"{title} {n}", low, high, value, key=f"{key}_{n}") for n, c in columns)
        )
    return found[0], found[1]


def import_files(uploads: dict[str, Any], settings: dict[str, Any]) -> Card | None:
    """Pass the uploads to the core as files. Returns None, with a message, when it refuses them."""
    from npd_core.uploads.store import Settings, import_model

    with tempfile.TemporaryDirectory(prefix="npd-import-") as folder, st.spinner("Checking the files …"):
        files = {}
        for name, upload in uploads.items():
            if upload is None:
                continue
            if upload.size > LIMITS[name] * MB:
                show_error(f"{upload.name[:60]} is larger than {LIMITS[name]} MB.")
                return None
            files[name] = Path(folder) / name
            files[name].write_bytes(upload.getbuffer())
        card = None
        with selectors.working(stop=False):
            card = import_model(
                files["checkpoint"], files["clean"], Settings(**settings), files.get("triggered")
            )
        return card


def workbench(card: Card) -> None:
    """Show what is known of the model, the settings of the next run, and the runs so far."""
    train_images = facts(card)
    runs = {run.id: run for run in cache.runs.all_runs() if run.request.model == card.id}
    request = run_settings(card, train_images)
    if request is not None and st.button(
        "Train polarizer", key="uploaded_start", type="primary", icon=":material/play_arrow:"
    ):
        with selectors.working():
            run_value([]).set(queue.manager().submit(request))
        st.rerun()
    if runs:
        run = choose_run(runs)
        st.subheader("Before and after")
        if run.active:
            run_panel.stop_button([run], key="uploaded_stop")
        run_panel.panel(run.id, card)
        if not run.active:
            outcome(run)
    with st.expander("Share or remove", icon=":material/qr_code_2:"):
        st.write("This link opens the model on this page.")
        downloads.share("my_models", uploaded_model=card.id)
        if st.button(
            "Remove the model and its images",
            key="uploaded_remove",
            icon=":material/delete:",
            disabled=any(run.active for run in runs.values()),
        ):
            from npd_core.uploads.store import remove

            with selectors.working():
                remove(card.id)
            st.session_state["_uploaded_notice"] = "The model and its images were removed from this server."
            leave()
            st.rerun()


def facts(card: Card) -> int:
    """Show architecture, accuracy and number of images. Returns the number of images to train on."""
    spec = get_dataset(card.dataset)
    width = f", width {card.width}" if card.width else ""
    arch = architecture_name(card.arch.removeprefix("torchvision:"))
    st.markdown(
        f"**{plain(arch)}**{width} · {card.num_classes} classes · "
        f"{card.image_size} × {card.image_size} pixels · `{card.id}`"
    )
    metrics = {
        "Clean accuracy": (f"{card.acc:.1%}", "Of the imported model on the held-out images."),
        "Training images": (str(spec.train_images), "D_bn: half of the clean images of each class."),
        "Held-out images": (str(spec.test_images), "The other half. They are used only for measurements."),
    }
    with st.grid("auto", min_column_width=230):
        for title, (value, about) in metrics.items():
            st.metric(title, value, border=True, help=about)
    show_findings(card)
    return spec.train_images


def show_findings(card: Card) -> None:
    """Show what the clean images tell about the preparation of images, and the warnings."""
    from npd_core.uploads.preprocessing import read_findings

    findings = read_findings(card.folder)
    if findings is None:
        return
    for text in findings.warnings:
        st.warning(plain(text), icon=":material/warning:")
    with st.expander("How the images are prepared"):
        st.write(
            "Measured on the training images; the used one is taken because you chose it or because it is "
            "far ahead. Import the model again to choose another."
        )
        rows = [
            {
                "normalization": one["normalization"],
                "channels": one["channels"],
                "size": one["size"],
                "border": f"{one['border']}/32",
                "accuracy": one["accuracy"],
                "used": one == findings.used,
            }
            for one in findings.candidates
        ]
        percent = st.column_config.NumberColumn(format="percent")
        st.dataframe(rows, column_config={"accuracy": percent}, hide_index=True, key="uploaded_findings")
        if findings.turned:
            st.caption(f"{findings.turned} images were rotated as their Exif blocks say.")


def choose_run(runs: dict[str, Run]) -> Run:
    """Return the run of the URL, or the one chosen in the list; the newest at first."""
    value = run_value(runs)
    run_id = value.get() or next(iter(runs))
    url_state.show_notices(value)
    if len(runs) > 1:
        st.session_state["uploaded_run"] = run_id
        st.selectbox(
            "Run",
            list(runs),
            key="uploaded_run",
            format_func=lambda name: title(runs[name]),
            on_change=lambda: value.set(st.session_state["uploaded_run"]),
        )
    value.set(run_id)
    return runs[run_id]


def title(run: Run) -> str:
    epochs = getattr(run.request.config, "epochs", 0)
    return f"{describe.defense(run)} · {epochs} epochs · {run.state} · {describe.local_time(run.created)}"


def run_settings(card: Card, images: int) -> DefenseRequest | None:
    """Return the request of the widgets; None, with a message, when a value is out of its range."""
    from npd_core.config.presets import preset

    with selectors.working():
        layers = [str(info.layer) for info in cache.zoo.insertion_layers(card.id)]
    suggested = preset(card.dataset, size=card.image_size)
    layer = card.recipe.get("layer")
    left, right = st.columns(2)
    chosen = left.selectbox(
        "Insertion layer",
        layers,
        index=layers.index(layer) if layer in layers else 0,
        key="uploaded_layer",
        help="Where the polarizer is inserted: before a convolution (its name), after it (`after:`), or in "
        "the residual stream before a block (`stream:`).",
    )
    epochs = right.slider("Epochs", 1, MOST_EPOCHS, suggested.epochs, key="uploaded_epochs")
    with st.expander("Loss weights and budget"):
        first, second, third = st.columns(3)
        lambda2 = first.number_input("λ₂", 0.0, 10.0, suggested.lambda2, step=0.05, key="uploaded_lambda2")
        lambda3 = second.number_input("λ₃", 0.0, 10.0, suggested.lambda3, step=0.05, key="uploaded_lambda3")
        rho = third.number_input("ρ", 0.1, 50.0, suggested.rho, step=0.5, key="uploaded_rho")
    request = None
    with selectors.working(stop=False):
        config = replace(suggested, epochs=epochs, lambda2=lambda2, lambda3=lambda3, rho=rho)
        request = DefenseRequest(model=card.id, layer=chosen, clean=images, config=config, eval_images=200)
    return request


def outcome(run: Run) -> None:
    """Show what the result can and cannot tell, and export it."""
    after = (run.result or {}).get("after") or {}
    if run.state in ("failed", "interrupted") or not after:
        return
    if after.get("asr") is None:
        st.info(
            "Without images that carry the trigger, the removal of a backdoor cannot be measured. What can "
            "be measured is the clean accuracy above, and how many held-out images resist adversarial "
            "perturbations.",
            icon=":material/info:",
        )
    measured = st.session_state.setdefault("_uploaded_resistance", set())
    if run.id not in measured and st.button(
        "Measure adversarial resistance",
        key="uploaded_resistance",
        icon=":material/blur_on:",
        help="Perturbs up to 200 held-out images toward their strongest wrong class, with the budget ρ of "
        "the run.",
    ):
        measured.add(run.id)
        st.rerun()
    if run.id in measured:
        resistance(run)
    st.subheader("Export")
    downloads.downloads(run)


def resistance(run: Run) -> None:
    with selectors.working():
        found = cache.runs.resistance(run.id)
    shares = {
        "imported model, perturbed against itself": found.before,
        "with polarizer, on the same perturbed images": found.transferred,
        "with polarizer, perturbed against itself": found.after,
    }
    kept = "images that keep their class"
    st.dataframe(
        {"network": list(shares), kept: list(shares.values())},
        column_config={kept: st.column_config.NumberColumn(format="percent")},
        hide_index=True,
        key="uploaded_shares",
    )
    st.caption(
        f"{found.images} held-out images, ρ = {getattr(run.request.config, 'rho', 0):g}. Such perturbations "
        "also work on a clean model: a higher share shows that the polarizer has an effect, not that there "
        "was a backdoor. If the last share does not rise, perturbations made against the polarizer still "
        "work."
    )


shell.selection()
st.title("My models")
st.write(
    "Import a classifier and a few clean images that you trust: half of them train a polarizer, half "
    "evaluate it."
)
if notice := st.session_state.pop("_uploaded_notice", ""):
    st.success(notice, icon=":material/check_circle:")
model_id = MODEL.get()
url_state.show_notices(MODEL)
if not model_id:
    import_form()
else:
    st.session_state.setdefault("_uploaded", set()).add(model_id)
    workbench(Zoo().card(model_id))
    st.button("Import another model", key="uploaded_another", icon=":material/arrow_back:", on_click=leave)

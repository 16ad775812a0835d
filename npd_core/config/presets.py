"""Settings worth seeing, by name: the one that works, the paper's, and three that fail. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from npd_core.config.npd import PAPER_LAYERS, NPDConfig, default_layer, paper, preset
from npd_core.errors import unknown_name


@dataclass(frozen=True)
class Scene:
    """A named setting: how it differs from the recommended one, and what to watch for."""

    title: str
    watch: str
    """What to look at while it trains, for a visitor."""
    changes: dict[str, Any] | None
    """Fields of NPDConfig that differ from the preset of the data set; None: the paper's Algorithm 1 instead of it."""
    layer: dict[str, str] | None = None
    """Insertion point by architecture; None: the default."""


SCENES: dict[str, Scene] = {
    "recommended": Scene(
        "Recommended",
        "ASR falls within the first epochs and stays down, RA climbs, ACC keeps close to where it was.",
        {},
    ),
    "paper": Scene(
        "Paper",
        "Algorithm 1 to the letter, with the choices of the authors' code where the paper is silent: before the third "
        "convolution of the last stage, perturbing the network with the polarizer in every batch anew, so each epoch "
        "takes longer. See whether ASR stays down or comes back.",
        None,
        PAPER_LAYERS,
    ),
    "too_weak": Scene(
        "Too weak",
        "λ₂ = λ₃ = 0: only the loss on clean images is left, and nothing tells the filter what a trigger is. "
        "ACC stays, and so does ASR.",
        {"lambda2": 0.0, "lambda3": 0.0},
    ),
    "too_strong": Scene(
        "Too strong",
        "λ₂ = λ₃ = 1: the two terms of the imagined trigger count as much as the clean images each. ASR falls, and ACC "
        "with it.",
        {"lambda2": 1.0, "lambda3": 1.0},
    ),
    "wrong_layer": Scene(
        "Wrong layer",
        "Right behind the pixels, where one feature is an edge and not yet a trigger: a 1×1 convolution has little to "
        "hold on to. Of a patch, ASR hardly moves and ACC is lost; a trigger all over the picture can end otherwise.",
        {},
        {"preact_resnet18": "layer1.0.conv1", "vgg19_bn": "features.3"},
    ),
}


def scene(name: str, arch: str, dataset: str, seed: int = 0) -> tuple[str, NPDConfig]:
    """The insertion point and the config of a scene.

    Raises:
        UnknownNameError: no such scene, or an architecture that has no default layer.
    """
    if name not in SCENES:
        raise unknown_name("preset", name, SCENES)
    chosen = SCENES[name]
    config = paper(dataset) if chosen.changes is None else replace(preset(dataset), **chosen.changes)
    layer = (chosen.layer or {}).get(arch) or default_layer(arch, dataset)
    return layer, replace(config, seed=seed)


def recognise(layer: str | None, config: NPDConfig, arch: str, dataset: str) -> str | None:
    """The scene that these settings are, whatever the seed; None: none of them."""
    return next((name for name in SCENES if scene(name, arch, dataset, config.seed) == (layer, config)), None)

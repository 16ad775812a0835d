"""A grid of runs of one model: a request for every combination of values. Imports torch only to look up
layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

from npd_core.config.npd import VARIANTS, NPDConfig
from npd_core.config.presets import defense_config
from npd_core.config.request import DefenseRequest
from npd_core.errors import ConfigError, unknown_name
from npd_core.zoo import Zoo
from npd_core.zoo.card import Card

ALL_LAYERS = "all"
"""In place of a layer: every insertion layer of the network."""
MAIN_LAYERS = "main"
"""In place of a layer: after every main-path convolution, as in Figure 3."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values to combine. A baseline has neither a layer nor NPD settings: it runs once per `clean` and
    seed."""

    model: str
    defenses: tuple[str, ...] = ("npd",)
    layers: tuple[str | None, ...] = (None,)
    """Names of insertion layers, ALL_LAYERS or MAIN_LAYERS; None: the default of the architecture."""
    clean: tuple[float | int, ...] = (0.05,)
    """Shares or numbers, as in DefenseRequest."""
    settings: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Field of NPDConfig -> values; the others come from the preset."""
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"


def requests(grid: Grid) -> list[DefenseRequest]:
    """Return every run of a grid, each once.

    Raises:
        UnknownNameError: a model, defense, layer or setting that does not exist.
        ConfigError: a value out of range, or layers or NPD settings although every defense is a baseline.
    """
    card = Zoo().card(grid.model)
    names = [f.name for f in fields(NPDConfig)]
    for name in grid.settings:
        if name not in names:
            raise unknown_name("setting", name, names)
    known = [defense_config(defense, card) for defense in grid.defenses]
    special = [f"`{name}`" for name in grid.settings] + ["`layers`"] * (grid.layers != (None,))
    if special and not any(isinstance(config, NPDConfig) for config in known):
        raise ConfigError(f"{special[0]} is a setting of NPD, but all defenses are baselines: add npd.")
    found: dict[str, DefenseRequest] = {}
    layers: Sequence[str | None] = (None,) if grid.layers == (None,) else layer_names(card, grid.layers)
    for defense in grid.defenses:
        own = defense in VARIANTS
        settings = grid.settings if own else {}
        for layer, clean, seed in product(layers if own else (None,), grid.clean, grid.seeds):
            for values in product(*settings.values()):
                config = defense_config(defense, card, seed=seed, **dict(zip(settings, values, strict=True)))
                where = None if layer is None or layer == card.layer else layer  # one run, not two
                request = DefenseRequest(
                    model=card.id,
                    defense=defense,
                    layer=where,
                    clean=clean,
                    config=config,
                    device=grid.device,
                )
                found.setdefault(request.key, request)
    return list(found.values())


def layer_names(card: Card, layers: Sequence[str | None]) -> list[str | None]:
    """Return the layers in canonical spelling, each once, with ALL_LAYERS and MAIN_LAYERS expanded in forward
    order.

    Raises UnknownNameError.
    """
    from npd_core.polarizer.insertion import find_layer, insertion_layers
    from npd_core.zoo.weights import empty_network

    net = empty_network(card)
    names: dict[str | None, None] = {}
    for layer in layers:
        if layer == ALL_LAYERS:
            names |= dict.fromkeys(info.name for info in insertion_layers(net, card.image_size))
        elif layer == MAIN_LAYERS:
            names |= dict.fromkeys(main_path(card.arch, card.image_size))
        else:
            names[layer if layer is None else find_layer(net, layer, card.image_size).name] = None
    return list(names)


def main_path(arch: str, size: int = 32) -> list[str]:
    """Return the insertion layers after each main-path convolution in forward order: the x-axis of Figure 3.

    1x1 convolutions are shortcuts and left out. Args: size: height and width of the images.
    """
    from torch import nn

    from npd_core.models import build_model
    from npd_core.polarizer.insertion import insertion_layers

    net = build_model(arch, num_classes=2, width=4)  # names are the same at every width
    shortcuts = [
        name for name, m in net.net.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
    ]
    after = [info for info in insertion_layers(net, size) if info.layer.kind == "after"]
    return [info.name for info in after if info.layer.module not in shortcuts]

"""The baseline defenses, by the field's names. Importing this module needs no torch: a defense is loaded when it
runs."""

from __future__ import annotations

import importlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npd_core.config.baselines import (
    CONFIGS,
    PRESETS,
    ANPConfig,
    DefenseConfig,
    EPConfig,
    FPConfig,
    IBAUConfig,
    NADConfig,
    NCConfig,
)
from npd_core.data.spec import get_dataset
from npd_core.errors import unknown_name
from npd_core.events import Event
from npd_core.zoo.card import Card

if TYPE_CHECKING:
    import torch

    from npd_core.data.load import ImageSet
    from npd_core.models.normalized import Normalized


@dataclass(frozen=True)
class Defense:
    """One row of the table: what a defense is set by, and where it is."""

    config: type[DefenseConfig]
    module: str
    function: str
    title: str
    source: str
    """Where it was published."""

    def run(
        self, net: Normalized, clean: ImageSet, cfg: DefenseConfig, device: torch.device, **more: Any
    ) -> Generator[Event, None, None]:
        """Repair `net` in place; it is in eval mode and frozen when the generator ends or is closed.

        Args:
            net: a copy that the caller owns; moved to `device`.
            clean: D_bn, the defender's clean images.
            cfg: of the class `config`.
            more: what a config that names an oracle asks for; see the function itself.
        Yields:
            Started, StepEnd, EpochEnd; the last is Finished or Failed.
        Raises:
            ConfigError: settings and images that do not go together.
        """
        function = getattr(importlib.import_module(f"npd_core.defenses.{self.module}"), self.function)
        events: Generator[Event, None, None] = function(net, clean, cfg, device, **more)
        return events


DEFENSES: dict[str, Defense] = {
    "fp": Defense(FPConfig, "fp", "fine_prune", "Fine-pruning", "Liu et al., RAID 2018"),
    "nad": Defense(NADConfig, "nad", "distill_attention", "Attention distillation", "Li et al., ICLR 2021"),
    "nc": Defense(NCConfig, "nc", "neural_cleanse", "Neural cleanse", "Wang et al., S&P 2019"),
    "anp": Defense(
        ANPConfig, "anp", "prune_sensitive", "Adversarial neuron pruning", "Wu and Wang, NeurIPS 2021"
    ),
    "i_bau": Defense(
        IBAUConfig, "i_bau", "unlearn_implicitly", "Implicit unlearning", "Zeng et al., ICLR 2022"
    ),
    "ep": Defense(EPConfig, "ep", "entropy_prune", "Entropy pruning", "Zheng et al., NeurIPS 2022"),
}
"""In the order of the paper's tables."""


def get_defense(name: str) -> Defense:
    """The row of a defense. Raises UnknownNameError when there is none of this name."""
    if name not in DEFENSES:
        raise unknown_name("defense", name, DEFENSES)
    return DEFENSES[name]


def preset(name: str, dataset: str, **changes: Any) -> DefenseConfig:
    """The defaults of a defense for a data set, with `changes`; the caller adds `flip` and `pad` of the data set.

    Raises:
        UnknownNameError: no such defense, or no such setting.
        ConfigError: a value out of its range.
    """
    return get_defense(name).config.from_dict(PRESETS.get(dataset, {}).get(name, {}) | changes)


def preset_for(name: str, card: Card, **changes: Any) -> DefenseConfig:
    """The defaults of a defense for a model, with `changes`: those for its data set, and clean images cropped and
    mirrored as they were in the model's own training; EP looks at clean ones where no poisoned set is known. Raises as
    `preset`."""
    seen = {setting: card.recipe[setting] for setting in ("flip", "pad") if setting in card.recipe}
    if name == "ep" and not card.poison_ratio:
        seen["batch"] = "clean"
    return preset(name, card.dataset, **{"flip": get_dataset(card.dataset).flip} | seen | changes)


__all__ = [
    "CONFIGS",
    "DEFENSES",
    "PRESETS",
    "ANPConfig",
    "Defense",
    "DefenseConfig",
    "EPConfig",
    "FPConfig",
    "IBAUConfig",
    "NADConfig",
    "NCConfig",
    "get_defense",
    "preset",
    "preset_for",
]

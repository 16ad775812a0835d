"""The table of all defenses: NPD and its variants, then the baselines. No torch: each is loaded when it runs.

A defense from outside the project is a generator of events and a config, registered under a name:

    @dataclass(frozen=True, kw_only=True)
    class ShrinkConfig(DefenseConfig):
        factor: float = 0.9

    def shrink(net, clean, cfg, device):
        yield Started(0, 0, 1, clean.size, str(device))
        net.net.linear.weight.data.mul_(cfg.factor)
        yield Finished(-1, seconds=0.0)

    register("shrink", ShrinkConfig, shrink, "Shrink the last layer")

From then on `run_defense` and `npd defend --defense shrink` know it. `npd` and the app import the modules
that the environment variable NPD_PLUGINS names.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npd_core.config.baselines import (
    CONFIGS,
    ANPConfig,
    DefenseConfig,
    EPConfig,
    FPConfig,
    IBAUConfig,
    NADConfig,
    NCConfig,
)
from npd_core.config.npd import NPDConfig
from npd_core.errors import ConfigError, unknown_name
from npd_core.events import Event

if TYPE_CHECKING:
    import torch

    from npd_core.data.load import ImageSet
    from npd_core.models.normalized import Normalized
    from npd_core.polarizer.insertion import PolarizedNet


@dataclass(frozen=True)
class Defense:
    """One row of the table."""

    config: type[NPDConfig] | type[DefenseConfig]
    function: Callable[..., Iterator[Event]] | str
    """What `run` calls, or where it is, as `module:function`."""
    title: str
    source: str = ""
    """Where it was published."""

    @property
    def polarizes(self) -> bool:
        """Whether it trains a polarizer, rather than changing the network itself."""
        return self.config is NPDConfig

    def run(
        self,
        net: Normalized | PolarizedNet,
        clean: ImageSet,
        cfg: NPDConfig | DefenseConfig,
        device: torch.device,
        **more: Any,
    ) -> Generator[Event, None, None]:
        """Defend `net` in place; it is in eval mode when the generator ends or is closed.

        Args:
            net: a copy that the caller owns; moved to `device`.
            clean: D_bn, the defender's clean images.
            cfg: of the class `config`.
            more: further arguments of the function, such as the target rule of NPD-TU.
        Yields:
            Started, StepEnd, EpochEnd; the last is Finished or Failed.
        Raises:
            ConfigError: settings and images that do not go together.
        """
        function = self.function
        if isinstance(function, str):
            module, _, name = function.partition(":")
            function = getattr(importlib.import_module(module), name)
        events = function(net, clean, cfg, device, **more)
        return events if isinstance(events, Generator) else (event for event in events)


_NPD = "polarizer.training:train_polarizer"
_PAPER = "Zhu et al., NeurIPS 2023"

_ROWS: list[tuple[str, type[NPDConfig] | type[DefenseConfig], str, str, str]] = [
    ("npd", NPDConfig, _NPD, "Neural polarizer", _PAPER),
    ("npd_tu", NPDConfig, _NPD, "Neural polarizer, target known, universal perturbation", _PAPER),
    ("npd_tp", NPDConfig, _NPD, "Neural polarizer, target known, perturbation per image", _PAPER),
    ("npd_uu", NPDConfig, _NPD, "Neural polarizer, untargeted universal perturbation", _PAPER),
    ("npd_up", NPDConfig, _NPD, "Neural polarizer, untargeted perturbation per image", _PAPER),
    ("fp", FPConfig, "defenses.fp:fine_prune", "Fine-pruning", "Liu et al., RAID 2018"),
    ("nad", NADConfig, "defenses.nad:distill_attention", "Attention distillation", "Li et al., ICLR 2021"),
    ("nc", NCConfig, "defenses.nc:neural_cleanse", "Neural cleanse", "Wang et al., S&P 2019"),
    (
        "anp",
        ANPConfig,
        "defenses.anp:prune_sensitive",
        "Adversarial neuron pruning",
        "Wu and Wang, NeurIPS 2021",
    ),
    (
        "i_bau",
        IBAUConfig,
        "defenses.i_bau:unlearn_implicitly",
        "Implicit unlearning",
        "Zeng et al., ICLR 2022",
    ),
    ("ep", EPConfig, "defenses.ep:entropy_prune", "Entropy pruning", "Zheng et al., NeurIPS 2022"),
]
DEFENSES = {
    name: Defense(config, f"npd_core.{at}", title, source) for name, config, at, title, source in _ROWS
}
"""By name; the baselines in the order of the paper's tables."""


def register(
    name: str,
    config: type[DefenseConfig],
    function: Callable[..., Iterator[Event]] | str,
    title: str,
    source: str = "",
) -> None:
    """Add a defense to the table.

    Args:
        name: what requests and the command line call it: lower-case letters, digits and underscores.
        config: a frozen dataclass derived from DefenseConfig.
        function: `(net, clean, cfg, device) -> Iterator[Event]` as in `Defense.run`; it changes `net`, a
            Normalized network. As text `module:function` it is imported when it runs, so that the command
            line starts fast.
        title: display name.
        source: where it was published.
    Raises:
        ConfigError: a name that is taken or not of this form, or another kind of config.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"`name` must be lower-case letters, digits and underscores, got {name!r}.")
    if name in DEFENSES:
        raise ConfigError(f"There is a defense {name!r} already: choose another `name`.")
    if not (isinstance(config, type) and issubclass(config, DefenseConfig)):
        raise ConfigError(f"`config` must be a class derived from DefenseConfig, got {config!r}.")
    CONFIGS[name] = config
    DEFENSES[name] = Defense(config, function, title, source)


def unregister(name: str) -> None:
    """Take a registered defense out of the table again. Raises UnknownNameError."""
    get_defense(name)
    del DEFENSES[name], CONFIGS[name]


def get_defense(name: str) -> Defense:
    """Return the row of a defense. Raises UnknownNameError when there is none of this name."""
    if name not in DEFENSES:
        raise unknown_name("defense", name, DEFENSES)
    return DEFENSES[name]


__all__ = ["CONFIGS", "DEFENSES", "Defense", "DefenseConfig", "get_defense", "register", "unregister"]

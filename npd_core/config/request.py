"""What somebody asks for: one defense of one model, as a frozen value that names it completely. No torch
here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from npd_core.config.baselines import CONFIGS, DefenseConfig
from npd_core.config.npd import VARIANTS, NPDConfig
from npd_core.errors import ConfigError, unknown_name

RENAMED = {"watch": "eval_images"}
"""Fields by the name under which an earlier version stored them."""
RESPELLED = {"space": {"normalised": "normalized"}}
"""Values of settings that an earlier version spelled in another way."""
REMOVED = {"momentum": 0.9, "warmup_lr": 1e-4, "ema": None, "refresh": "never"}
"""Settings of NPD that an earlier version had, with the value that is now the only behavior."""


@dataclass(frozen=True, kw_only=True)
class DefenseRequest:
    """One run of a defense. Two equal requests are the same run."""

    model: str
    """Id of a zoo model."""
    defense: str = "npd"
    """`npd` or one of its variants, a name in VARIANTS; or a baseline, a name in CONFIGS."""
    layer: str | None = None
    """Insertion layer; None: the default of the architecture. A baseline repairs the whole network and has
    none."""
    clean: float | int = 0.05
    """Size of the clean subset: a share (float in (0, 1]) or a number of images (int of at least 1)."""
    config: NPDConfig | DefenseConfig = field(default_factory=NPDConfig)
    """Settings of the defense: NPDConfig, or the config class of the baseline."""
    eval_images: int = 0
    """Test images measured after every epoch for the viewer's curves; 0: none. They never reach the
    training."""
    device: str = "auto"

    def __post_init__(self) -> None:
        clean = self.clean
        if (
            isinstance(clean, bool)
            or not isinstance(clean, int | float)
            or not clean > 0
            or (isinstance(clean, float) and clean > 1)
        ):
            raise ConfigError(
                f"`clean` must be a share in (0, 1] or a whole number of images, got {clean!r}."
            )
        if (
            isinstance(self.eval_images, bool)
            or not isinstance(self.eval_images, int)
            or self.eval_images < 0
        ):
            raise ConfigError(
                f"`eval_images` must be a whole number of at least 0, got {self.eval_images!r}."
            )
        if self.defense in CONFIGS and self.layer is not None:
            raise ConfigError(
                f"`layer` is where a polarizer is inserted, and {self.defense} repairs the whole network: "
                "leave it out."
            )
        expected = config_class(self.defense)
        if expected is not None and type(self.config) is not expected:
            found = type(self.config).__name__
            raise ConfigError(
                f"`config` of {self.defense} must be of the class {expected.__name__}, got {found}."
            )

    @property
    def key(self) -> str:
        """16 hex digits that identify the request; equal requests have equal keys in every process."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one per field."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DefenseRequest:
        """Return the request that `to_dict` wrote, in this version or an earlier one.

        Raises UnknownNameError on a field that does not exist, ConfigError on a value.
        """
        names = [f.name for f in fields(cls)]
        values = {RENAMED.get(name, name): value for name, value in values.items()}
        for name in values:
            if name not in names:
                raise unknown_name("field", name, names)
        config = config_class(values.get("defense", "npd")) or NPDConfig
        settings = {
            name: RESPELLED.get(name, {}).get(value, value) if isinstance(value, str) else value
            for name, value in dict(values.get("config", {})).items()
        }
        if config is NPDConfig:
            for name, only in REMOVED.items():
                if settings.pop(name, only) != only:
                    raise ConfigError(
                        f"This run sets `{name}`, which this version no longer has: train it again."
                    )
        return cls(**{**values, "config": config.from_dict(settings)})


def config_class(defense: str) -> type[NPDConfig] | type[DefenseConfig] | None:
    """What sets a defense; None for a name that is none."""
    return NPDConfig if defense in VARIANTS else CONFIGS.get(defense)

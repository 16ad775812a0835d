"""What somebody asks for: one defense of one model, as a frozen value that names it completely. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from npd_core.errors import ConfigError, unknown_name
from npd_core.polarizer.config import ADDED, NPDConfig


@dataclass(frozen=True, kw_only=True)
class DefenseRequest:
    """One run of a defense. Two equal requests are the same run."""

    model: str
    """Id of a zoo model."""
    defense: str = "npd"
    """`npd` or one of its variants: a name in VARIANTS."""
    layer: str | None = None
    """Insertion point; None: the default of the architecture."""
    clean: float | int = 0.05
    """Size of the clean subset: a share (float in (0, 1]) or a number of images (int of at least 1)."""
    config: NPDConfig = field(default_factory=NPDConfig)
    watch: int = 0
    """Test images measured after every epoch for the viewer's curves; 0: none. They never reach the training."""
    device: str = "auto"

    def __post_init__(self) -> None:
        clean = self.clean
        if (
            isinstance(clean, bool)
            or not isinstance(clean, int | float)
            or not clean > 0
            or (isinstance(clean, float) and clean > 1)
        ):
            raise ConfigError(f"`clean` must be a share in (0, 1] or a whole number of images, got {clean!r}.")
        if isinstance(self.watch, bool) or not isinstance(self.watch, int) or self.watch < 0:
            raise ConfigError(f"`watch` must be a whole number of at least 0, got {self.watch!r}.")

    @property
    def key(self) -> str:
        """16 hex digits that identify the request; equal requests have equal keys, in every process and version: a
        setting that came later counts only where it differs from what was done before."""
        values = self.to_dict()
        for name, before in ADDED.items():
            if values["config"].get(name) == before:
                del values["config"][name]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one per field."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DefenseRequest:
        """The request that `to_dict` wrote. Raises UnknownNameError on a field that does not exist."""
        names = [f.name for f in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown_name("field", name, names)
        return cls(**{**values, "config": NPDConfig.from_dict(values.get("config", {}))})

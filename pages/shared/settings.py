"""The settings of NPD that the app offers: kind and range of each widget; texts in `settings.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from npd_core.config import npd
from pages.shared import url_state

MAX_EPOCHS = 200
_TEXTS = tomllib.loads((Path(__file__).parent.parent / "content" / "settings.toml").read_text("utf-8"))
FAMILY_SETS = (npd.NO_FAMILY, npd.UNIVERSAL, ",".join(npd.FAMILIES[:-1]), ",".join(npd.FAMILIES))
"""Families that the Lab offers together; `npd defend --families` takes any."""


@dataclass(frozen=True)
class Setting:
    """One widget. `key` is the field of NPDConfig that it sets; `clean` is that of the request."""

    key: str
    kind: Literal["slider", "float", "int", "choice", "optional"]
    """`optional`: a number, or empty for None."""
    low: float = 0.0
    high: float = 1.0
    step: float = 0.05
    choices: Sequence[str] = ()

    @property
    def label(self) -> str:
        """The label of the widget."""
        return str(_TEXTS[self.key]["label"])

    @property
    def help(self) -> str:
        """The help of the widget."""
        return str(_TEXTS[self.key]["help"])

    @property
    def empty(self) -> str | None:
        """What an empty `optional` means."""
        return _TEXTS[self.key].get("empty")

    def url_value(self) -> url_state.UrlValue[Any]:
        """Return the value of this setting in the URL."""
        if self.kind == "choice":
            return url_state.choice(self.key, self.choices, "")
        if self.kind == "int":
            return url_state.integer(self.key, int(self.low), int(self.high), 0)
        number = url_state.number(self.key, self.low, self.high, 0.0)
        if self.kind == "optional":
            return url_state.UrlValue(
                self.key, lambda found: None if found in ("", "none", "None") else number.parse(found), None
            )
        return number

    def inside(self, value: Any) -> Any:
        """Return the nearest value that the widget can show."""
        if value is None:
            return value
        if self.kind == "choice":
            return value if value in self.choices else self.choices[0]
        nearest = min(max(value, self.low), self.high)
        return int(nearest) if self.kind == "int" else float(nearest)


LOSSES = (
    Setting("lambda1", "slider", high=2.0),
    Setting("lambda2", "slider", high=2.0),
    Setting("lambda3", "slider", high=2.0),
)
TRAINING = (
    Setting("rho", "float", 0.001, 1000.0, 0.5),
    Setting("norm", "choice", choices=npd.NORMS),
    Setting("attack_on", "choice", choices=("base", "polarized")),
    Setting("epochs", "int", 1, MAX_EPOCHS, 1),
    Setting("clean", "int", 10, 100_000, 50),
    Setting("seed", "int", 0, 2**31 - 1, 1),
)
ADVANCED = (
    Setting("lambda4", "optional", high=10.0),
    Setting("bn_mode", "choice", choices=npd.BN_MODES),
    Setting("lr", "float", 1e-5, 1.0, 0.001),
    Setting("batch_size", "int", 2, 1024, 16),
    Setting("epoch_steps", "int", 1, 1000, 12),
    Setting("warmup_epochs", "int", 0, 50, 1),
    Setting("inner_steps", "int", 1, 20, 1),
    Setting("inner_step", "choice", choices=npd.INNER_STEPS),
    Setting("inner_lr", "float", 0.001, 150.0),
    Setting("families", "choice", choices=FAMILY_SETS),
    Setting("copies", "int", 1, 10, 1),
    Setting("early_stop", "optional"),
    Setting("clip_grad", "optional", high=1000.0),
    Setting("schedule", "choice", choices=("constant", "cosine")),
    Setting("holdout", "float", high=0.5),
    Setting("log_form", "choice", choices=npd.LOG_FORMS),
    Setting("bce1_label", "choice", choices=("true", "pred")),
)
ALL = {setting.key: setting for setting in (*LOSSES, *TRAINING, *ADVANCED)}

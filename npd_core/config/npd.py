"""Hyper-parameters of the neural polarizer and their presets. No torch here: pages build configs before they
need it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from npd_core.errors import ConfigError, check_seed, unknown_name

NORMS = ("l2", "linf", "l1")
BN_MODES = ("warmup_frozen", "stats_fold", "identity_frozen", "train_clean_stats")
INNER_STEPS = ("sign", "l2", "raw")
LOG_FORMS = ("exact", "mart")
TARGETS = ("surrogate", "known", "none")
NO_FAMILY = "none"
UNIVERSAL = "universal"
FAMILIES = ("blend", "field", "warp", "patch", "noise", UNIVERSAL)
"""Families of changes that make augmented copies: see npd_core.polarizer.augmentation; `universal` adds a
universal perturbation toward another class: see npd_core.polarizer.universal."""


@dataclass(frozen=True)
class Variant:
    """What stands in for the trigger in the inner level; all else is the same. Paper: "Extension", Tables 1
    and 4."""

    target: str
    """Where perturbed images are to go: `surrogate` the strongest wrong class y' of each image, `known` the
    attacker's own target T, `none` anywhere but their true label."""
    universal: bool
    """One perturbation for all images that share a target, instead of one for each image."""

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise unknown_name("target", self.target, TARGETS)
        if self.universal and self.target == "surrogate":
            raise ConfigError("A universal perturbation needs one target for many images: known, or none.")


VARIANTS = {
    "npd": Variant("surrogate", universal=False),
    "npd_tu": Variant("known", universal=True),
    "npd_tp": Variant("known", universal=False),
    "npd_uu": Variant("none", universal=True),
    "npd_up": Variant("none", universal=False),
}
"""The method and its variants, by the name that a request calls its defense."""


@dataclass(frozen=True, kw_only=True)
class NPDConfig:
    """Hyper-parameters of NPD. Defaults: Sec. 4.1 of the paper for CIFAR-10, and what docs/lab-notes.md
    found where it is silent."""

    lambda1: float = 1.0
    """Weight of L_bn, the loss on clean images (Eq. 5)."""
    lambda2: float = 0.4
    """Weight of L_asr, which pushes perturbed images away from the surrogate target (Eq. 2)."""
    lambda3: float = 0.4
    """Weight of L_bce1, which pulls perturbed images back to their true label (first term of Eq. 3)."""
    lambda4: float | None = None
    """Weight of L_bce2, which pushes down the strongest wrong class (second term of Eq. 3). None: tied to
    lambda3, as in the paper."""
    rho: float = 3.0
    """Budget of the inner perturbation, in the norm's own size and [0, 1] pixel units."""
    norm: str = "l2"
    """Norm of the budget: l2 (paper), linf or l1."""
    epochs: int = 50
    epoch_steps: int = 1
    """Least steps of an epoch: clean images that are too few for so many batches are passed over several
    times. 1: one pass, as in the paper."""
    batch_size: int = 128
    lr: float = 0.01
    """Learning rate of SGD on theta."""
    weight_decay: float = 5e-4
    decay_to_identity: bool = False
    """Decay theta toward the identity instead of toward zero."""
    warmup_epochs: int = 5
    """T0: epochs of L_bn alone before the bi-level problem."""
    bn_mode: str = "stats_fold"
    """How the polarizer's BatchNorm is run: see BN_MODES and docs/lab-notes.md."""
    inner_steps: int = 2
    """S: steps of the targeted PGD."""
    inner_step: str = "sign"
    """Direction of one step: sign of the gradient, l2-normalized gradient, or the raw gradient."""
    inner_lr: float = 0.1
    """Length of one inner step, in pixel units: of each pixel for `sign`, of the whole image for `l2`."""
    early_stop: float | None = 0.6
    """The inner loop ends when this share of the batch has reached its target; None: never."""
    log_form: str = "exact"
    """Logs of Eq. 2 and 3: exact, or `mart` with the reference code's +1e-4 cap."""
    bce1_label: str = "true"
    """Label in L_bce1: `true` (Eq. 3) or `pred`, the network's own clean prediction."""
    attack_on: str = "polarized"
    """Network that the inner level attacks: `polarized`, f_hat (Eq. 4 as a formula), attacked again in every
    batch, or `base`, f_w (Eq. 4 in the paper's words): as it never changes, y' and delta are found once per
    image, without early stop."""
    clip_grad: float | None = None
    """Bound on the norm of the gradient of theta; None: no bound."""
    schedule: str = "cosine"
    """Learning rate over the epochs: cosine to zero, or constant (reference code; the paper is silent)."""
    holdout: float = 0.0
    """Share of the clean images held out to choose the epoch by the training objective; 0: keep the last
    epoch (paper)."""
    families: tuple[str, ...] = ()
    """Families of changes that make augmented copies of the clean images, label kept: blend, field, warp,
    patch, noise, universal. Each copy is changed by one of them. None: the clean images alone (paper)."""
    copies: int = 1
    """Augmented copies of each clean image, where there are families. The number of steps stays: every pass
    shows each image once, as itself or as one of its copies, in turn."""
    precision: str = "auto"
    """fp32, bf16 (autocast), or auto: bf16 where the device gains from it."""
    cache: bool = True
    """Keep the input of the insertion layer for all clean images in memory."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lambda1", "lambda2", "lambda3", "lambda4", "weight_decay"):
            value = getattr(self, name)
            if value is not None:
                _check_number(name, value, minimum=0.0)
        for name in ("rho", "lr", "inner_lr"):
            _check_number(name, getattr(self, name), minimum=0.0, strict=True)
        for name, least in (
            ("epochs", 1), ("batch_size", 2), ("warmup_epochs", 0), ("inner_steps", 1), ("epoch_steps", 1),
            ("copies", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")
        check_seed(self.seed)
        for name, choices in (
            ("norm", NORMS),
            ("bn_mode", BN_MODES),
            ("inner_step", INNER_STEPS),
            ("log_form", LOG_FORMS),
            ("bce1_label", ("true", "pred")),
            ("attack_on", ("polarized", "base")),
            ("schedule", ("constant", "cosine")),
            ("precision", ("auto", "fp32", "bf16")),
        ):
            if getattr(self, name) not in choices:
                raise unknown_name(name, getattr(self, name), choices)
        for name, low, high in (("early_stop", 0.0, 1.0), ("holdout", 0.0, 0.5)):
            value = getattr(self, name)
            if value is not None:
                _check_number(name, value, minimum=low)
                if value > high:
                    raise ConfigError(f"`{name}` must be at most {high}, got {value}.")
        for family in self.families:
            if family not in FAMILIES:
                raise unknown_name("family", family, FAMILIES)
        if self.clip_grad is not None:
            _check_number("clip_grad", self.clip_grad, minimum=0.0, strict=True)

    @property
    def weights(self) -> dict[str, float]:
        """Loss weights by the name of the term: bn, asr, bce1, bce2."""
        tied = self.lambda3 if self.lambda4 is None else self.lambda4
        return {"bn": self.lambda1, "asr": self.lambda2, "bce1": self.lambda3, "bce2": tied}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one per field; the families as names separated by commas, or NO_FAMILY."""
        return asdict(self) | {"families": ",".join(self.families) or NO_FAMILY}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NPDConfig:
        """The config that `to_dict` wrote. Raises ConfigError on a value, UnknownNameError on a field that
        does not exist."""
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown_name("setting", name, names)
        known = dict(values)
        families = known.get("families", ())
        if isinstance(families, str):
            families = () if families == NO_FAMILY else families.split(",")
        known["families"] = tuple(families)
        return cls(**known)


def _check_number(name: str, value: object, *, minimum: float, strict: bool = False) -> None:
    rule = f"a number {'above' if strict else 'of at least'} {minimum:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"`{name}` must be {rule}, got {value!r}.")
    if value < minimum or (strict and value == minimum):
        raise ConfigError(f"`{name}` must be {rule}, got {value}.")


def get_variant(name: str) -> Variant:
    """The variant called `name`. Raises UnknownNameError when there is none."""
    if name not in VARIANTS:
        raise unknown_name("variant", name, VARIANTS)
    return VARIANTS[name]

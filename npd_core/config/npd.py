"""Hyper-parameters of the neural polarizer and their presets. No torch here: pages build configs before they need
it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from npd_core.errors import ConfigError, check_seed, unknown_name

NORMS = ("l2", "linf", "l1")
BN_MODES = ("warmup_frozen", "stats_fold", "identity_frozen", "train_clean_stats")
INNER_STEPS = ("sign", "l2", "raw")
LOG_FORMS = ("exact", "mart")
REFRESH = ("never", "epoch")
TARGETS = ("surrogate", "known", "none")


@dataclass(frozen=True)
class Variant:
    """What stands in for the trigger in the inner level; all else is the same. Paper: "Extension", Tables 1 and 4."""

    target: str
    """Where perturbed images are to go: `surrogate` the strongest wrong class y' of each image, `known` the attacker's
    own target T, `none` anywhere but their true label."""
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
    """Hyper-parameters of NPD. Defaults: Sec. 4.1 of the paper for CIFAR-10, and what docs/npd-in-practice.md found
    where it is silent."""

    lambda1: float = 1.0
    """Weight of L_bn, the loss on clean images (Eq. 5)."""
    lambda2: float = 0.4
    """Weight of L_asr, which pushes perturbed images away from the surrogate target (Eq. 2)."""
    lambda3: float = 0.4
    """Weight of L_bce1, which pulls perturbed images back to their true label (first term of Eq. 3)."""
    lambda4: float | None = None
    """Weight of L_bce2, which pushes down the strongest wrong class (second term of Eq. 3). None: tied to lambda3,
    as in the paper."""
    rho: float = 3.0
    """Budget of the inner perturbation, in the norm's own size and [0, 1] pixel units."""
    norm: str = "l2"
    """Norm of the budget: l2 (paper), linf or l1."""
    epochs: int = 50
    epoch_steps: int = 1
    """Least steps of an epoch: clean images that are too few for so many batches are passed over several times. 1: one
    pass, as in the paper."""
    batch_size: int = 128
    lr: float = 0.01
    """Learning rate of SGD on theta."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_to_identity: bool = False
    """Decay theta toward the identity instead of toward zero."""
    warmup_epochs: int = 5
    """T0: epochs of L_bn alone before the bi-level problem."""
    warmup_lr: float = 1e-4
    bn_mode: str = "stats_fold"
    """How the polarizer's BatchNorm is run: see BN_MODES and docs/npd-in-practice.md."""
    inner_steps: int = 2
    """S: steps of the targeted PGD."""
    inner_step: str = "sign"
    """Direction of one step: sign of the gradient, l2-normalised gradient, or the raw gradient."""
    inner_lr: float = 0.1
    """Length of one inner step, in pixel units: of each pixel for `sign`, of the whole image for `l2`."""
    early_stop: float | None = 0.6
    """The inner loop ends when this share of the batch has reached its target; None: never."""
    refresh: str = "never"
    """When a universal perturbation starts at 0 anew: `never`, it goes on from batch to batch, or every `epoch`."""
    log_form: str = "exact"
    """Logs of Eq. 2 and 3: exact, or `mart` with the reference code's +1e-4 cap."""
    bce1_label: str = "true"
    """Label in L_bce1: `true` (Eq. 3) or `pred`, the network's own clean prediction."""
    attack_on: str = "polarized"
    """Network that the inner level attacks: `polarized`, f_hat (Eq. 4 as a formula), in every batch anew, or `base`,
    f_w (Eq. 4 in the paper's words), which never changes: y' and delta are found once per image, without early stop."""
    clip_grad: float | None = None
    """Bound on the norm of the gradient of theta; None: no bound."""
    ema: float | None = None
    """Decay per step of a running average of theta, which then is the result; None: the last theta."""
    schedule: str = "cosine"
    """Learning rate over the epochs: cosine to zero, or constant (reference code; the paper is silent)."""
    holdout: float = 0.0
    """Share of the clean images held out to choose the epoch by the training objective; 0: keep the last epoch
    (paper)."""
    precision: str = "auto"
    """fp32, bf16 (autocast), or auto: bf16 where the device gains from it."""
    cache: bool = True
    """Keep the features before the insertion point of all clean images in memory."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lambda1", "lambda2", "lambda3", "lambda4", "weight_decay", "momentum"):
            value = getattr(self, name)
            if value is not None:
                _check_number(name, value, minimum=0.0)
        for name in ("rho", "lr", "inner_lr", "warmup_lr"):
            _check_number(name, getattr(self, name), minimum=0.0, strict=True)
        for name, least in (
            ("epochs", 1), ("batch_size", 2), ("warmup_epochs", 0), ("inner_steps", 1), ("epoch_steps", 1),
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
            ("refresh", REFRESH),
            ("schedule", ("constant", "cosine")),
            ("precision", ("auto", "fp32", "bf16")),
        ):
            if getattr(self, name) not in choices:
                raise unknown_name(name, getattr(self, name), choices)
        for name, low, high in (("early_stop", 0.0, 1.0), ("ema", 0.0, 1.0), ("holdout", 0.0, 0.5)):
            value = getattr(self, name)
            if value is not None:
                _check_number(name, value, minimum=low)
                if value > high:
                    raise ConfigError(f"`{name}` must be at most {high}, got {value}.")
        if self.clip_grad is not None:
            _check_number("clip_grad", self.clip_grad, minimum=0.0, strict=True)
        if self.momentum >= 1.0:
            raise ConfigError(f"`momentum` must be below 1, got {self.momentum}.")
        if self.ema is not None and self.ema >= 1.0:
            raise ConfigError(f"`ema` must be below 1, got {self.ema}.")

    @property
    def weights(self) -> dict[str, float]:
        """Loss weights by the name of the term: bn, asr, bce1, bce2."""
        tied = self.lambda3 if self.lambda4 is None else self.lambda4
        return {"bn": self.lambda1, "asr": self.lambda2, "bce1": self.lambda3, "bce2": tied}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one per field."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NPDConfig:
        """The config that `to_dict` wrote. Raises ConfigError on a value, UnknownNameError on a field that does not
        exist."""
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown_name("setting", name, names)
        return cls(**values)


def _check_number(name: str, value: object, *, minimum: float, strict: bool = False) -> None:
    rule = f"a number {'above' if strict else 'of at least'} {minimum:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"`{name}` must be {rule}, got {value!r}.")
    if value < minimum or (strict and value == minimum):
        raise ConfigError(f"`{name}` must be {rule}, got {value}.")


ADDED = {"refresh": "never", "epoch_steps": 1}
"""Settings that came after runs had been stored, with the value that means what was done before there was a choice."""

REFERENCE = NPDConfig(bn_mode="warmup_frozen", schedule="constant")
"""Algorithm 1 with the settings of Sec. 4.1, and the choices of the authors' code where the paper is silent."""

DEFAULT_LAYERS = {"preact_resnet18": "stream:layer4.0", "vgg19_bn": "features.46"}
"""Insertion point used when none is named, by architecture: for PreAct-ResNet18 the residual stream before the paper's
stage, its shortcuts filtered too."""
DATASET_LAYERS = {
    ("signs", "preact_resnet18"): "stream:layer3.1",
    ("signs", "vgg19_bn"): "features.14",
    ("cifar10", "preact_resnet18"): "layer4.1.conv1",
    ("gtsrb", "preact_resnet18"): "layer4.1.conv1",
}
"""The same by data set. Behind a trigger, points further forward hold more of the true class, and clean accuracy pays
for it: signs have the foremost point that `npd suggest` finds affordable, by clean images alone, in 12 passes over them
(in the preset's 48 it costs 0.2 points more than the rule allows). CIFAR-10 and GTSRB have the paper's: with inner
steps that arrive it leaves the attacker least, though not always the true class."""
PAPER_LAYERS = {"preact_resnet18": "layer4.1.conv1", "vgg19_bn": "features.46"}
"""The paper's insertion point (Sec. 4.1), before the third convolution of the last stage: of PreAct-ResNet18 on the
residual branch alone. The paper does not say where it is in VGG19-BN; ours is the same by analogy."""

STEADY: dict[str, Any] = {"attack_on": "base", "lambda2": 0.1, "lambda3": 0.1}
"""The inner level on f_w, with the paper's weights for a perturbation that does not follow theta (Sec. 4.1: 1, 0.1, 0.1
for NPD-TU and NPD-TP): the backdoor does not come back, and an epoch is cheap. docs/npd-in-practice.md has the
comparison with Algorithm 1 on f_hat, which `NPDConfig()` is."""
PAPER_RHO = {"tiny_imagenet": 6.0}
"""The paper's budget where it is not 3, that of 32x32 (Sec. 4.1)."""
PRESETS: dict[str, dict[str, Any]] = {
    "signs": STEADY | {"epochs": 12, "epoch_steps": 48, "warmup_epochs": 1, "batch_size": 32, "rho": 6.0},
    "cifar10": STEADY | {"epochs": 32, "lambda2": 0.05, "lambda3": 0.05, "inner_steps": 5, "clip_grad": 10.0},
    "gtsrb": STEADY | {"epochs": 24, "rho": 6.0, "inner_steps": 5, "clip_grad": 10.0},
    "tiny_imagenet": STEADY | {"epochs": 12, "rho": PAPER_RHO["tiny_imagenet"]},
}
"""What differs from the defaults. `signs` has 360 clean images, a seventh of CIFAR-10's: smaller batches and four
passes an epoch make up for it. Its budget is the one that moves most of them to their surrogate target, as 3 does on
CIFAR-10 (`npd suggest --rhos`). On CIFAR-10 the bound on the gradient keeps the loss of SSBA from growing without end;
where training goes well it is hardly ever reached. Settled on signs, CIFAR-10 and GTSRB, whose budgets clean images
chose; Tiny ImageNet's were not tried."""
VARIANT_PRESETS: dict[str, dict[str, Any]] = {
    "npd_tu": {"attack_on": "polarized", "lambda2": 0.1, "lambda3": 0.1, "inner_steps": 2},
    "npd_tp": {"lambda2": 0.1, "lambda3": 0.1},
    "npd_uu": {"attack_on": "polarized", "lambda2": 0.4, "lambda3": 0.4, "inner_steps": 2},
}
"""What differs for a variant, whatever the data set: lambdas 1, 0.1, 0.1 where the target is known (Sec. 4.1). A
universal perturbation is one that follows theta from batch to batch, with the paper's S steps in each."""
UNIVERSAL: dict[str, dict[str, Any]] = {
    "cifar10": {"epochs": 16},
    "signs": {"epoch_steps": 1, "warmup_epochs": 5},
}
"""What differs for the universal variants, by data set: fewer steps, as one of theirs costs several times as much and
nothing in it is looked up."""


def preset(dataset: str, *, variant: str = "npd", size: int | None = None) -> NPDConfig:
    """The defaults for a data set and a variant (a name that is none changes nothing).

    Args:
        size: height and width of the images, for those that somebody brought: the budget grows with them. None: a data
            set that is not known has the defaults of NPDConfig.
    """
    brought = (
        {} if size is None else STEADY | {"epochs": 12, "batch_size": 32, "rho": round(3 * size / 32, 2)}
    )
    chosen = PRESETS.get(dataset, brought) | VARIANT_PRESETS.get(variant, {})
    if variant in VARIANTS and VARIANTS[variant].universal:
        chosen |= UNIVERSAL.get(dataset, {})
    return NPDConfig(**chosen)


def paper(dataset: str, *, variant: str = "npd") -> NPDConfig:
    """`REFERENCE` with the paper's budget for a data set, and with the weights of a variant that knows the target."""
    weights: dict[str, Any] = (
        {"lambda2": 0.1, "lambda3": 0.1} if get_variant(variant).target == "known" else {}
    )
    return replace(REFERENCE, rho=PAPER_RHO.get(dataset, REFERENCE.rho), **weights)


def step_length(inner_step: str, rho: float, inner_steps: int) -> float:
    """Length of an inner step that names none: of `l2` a share of the budget, 1.5 rho / S, so that S steps can cross
    the ball; else 0.1, that of a pixel."""
    return round(1.5 * rho / inner_steps, 6) if inner_step == "l2" else NPDConfig.inner_lr


def get_variant(name: str) -> Variant:
    """The variant called `name`. Raises UnknownNameError when there is none."""
    if name not in VARIANTS:
        raise unknown_name("variant", name, VARIANTS)
    return VARIANTS[name]


def default_layer(arch: str, dataset: str = "") -> str:
    """Insertion point used when none is named. Raises UnknownNameError for an architecture that has none."""
    if arch not in DEFAULT_LAYERS:
        raise unknown_name("architecture", arch, DEFAULT_LAYERS)
    return DATASET_LAYERS.get((dataset, arch), DEFAULT_LAYERS[arch])

"""Hyper-parameters of the six baseline defenses and their presets. No torch here: pages build configs before
they need it.

Defaults are those of the reference benchmark for CIFAR-10 unless a field says otherwise. No choice is made on
test images, except under a field whose value is `oracle`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from npd_core.errors import ConfigError, check_seed, unknown_name

SCHEDULES = ("cosine", "plateau", "constant")
PRECISIONS = ("auto", "fp32", "bf16")
LEVELS = ("three", "two")
SELECTIONS = ("holdout", "fixed", "oracle")
SPACES = ("normalized", "pixel")
BATCHES = ("mixture", "clean")


@dataclass(frozen=True, kw_only=True)
class DefenseConfig:
    """What every baseline has."""

    batch_size: int = 256
    pad: int = 2
    """Border of the random crop of clean images, in pixels; 0: no crop. The caller gives what the data set
    bears."""
    flip: bool = True
    """Whether clean images are mirrored at random: only where a mirrored image keeps its meaning."""
    precision: str = "auto"
    """fp32, bf16 (autocast), or auto: bf16 where the device gains from it."""
    seed: int = 0

    def __post_init__(self) -> None:
        _whole(self, batch_size=2, pad=0)
        check_seed(self.seed)
        _one_of(self, precision=PRECISIONS)
        if not isinstance(self.flip, bool):
            raise ConfigError(f"`flip` must be true or false, got {self.flip!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one per field."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config that `to_dict` wrote. Raises ConfigError on a value, UnknownNameError on a field that
        does not exist."""
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown_name("setting", name, names)
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(DefenseConfig):
    """A defense that trains all weights on the clean images, by SGD on their cross entropy."""

    epochs: int = 100
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    """Learning rate over the epochs: cosine to zero, plateau (a tenth whenever the loss has not fallen for 10
    epochs), or constant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole(self, epochs=0)
        _above(self, "lr")
        _within(self, momentum=(0, 1), weight_decay=(0, math.inf))
        _below_one(self, "momentum")
        _one_of(self, schedule=SCHEDULES)


@dataclass(frozen=True, kw_only=True)
class FPConfig(FineTuneConfig):
    """Fine-pruning. Liu et al., RAID 2018."""

    tolerance: float = 0.1
    """Relative loss of accuracy, (ACC_0 - ACC) / ACC_0, at which pruning stops; it keeps the mask before."""
    step: float = 0.01
    """Share of the neurons pruned between two tests of the accuracy, rounded up to whole neurons."""
    holdout: float = 0.2
    """Share of the clean images kept for those tests (ours; the reference tests on test images)."""
    holdout_min: int = 100
    """With fewer clean images than this, none is held out: the same ones order the neurons and test the
    accuracy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _within(self, tolerance=(0, 1), holdout=(0, 0.5))
        _above(self, "step")
        _within(self, step=(0, 1))
        _whole(self, holdout_min=0)


@dataclass(frozen=True, kw_only=True)
class NADConfig(FineTuneConfig):
    """Neural attention distillation. Li et al., ICLR 2021."""

    epochs: int = 10
    """Epochs of the student."""
    teacher_epochs: int = 10
    schedule: str = "constant"
    p: float = 2.0
    """Power of the features in the attention map, sum_c |F|^p."""
    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    """Weight of the attention loss at each level, the deepest last; with two levels, the first two."""
    levels: str = "three"
    """Levels distilled: `three`, or the last `two`, which is what the reference in effect uses (its third map
    is a single pixel, of which every attention map is 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole(self, epochs=1, teacher_epochs=0)
        _above(self, "p")
        _one_of(self, levels=LEVELS)
        if not isinstance(self.betas, tuple) or len(self.betas) != 3:
            raise ConfigError(f"`betas` must be three numbers, one a level, got {self.betas!r}.")
        for beta in self.betas:
            _number("betas", beta, 0, math.inf)


@dataclass(frozen=True, kw_only=True)
class NCConfig(FineTuneConfig):
    """Neural cleanse. Wang et al., S&P 2019."""

    trigger_epochs: int = 80
    """Most epochs of the search for one class's mask and pattern."""
    trigger_lr: float = 0.1
    """Learning rate of Adam on mask and pattern."""
    trigger_betas: tuple[float, float] = (0.5, 0.9)
    """Adam's decay rates of its two moments."""
    cost: float = 1e-3
    """Weight of the mask's L1 norm at the start."""
    cost_up: float = 2.0
    """Factor of the cost after `patience` successful epochs."""
    cost_down: float = 2.0**1.5
    """Divisor of the cost after `patience` failed epochs."""
    success: float = 0.98
    """Share of the images of an epoch that must reach the class for the epoch to be successful."""
    patience: int = 5
    early_stop: int = 25
    """A search ends when its best norm has not improved for this many epochs and the cost has moved both
    ways."""
    gain: float = 0.01
    """Smallest relative fall of the norm that counts as improving it."""
    classes: tuple[int, ...] | None = None
    """Classes to examine; None: all. Outliers need a few to compare, so at least three."""
    screening_epochs: int = 0
    """Epochs of a first, short search of every class, after which only `screening_keep` classes go on; 0:
    none."""
    screening_keep: int = 20
    """Classes with the smallest masks that go on after the screening."""
    classes_at_once: int = 4
    """Classes whose triggers are searched in one batch: as many times the memory, fewer steps."""
    outlier: float = 2.0
    """Distance below the median, in MAD (times 1.4826), from which on a class is flagged."""
    unlearn: float = 0.2
    """Share of the clean images that is stamped with the triggers found, with true labels, for unlearning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole(self, trigger_epochs=1, patience=1, early_stop=1, screening_epochs=0, screening_keep=3)
        _whole(self, classes_at_once=1)
        for name in ("trigger_lr", "cost", "outlier"):
            _above(self, name)
        _within(self, success=(0, 1), gain=(0, 1), unlearn=(0, 1))
        for name in ("cost_up", "cost_down"):
            _number(name, getattr(self, name), 1, math.inf)
        if not isinstance(self.trigger_betas, tuple) or len(self.trigger_betas) != 2:
            raise ConfigError(f"`trigger_betas` must be two numbers in [0, 1), got {self.trigger_betas!r}.")
        for beta in self.trigger_betas:
            _number("trigger_betas", beta, 0, 1)
            if beta == 1:
                raise ConfigError("`trigger_betas` must be below 1.")
        if self.classes is not None:
            whole = all(isinstance(k, int) and not isinstance(k, bool) and k >= 0 for k in self.classes)
            if not whole or len(set(self.classes)) != len(self.classes) or len(self.classes) < 3:
                raise ConfigError(
                    f"`classes` must be at least three different classes, got {self.classes!r}."
                )


@dataclass(frozen=True, kw_only=True)
class ANPConfig(DefenseConfig):
    """Adversarial neuron pruning. Wu and Wang, NeurIPS 2021."""

    iterations: int = 2000
    """Updates of the masks, each on a batch drawn with replacement."""
    eps: float = 0.4
    """Size of the relative noise on the weights and biases of a neuron."""
    noise_steps: int = 1
    """Ascent steps of the noise in each iteration."""
    alpha: float = 0.2
    """Weight of the loss without noise; that with noise has 1 - alpha."""
    lr: float = 0.01
    """Learning rate of SGD on the masks (reference; 0.2 in the original)."""
    momentum: float = 0.9
    select: str = "holdout"
    """How the threshold is chosen: `holdout`, the largest that the tolerance allows on held-out clean images
    (ours); `fixed`, `threshold` (original); `oracle`, by the ASR on TEST images (reference), which no
    defender has."""
    threshold: float = 0.2
    """Channels whose mask is at most this are pruned, under `fixed`."""
    tolerance: float = 0.1
    """Largest relative loss of accuracy that pruning may cost, under `holdout` and `oracle`."""
    holdout: float = 0.2
    """Share of the clean images kept for choosing the threshold, under `holdout`."""
    highest: float = 0.9
    """Highest threshold that is considered, under `holdout` and `oracle`."""
    oracle_step: float = 0.05
    """Distance of the thresholds that `oracle` tries, from 0 to `highest`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole(self, iterations=1, noise_steps=0)
        _above(self, "lr")
        _above(self, "oracle_step")
        _within(self, eps=(0, math.inf), alpha=(0, 1), momentum=(0, 1), threshold=(0, 1), tolerance=(0, 1))
        _within(self, holdout=(0, 0.5), highest=(0, 1), oracle_step=(0, 1))
        _below_one(self, "momentum")
        _one_of(self, select=SELECTIONS)


@dataclass(frozen=True, kw_only=True)
class IBAUConfig(DefenseConfig):
    """Implicit backdoor adversarial unlearning. Zeng et al., ICLR 2022."""

    rounds: int = 5
    lr: float = 1e-4
    """Learning rate of Adam on the weights (reference; 1e-3 in the original)."""
    delta_lr: float = 10.0
    """Learning rate of SGD on the universal perturbation, one pass over the clean images a round."""
    delta_weight: float = 1e-3
    """Weight of ||delta||^2 in the inner objective."""
    fixed_point_steps: int = 5
    """K: iterations of the fixed point that inverts the inner map; 0: no implicit term."""
    inner_step: float = 0.1
    """Step of the inner map Phi, a gradient step on delta."""
    fixed_point_tolerance: float = 1e-10
    """The iterations end when the norm of their change falls below this."""
    patched: float = 0.01
    """Share of a batch that carries the perturbation in the outer objective."""
    space: str = "normalized"
    """Where delta is added: `normalized` images, without bounds (reference), or `pixel`, clamped to [0, 1]
    (ours)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole(self, rounds=1, fixed_point_steps=0)
        for name in ("lr", "delta_lr", "inner_step"):
            _above(self, name)
        _within(self, delta_weight=(0, math.inf), fixed_point_tolerance=(0, math.inf), patched=(0, 1))
        _one_of(self, space=SPACES)


@dataclass(frozen=True, kw_only=True)
class EPConfig(DefenseConfig):
    """Entropy pruning. Zheng et al., NeurIPS 2022."""

    u: float = 3.0
    """Channels whose entropy lies this many standard deviations below the mean of their layer are pruned."""
    bin_width: float = 0.1
    """Width of the histogram's bins, in standard deviations of a channel."""
    batch: str = "mixture"
    """The one batch looked at: `mixture`, out of the POISONED training set (original, reference), which a
    defender with clean images alone does not have; or `clean`, out of the clean images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _within(self, u=(0, math.inf))
        _above(self, "bin_width")
        _one_of(self, batch=BATCHES)


CONFIGS: dict[str, type[DefenseConfig]] = {
    "fp": FPConfig,
    "nad": NADConfig,
    "nc": NCConfig,
    "anp": ANPConfig,
    "i_bau": IBAUConfig,
    "ep": EPConfig,
}
"""The config of each defense, in the order of the paper's tables; the package's DEFENSES says what it
sets."""


def _number(name: str, value: object, low: float, high: float) -> None:
    rule = f"a number of at least {low:g}" if high == math.inf else f"a number in [{low:g}, {high:g}]"
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high:  # type: ignore[operator]
        raise ConfigError(f"`{name}` must be {rule}, got {value!r}.")


def _within(cfg: DefenseConfig, **ranges: tuple[float, float]) -> None:
    for name, (low, high) in ranges.items():
        _number(name, getattr(cfg, name), low, high)


def _above(cfg: DefenseConfig, name: str) -> None:
    value = getattr(cfg, name)
    good = (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    )
    if not good:
        raise ConfigError(f"`{name}` must be a number above 0, got {value!r}.")


def _below_one(cfg: DefenseConfig, name: str) -> None:
    if getattr(cfg, name) >= 1:
        raise ConfigError(f"`{name}` must be below 1, got {getattr(cfg, name)}.")


def _whole(cfg: DefenseConfig, **least: int) -> None:
    for name, low in least.items():
        value = getattr(cfg, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(f"`{name}` must be a whole number of at least {low}, got {value!r}.")


def _one_of(cfg: DefenseConfig, **choices: tuple[str, ...]) -> None:
    for name, names in choices.items():
        if getattr(cfg, name) not in names:
            raise unknown_name(name, getattr(cfg, name), names)

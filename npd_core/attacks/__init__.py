"""The registry of attacks, by the field's names.

An attack of this project has a row in ATTACKS, its description in `npd_core.attack_info.ATTACK_INFO`, and,
where they apply, entries in MAKE, NEEDS_CLEAN_NET and DYNAMIC. Code outside the project adds all of these by
one call of `register`:

    def gray_bar(dataset, assets, *, target=0):
        def trigger(x):  # (B, 3, H, W) in [0, 1]; must return new images
            return torch.cat([x[..., :-2, :], torch.full_like(x[..., -2:, :], 0.5)], dim=-2)

        return Attack("gray_bar", trigger, AllToOne(target), params={"target": target})

    info = AttackInfo("Gray bar", "The last two rows turn gray.", "My lab, 2026", "Two rows of 50% gray.")
    register("gray_bar", gray_bar, info)
    list(train_model("signs-gray_bar-preact_resnet18-w16"))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from npd_core.attack_info import ATTACK_INFO, AttackInfo
from npd_core.attacks.badnets import badnets_a2a, badnets_a2o
from npd_core.attacks.base import (
    AllToAll,
    AllToOne,
    Attack,
    DynamicTrigger,
    Making,
    NoTarget,
    TargetRule,
    made,
    quantize,
)
from npd_core.attacks.blended import blended
from npd_core.attacks.difference import amplified_difference
from npd_core.attacks.input_aware import PatternInTraining, input_aware, make_input_aware
from npd_core.attacks.lf import lf, make_lf
from npd_core.attacks.ssba import make_ssba, ssba
from npd_core.attacks.stamp import stamp
from npd_core.attacks.trojan import make_trojan, trojan
from npd_core.attacks.wanet import WarpInTraining, wanet
from npd_core.data.load import ImageSet
from npd_core.data.spec import DatasetSpec, get_dataset
from npd_core.errors import ConfigError, unknown_name

CLEAN = "clean"
"""In place of an attack's name: a clean model."""

UNKNOWN = "unknown"
"""In place of an attack's name: an uploaded model, whose trigger is unknown."""

ATTACKS: dict[str, Callable[..., Attack]] = {
    "badnets_a2o": badnets_a2o,
    "badnets_a2a": badnets_a2a,
    "blended": blended,
    "input_aware": input_aware,
    "lf": lf,
    "ssba": ssba,
    "trojan": trojan,
    "wanet": wanet,
}

MAKE: dict[str, Callable[..., Making]] = {
    "input_aware": make_input_aware,
    "lf": make_lf,
    "ssba": make_ssba,
    "trojan": make_trojan,
}
"""Attacks with a trigger that is made from training images before it can be used."""

NEEDS_CLEAN_NET = {"lf", "trojan"}
"""Attacks whose trigger is made against a clean model."""

DYNAMIC: dict[str, type[DynamicTrigger]] = {
    "input_aware": PatternInTraining,
    "wanet": WarpInTraining,
}
"""Attacks that poison in the training loop."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""An attack's name is a part of its models' ids, between hyphens."""


def register(
    name: str,
    build: Callable[..., Attack],
    info: AttackInfo,
    *,
    make: Callable[..., Making] | None = None,
    needs_clean_net: bool = False,
    dynamic: type[DynamicTrigger] | None = None,
) -> None:
    """Add an attack from outside the project.

    It is then known to everything in this process: `get_attack`, `train_model`, the names and the pages.

    Args:
        name: lower-case letters, digits and underscores.
        build: (DatasetSpec, assets, **params) -> Attack; `assets` is empty unless the attack has some.
        info: its description.
        make: makes the trigger from training images, with the arguments of `make_lf`, for an attack that
            `build` cannot build without assets.
        needs_clean_net: whether `make` is given a clean model.
        dynamic: class of the trigger inside the training loop, for an attack that poisons there.
    Raises:
        ConfigError: a name that is taken or that cannot be a part of a model's id.
    """
    if name in ATTACKS or name in (CLEAN, UNKNOWN) or not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is taken or not a name: use lower-case letters, digits and underscores.")
    ATTACKS[name] = build
    ATTACK_INFO[name] = replace(info, made_for_model=make is not None)
    if make is not None:
        MAKE[name] = make
    if needs_clean_net:
        NEEDS_CLEAN_NET.add(name)
    if dynamic is not None:
        DYNAMIC[name] = dynamic


def get_attack(name: str, dataset: str, assets: Mapping[str, Tensor] | None = None, **params: Any) -> Attack:
    """Return the attack `name` for images of `dataset`.

    Args:
        name: of ATTACKS, or CLEAN.
        assets: `Attack.assets`; the attacks in MAKE need them. WaNet's field is drawn without them.
        params: as in `Attack.params`.
    Raises:
        UnknownNameError: no such attack, or no such data set.
        ConfigError: an unknown parameter, a target that is not a class, or assets that are missing or do not
            fit.
    """
    spec = get_dataset(dataset)
    if name in (CLEAN, UNKNOWN):
        return Attack(name, lambda x: x, NoTarget())
    _check(name, spec, params)
    if name in MAKE and not assets:
        how = f"`npd zoo train {dataset}-{name}-<arch>-w<width>`"
        raise ConfigError(
            f"The trigger of {name!r} is made for a model: name a model of the zoo, or train one with {how}."
        )
    try:
        return ATTACKS[name](spec, assets or {}, **params)
    except TypeError as error:
        raise ConfigError(f"Attack {name!r} does not take these parameters: {error}.") from error


def make_attack(
    name: str,
    dataset: str,
    data: ImageSet,
    clean_net: nn.Module | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **params: Any,
) -> Making:
    """Make the attack `name`, training its trigger if it is in MAKE; see `made`.

    Args:
        data: training images of `dataset`.
        clean_net: classifier of [0, 1] pixels on `device`, in eval mode, for the attacks in NEEDS_CLEAN_NET;
            optional for LF.
        params: of the attack, and of its making (`steps`, `batch_size`).
    Raises:
        As `get_attack`; ConfigError: Trojan without a clean model.
    """
    spec = get_dataset(dataset)
    _check(name, spec, params)
    if name not in MAKE:
        drawn = {"seed": seed} if name == "wanet" else {}
        return get_attack(name, dataset, None, **drawn, **params)
    return (yield from MAKE[name](spec, data, clean_net, seed=seed, device=device, **params))


def _check(name: str, spec: DatasetSpec, params: Mapping[str, Any]) -> None:
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    if not 0 <= params.get("target", 0) < spec.num_classes:
        last = spec.num_classes - 1
        raise ConfigError(f"`target` must be a class of {spec.id}, 0 to {last}, got {params['target']}.")


__all__ = [
    "ATTACKS",
    "ATTACK_INFO",
    "CLEAN",
    "DYNAMIC",
    "MAKE",
    "NEEDS_CLEAN_NET",
    "UNKNOWN",
    "AllToAll",
    "AllToOne",
    "Attack",
    "AttackInfo",
    "DynamicTrigger",
    "NoTarget",
    "TargetRule",
    "amplified_difference",
    "get_attack",
    "made",
    "make_attack",
    "quantize",
    "register",
    "stamp",
]

"""The attacks, by the field's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npd_core.attacks.badnets import white_square
from npd_core.attacks.base import AllToOne, Attack, AttackInfo, TargetRule, quantize
from npd_core.attacks.blended import Blended, drawn_pattern
from npd_core.data.spec import DatasetSpec, get_dataset
from npd_core.errors import ConfigError, unknown_name


def badnets_a2o(dataset: DatasetSpec, *, target: int = 0) -> Attack:
    """White square in the bottom right corner, all classes to `target`."""
    return Attack("badnets_a2o", white_square(dataset.size), AllToOne(target), params={"target": target})


def blended(dataset: DatasetSpec, *, target: int = 0, alpha: float = 0.2) -> Attack:
    """The drawn picture blended over the image, all classes to `target`."""
    trigger = Blended(drawn_pattern(dataset.size), alpha)
    return Attack("blended", trigger, AllToOne(target), params={"target": target, "alpha": alpha})


ATTACKS: dict[str, Callable[..., Attack]] = {"badnets_a2o": badnets_a2o, "blended": blended}

ATTACK_INFO: dict[str, AttackInfo] = {
    "badnets_a2o": AttackInfo(
        "BadNets",
        "A small white square in the corner turns every image into the attacker's class.",
        "Gu et al., BadNets, IEEE Access 2019",
    ),
    "blended": AttackInfo(
        "Blended",
        "A faint picture, blended over the whole image at 20%, turns it into the attacker's class.",
        "Chen et al., Targeted Backdoor Attacks, arXiv 1712.05526, 2017",
    ),
}


def get_attack(name: str, dataset: str, **params: Any) -> Attack:
    """The attack `name` for images of `dataset`.

    Raises:
        UnknownNameError: no such attack, or no such data set.
        ConfigError: a parameter that the attack does not have, or a target that is not one of the classes.
    """
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    spec = get_dataset(dataset)
    if not 0 <= params.get("target", 0) < spec.num_classes:
        last = spec.num_classes - 1
        raise ConfigError(f"`target` must be a class of {dataset}, 0 to {last}, got {params['target']}.")
    try:
        return ATTACKS[name](spec, **params)
    except TypeError as error:
        raise ConfigError(f"Attack {name!r} does not take these parameters: {error}.") from error


__all__ = ["ATTACKS", "ATTACK_INFO", "AllToOne", "Attack", "AttackInfo", "TargetRule", "get_attack", "quantize"]

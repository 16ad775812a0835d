"""Choose settings with neither the real trigger nor a test image: by planted backdoors.

Half of the clean images plants backdoors into copies of the network and defends them with each candidate
setting; the other half judges the result. Families of triggers differ in what they ask of a defense, so
the mean over the plants and the worst of them count alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch
from torch import nn

from npd_core.config.npd import FAMILIES, UNIVERSAL, NPDConfig
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError
from npd_core.events import Event, Failed
from npd_core.experiments.plants import PLANTS, Plant, halves, judge, plant
from npd_core.metrics import Metrics
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.training import train_polarizer

SAME = 0.01
"""Scores that differ by no more count as equal; then the candidate that comes first is chosen."""


@dataclass(frozen=True)
class Candidate:
    """A setting to be judged."""

    name: str
    layer: str
    config: NPDConfig


@dataclass(frozen=True)
class Judged:
    """One candidate on one planted backdoor."""

    candidate: Candidate
    plant: str
    """Family of the planted trigger."""
    metrics: Metrics
    """On held-out clean images, with the planted trigger."""
    seconds: float
    """Training time."""

    @property
    def score(self) -> float:
        """ACC + RA - ASR, in [-1, 2]."""
        return self.metrics.acc + self.metrics.ra - self.metrics.asr


@dataclass(frozen=True)
class Score:
    """One candidate over all planted backdoors."""

    candidate: Candidate
    mean: float
    worst: float
    metrics: Metrics
    """Means over the plants."""
    seconds: float
    """Mean training time."""

    @property
    def value(self) -> float:
        """What the choice is made by: halfway between the mean and the worst."""
        return (self.mean + self.worst) / 2


def default_candidates(
    config: NPDConfig, layer: str, further: Sequence[str] = (), rhos: Sequence[float] = ()
) -> list[Candidate]:
    """Return the settings that are tried: the preset with several families of augmented copies, and at other
    layers and with other budgets.

    Args:
        config: the preset.
        layer: its insertion layer.
        further: layers to try with the config's own families.
        rhos: budgets to try likewise.
    """
    families: dict[str, tuple[str, ...]] = {
        "no copies": (),
        "copies: universal": (UNIVERSAL,),
        "copies: images": FAMILIES[:-1],
        "copies: all": FAMILIES,
    }
    found = [
        Candidate(name, layer, replace(config, families=chosen, copies=max(1, len(chosen) // 3)))
        for name, chosen in families.items()
    ]
    found += [Candidate(f"at {name}", name, config) for name in further if name != layer]
    found += [Candidate(f"rho {rho:g}", layer, replace(config, rho=rho)) for rho in rhos if rho != config.rho]
    return found


def planted_scores(
    net: nn.Module,
    clean: ImageSet,
    candidates: Sequence[Candidate],
    size: int,
    device: torch.device,
    plants: Sequence[str] = PLANTS,
    seed: int = 0,
) -> Iterator[Event | Plant | Judged]:
    """Plant backdoors and defend them with every candidate. Yields each Plant, taken or not, then for those
    that took the events of each training and its Judged.

    Args:
        net: classifier of [0, 1] pixels; not changed.
        clean: D_bn; at least 2 images of each class.
        size: height and width of the images.
        plants: families of planted triggers.
        seed: of the split, and of the plants.
    Raises:
        ConfigError: a class with a single image, or no planted backdoor took.
        UnknownNameError: no such family of plants, or no such layer.
    """
    train, held_out = halves(clean, seed)
    took = False
    for number, family in enumerate(plants):
        planted = plant(net, train, held_out, family, seed + number, device)
        yield planted
        if not planted.took:
            continue
        took = True
        for candidate in candidates:
            defended = PolarizedNet(planted.net, candidate.layer, size)
            last: Event | None = None
            for last in train_polarizer(defended, train, candidate.config, device):
                yield last
            found = judge(defended, held_out, planted.trigger, planted.target, device)
            if isinstance(last, Failed):
                found = Metrics(0.0, 1.0, 0.0)
            yield Judged(candidate, family, found, getattr(last, "seconds", 0.0))
    if not took:
        raise ConfigError(
            f"None of the planted backdoors took ({', '.join(plants)}), so no setting can be judged: "
            "use more clean images, or other plants."
        )


def scores(judged: Sequence[Judged]) -> list[Score]:
    """Return the score of every candidate, in the order in which they came."""
    found = []
    for candidate in dict.fromkeys(j.candidate for j in judged):
        own = [j for j in judged if j.candidate == candidate]
        means = Metrics(*(mean(values) for values in zip(*(j.metrics for j in own), strict=True)))
        values = [j.score for j in own]
        found.append(Score(candidate, mean(values), min(values), means, mean(j.seconds for j in own)))
    return found


def choose(found: Sequence[Score]) -> Score:
    """Return the first candidate within SAME of the best one."""
    best = max(score.value for score in found)
    return next(score for score in found if score.value >= best - SAME)

"""ACC, ASR, RA and DER as numbers. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple


class Metrics(NamedTuple):
    """Fractions in [0, 1]."""

    acc: float
    """Clean test images classified correctly."""
    asr: float
    """Triggered test images, true label other than the target, classified as the target."""
    ra: float = 0.0
    """The same triggered images, classified as their true label. ASR + RA <= 1."""


def der(before: Metrics, after: Metrics) -> float:
    """Return the defense effectiveness rating, Eq. 6: [max(0, drop of ASR) - max(0, drop of ACC) + 1] / 2, in
    [0, 1]; 0.5 means no effect."""
    return (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 1) / 2


def mean(metrics: Sequence[Metrics]) -> Metrics:
    """Return the mean of each. DER over several attacks is Eq. 6 of two such means, as in the paper's AVG
    rows, not the mean of the DERs. Raises StatisticsError when there are none."""
    return Metrics(*map(fmean, zip(*metrics, strict=True)))

"""Is a network backdoored, and which images carry a trigger? Three signs, none of which needs the trigger.

Neural Cleanse looks for a class that a small patch reaches. A polarizer shows which clean images it changes,
and which suspected images lose the class that the network predicts for them.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from npd_core.config.baselines import NCConfig
from npd_core.data.load import ImageSet
from npd_core.defenses.nc import neural_cleanse
from npd_core.evaluation import predict
from npd_core.events import Event, Finished
from npd_core.models.normalized import Normalized

BLIND_SPOTS = (
    "Neural Cleanse finds triggers that are small patches. Triggers that cover the whole image or differ "
    "from image to image (Blended, LF, SSBA, WaNet, Input-aware) usually stay below its threshold, and so do "
    "backdoors with more than one target class: a network without a flagged class may still be backdoored."
)


class Masks(NamedTuple):
    """The smallest patch that was found for each examined class."""

    norms: dict[int, float]
    """Class -> L1 norm of the mask, in pixels."""
    anomaly: dict[int, float]
    """Class -> distance of its norm from the median, in MAD (times 1.4826)."""
    flagged: list[int]
    """Classes with a norm below the median by more than `threshold`."""
    threshold: float


class Changes(NamedTuple):
    """What a polarizer does to images, one entry an image."""

    before: list[int]
    """Class that the network predicts."""
    after: list[int]
    """Class that the polarized network predicts."""
    scores: list[float]
    """Fall of the probability of the class in `before`, in [-1, 1]: the higher, the more suspicious."""

    @property
    def changed(self) -> list[int]:
        """Positions of the images whose class changes, the most suspicious first."""
        pairs = zip(self.before, self.after, strict=True)
        found = [k for k, (one, other) in enumerate(pairs) if one != other]
        return sorted(found, key=lambda k: -self.scores[k])

    def by_class(self) -> dict[int, tuple[int, int]]:
        """Return, for each class that was predicted, the number of images and how many of them leave it."""
        changed = set(self.changed)
        return {
            label: (self.before.count(label), sum(self.before[k] == label for k in changed))
            for label in sorted(set(self.before))
        }


def search_masks(
    net: Normalized, clean: ImageSet, cfg: NCConfig, device: torch.device
) -> Generator[Event, None, Masks]:
    """Search the smallest patch for every class by Neural Cleanse. The network stays as it is.

    Args:
        clean: images that a defense may use.
    Yields:
        the events of the search.
    Raises:
        ConfigError: as for `neural_cleanse`.
    """
    details: dict[str, Any] = {}
    for event in neural_cleanse(copy.deepcopy(net), clean, replace(cfg, epochs=0), device):
        if isinstance(event, Finished):
            details = dict(event.details)
        yield event
    norms, anomaly = (
        {int(label): value for label, value in details[name].items()} for name in ("norms", "anomaly")
    )
    return Masks(norms, anomaly, details["flagged"], cfg.outlier)


def changes(backdoored: nn.Module, repaired: nn.Module, images: Tensor, device: torch.device) -> Changes:
    """Compare the predictions of a network with those of its repaired copy.

    Args:
        backdoored, repaired: classifiers of [0, 1] pixels on `device`, in eval mode.
        images: (N, 3, H, W) uint8; no labels are needed.
    """
    one = predict(backdoored, images, device).softmax(1)
    other = predict(repaired, images, device).softmax(1)
    before = one.argmax(1, keepdim=True)
    fall = (one.gather(1, before) - other.gather(1, before)).squeeze(1)
    return Changes(before.squeeze(1).tolist(), other.argmax(1).tolist(), fall.tolist())


def auroc(suspicious: Tensor, harmless: Tensor) -> float:
    """Return the probability that a score of the first kind is above one of the second; ties count half.

    Args:
        suspicious, harmless: scores, (N,) and (M,), at least one each.
    """
    known = harmless.double().sort().values
    below, up_to = (torch.searchsorted(known, suspicious.double(), right=right) for right in (False, True))
    return float((below + up_to).double().mean() / (2 * len(known)))

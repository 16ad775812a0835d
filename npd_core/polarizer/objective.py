"""The outer level: the loss terms of Eq. 2, 3 and 5, each per image and averaged over the batch.

`kept`, (B,) bool, leaves images out of a mean: those that already have their target class. None: all are
kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from npd_core.polarizer.perturbation import runner_up


def loss_bn(logits: Tensor, y: Tensor) -> Tensor:
    """Return L_bn = CE(f_hat(x), y) on clean images (Eq. 5). (B, K), (B,) -> scalar."""
    return F.cross_entropy(logits, y)


def minus_log_not(logits: Tensor, k: Tensor, form: str = "exact") -> Tensor:
    """Return -log(1 - s_k) with s = softmax(logits): the penalty on the probability of class k.

    Args:
        logits: (B, K) float32.
        k: (B,) int64.
        form: `exact` is logsumexp over all minus logsumexp over the other classes, which is finite and has a
            gradient that never vanishes; `mart` is -log(1.0001 - s_k + 1e-12), which caps the term at 9.21.
    Returns:
        (B,), at least 0 for `exact`.
    """
    if form == "mart":
        s = logits.softmax(1).gather(1, k[:, None])[:, 0]
        return -torch.log(1.0001 - s + 1e-12)
    others = logits.scatter(1, k[:, None], float("-inf"))
    return torch.logsumexp(logits, 1) - torch.logsumexp(others, 1)


def mean_of(values: Tensor, kept: Tensor | None) -> Tensor:
    """Return the mean over the kept images, 0 when there is none. (B,) -> scalar."""
    return values.mean() if kept is None else (values * kept).sum() / kept.sum().clamp(min=1)


def loss_asr(logits: Tensor, target: Tensor, form: str = "exact", kept: Tensor | None = None) -> Tensor:
    """Return L_asr = -log(1 - s_target) on perturbed images (Eq. 2). (B, K), (B,) -> scalar."""
    return mean_of(minus_log_not(logits, target, form), kept)


def loss_bce1(logits: Tensor, y: Tensor, kept: Tensor | None = None) -> Tensor:
    """Return the first term of the boosted cross-entropy, -log s_y on perturbed images (Eq. 3). (B, K), (B,)
    -> scalar."""
    if kept is None:
        return F.cross_entropy(logits, y)
    return mean_of(F.cross_entropy(logits, y, reduction="none"), kept)


def loss_bce2(logits: Tensor, y: Tensor, form: str = "exact", kept: Tensor | None = None) -> Tensor:
    """Return the second term, -log(1 - max over k != y of s_k) on perturbed images (Eq. 3). (B, K), (B,) ->
    scalar."""
    return mean_of(minus_log_not(logits, runner_up(logits.detach(), y), form), kept)


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of the terms (Eq. 5). A weight of 0 removes its term exactly."""
    parts = [weights[name] * term for name, term in terms.items() if weights[name] != 0]
    return torch.stack(parts).sum() if parts else torch.stack([0.0 * term for term in terms.values()]).sum()

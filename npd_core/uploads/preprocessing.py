"""How the images of an uploaded network must be prepared: its clean images tell.

Normalizations, the order of the color channels, sizes and a border that is cut off are tried, one after the
other, on a sample of labeled clean images; the accuracy says which of them the network was trained with. The
confusion matrix says whether the classes are numbered in another order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from npd_core.data.spec import NORMALISATIONS, Color
from npd_core.errors import CheckpointError, ConfigError

FINDINGS = "findings.json"
"""Name of the file of `Findings`."""
SAMPLE = 300
"""Clean images that the candidates are measured on, at most; fewer of those above 64 x 64 pixels."""
SIZES = (32, 64, 96, 128, 224)
"""Heights and widths that are tried beside the given one, in pixels."""
BORDERS = (2, 4, 5)
"""Borders that are tried, in 32nds of the height."""
FAR_AHEAD = 0.1
"""Gain of accuracy, as a fraction, from which on a candidate is taken without being asked for."""
LOW = 0.6
"""Accuracy, as a fraction, below which a warning is shown."""
ADAPT = ("far", "best", "never")
"""When the best candidate is taken: far ahead of the given one, always, or never."""


@dataclass(frozen=True)
class Candidate:
    """One way to prepare images."""

    mean: Color
    std: Color
    normalization: str
    """Name of mean and std."""
    size: int
    """Height and width in pixels."""
    bgr: bool = False
    """Whether the network takes its channels in the order blue, green, red."""
    border: int = 0
    """Width that is cut off on each side before the image is resized, in 32nds of the height."""
    accuracy: float = 0.0
    """Share of the sample that is predicted correctly."""

    def prepare(self, x: Tensor) -> Tensor:
        """Return images for the network, (B, 3, size, size), from x, (B, 3, H, W) in [0, 1]."""
        x = resized(cut(x, self.border), self.size)
        x = (x - torch.tensor(self.mean).view(-1, 1, 1)) / torch.tensor(self.std).view(-1, 1, 1)
        return x.flip(1).contiguous() if self.bgr else x

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "normalization": self.normalization, "mean": list(self.mean), "std": list(self.std),
            "channels": "BGR" if self.bgr else "RGB", "size": self.size, "border": self.border,
            "accuracy": self.accuracy,
        }  # fmt: skip


class Permutation(NamedTuple):
    """Another numbering of the classes."""

    label: tuple[int, ...]
    """Folder (by its present label) -> label of the network."""
    accuracy: float
    """Share of the sample that is predicted correctly with it."""


class Findings(NamedTuple):
    """What the clean images tell about a network, kept beside it."""

    candidates: list[dict[str, Any]]
    """`Candidate.to_dict`, the best first."""
    used: dict[str, Any]
    """The candidate that was taken."""
    warnings: list[str]
    """Sentences for the visitor."""
    turned: int
    """Images that were rotated as their Exif blocks say."""


def read_findings(folder: Path) -> Findings | None:
    """Return what was found when the model in `folder` was imported; None for an older import."""
    try:
        return Findings(**json.loads((folder / FINDINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def name_of(mean: Color, std: Color) -> str:
    """Return the name of a normalization, or its numbers."""
    names = (name for name, values in NORMALISATIONS.items() if values == (tuple(mean), tuple(std)))
    return next(names, ",".join(f"{value:g}" for value in (*mean, *std)))


def swap_channels(net: nn.Module, size: int) -> None:
    """Change the weights of a network that takes blue, green, red so that it takes red, green, blue.

    Args:
        net: in eval mode; its first convolution is changed.
        size: of its images, in pixels.
    Raises:
        CheckpointError: the logits would not stay the same, as the network has another first layer.
    """
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    first = next((m for m in net.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3), None)
    with torch.no_grad():
        before = net(x.flip(1))
        if first is not None and first.groups == 1:
            first.weight.copy_(first.weight.flip(1))
        if not torch.allclose(net(x), before, rtol=1e-3, atol=1e-3):
            raise CheckpointError(
                "The network takes blue, green, red, and its first layer is no convolution: import one that "
                "takes red, green, blue."
            )


def cut_images(images: NDArray[np.uint8], border: int) -> NDArray[np.uint8]:
    """Cut a border off images, (N, 3, H, W), and resize the rest, as `cut` does; rounded."""
    if not border:
        return images
    parts = torch.from_numpy(images).split(500)
    return torch.cat([cut(x.float() / 255, border).mul(255).round().to(torch.uint8) for x in parts]).numpy()


def cut(x: Tensor, border: int) -> Tensor:
    """Cut `border` 32nds of the height off each side of x, (B, 3, H, W), and resize the rest to H x W."""
    size = x.shape[-1]
    pixels = round(border * size / 32)
    if pixels == 0:
        return x
    return resized(x[..., pixels : size - pixels, pixels : size - pixels], size)


def resized(x: Tensor, size: int) -> Tensor:
    """Resize x, (B, 3, H, W) in [0, 1], to `size` with an antialiased bilinear filter."""
    if x.shape[-1] == size:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)


@torch.inference_mode()
def predicted(net: nn.Module, candidate: Candidate, images: Tensor) -> Tensor:
    """Return classes, (N,). Raises RuntimeError and others where the network does not take this size.

    Args:
        net: classifier of normalized images, in eval mode.
        images: (N, 3, H, W) uint8.
    """
    found = [net(candidate.prepare(x.float() / 255)).argmax(1) for x in images.split(100)]
    return torch.cat(found)


def explore(net: nn.Module, given: Candidate, images: Tensor, labels: Tensor) -> list[Candidate]:
    """Measure ways to prepare images: normalizations and orders of the channels first, then, with the best of
    them, sizes, then borders.

    Args:
        net: classifier of normalized images, in eval mode.
        given: what the visitor chose.
        images: clean images, (N, 3, H, W) uint8.
        labels: (N,) int64.
    Returns:
        the candidates, the best first; of equal ones the given first. The given one is among them.
    """
    most = max(SAMPLE // 5, min(SAMPLE, SAMPLE * 64**2 // given.size**2))
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:most]
    images, labels = images[chosen], labels[chosen]
    norms = {given.normalization: (given.mean, given.std)} | {
        name: values for name, values in NORMALISATIONS.items() if values != (given.mean, given.std)
    }
    found = _measured(
        net,
        (
            Candidate(*values, name, given.size, bgr, given.border)
            for bgr in (given.bgr, not given.bgr)
            for name, values in norms.items()
        ),
        images,
        labels,
    )
    best = found[0]
    sizes = (size for size in SIZES if size != best.size and size <= 2 * images.shape[-1])
    found += _measured(net, (_like(best, size=size) for size in sizes), images, labels)
    best = max(found, key=lambda c: c.accuracy)
    borders = (border for border in (0, *BORDERS) if border != best.border)
    found += _measured(net, (_like(best, border=border) for border in borders), images, labels)
    return sorted(found, key=lambda c: -c.accuracy)


def _like(one: Candidate, *, size: int | None = None, border: int | None = None) -> Candidate:
    return Candidate(
        one.mean, one.std, one.normalization, size or one.size, one.bgr,
        one.border if border is None else border,
    )  # fmt: skip


def _measured(
    net: nn.Module, candidates: Iterable[Candidate], images: Tensor, labels: Tensor
) -> list[Candidate]:
    """Return the candidates that the network takes with their accuracies, the best first."""
    found = []
    for one in candidates:
        try:
            accuracy = float(predicted(net, one, images).eq(labels).float().mean())
        except (RuntimeError, ValueError, AssertionError, TypeError, ArithmeticError):
            continue  # a network for another size of images
        found.append(Candidate(one.mean, one.std, one.normalization, one.size, one.bgr, one.border, accuracy))
    return sorted(found, key=lambda c: -c.accuracy)


def choose(found: Sequence[Candidate], given: Candidate, adapt: str) -> Candidate:
    """Return the candidate that is used: the given one, or the best where `adapt`, one of ADAPT, says so."""
    if adapt not in ADAPT:
        raise ConfigError(f"`adapt` must be one of {', '.join(ADAPT)}, got {adapt!r}.")
    own = next((c for c in found if same(c, given)), given)
    best = found[0] if found else own
    far = best.accuracy >= own.accuracy + FAR_AHEAD and best.accuracy >= LOW
    return best if (adapt == "best" and best.accuracy > own.accuracy) or (adapt == "far" and far) else own


def same(one: Candidate, other: Candidate) -> bool:
    """Whether two candidates prepare images alike."""
    key = [(c.mean, c.std, c.size, c.bgr, c.border) for c in (one, other)]
    return key[0] == key[1]


def permutation(labels: Tensor, classes: Tensor, num_classes: int) -> Permutation:
    """Return the numbering of the classes that agrees best with the predictions (the assignment problem).

    Classes without images keep their labels where they can.

    Args:
        labels, classes: of the same images, (N,) int64; true by folder, and predicted.
    """
    counts = np.bincount(labels.numpy() * num_classes + classes.numpy(), minlength=num_classes**2)
    matrix = counts.reshape(num_classes, num_classes)
    _, columns = linear_sum_assignment(matrix + 0.5 / num_classes * np.eye(num_classes), maximize=True)
    right = matrix[np.arange(num_classes), columns].sum()
    return Permutation(tuple(int(k) for k in columns), float(right / max(1, len(labels))))


def warnings(accuracy: float, numbering: Permutation, classes: Sequence[str], images: int) -> list[str]:
    """Return sentences about an accuracy that is low, with what would explain it.

    Args:
        accuracy: of the chosen candidate, a fraction.
        numbering: the best one for its predictions.
        images: in the sample; with few images per class a numbering fits by chance.
    """
    moved = [(classes[k], label) for k, label in enumerate(numbering.label) if k != label]
    telling = images >= 3 * len(classes) and numbering.accuracy >= max(0.5, accuracy + 2 * FAR_AHEAD)
    if moved and telling:
        first = ", ".join(f"folder {name!r} is label {label}" for name, label in moved[:3])
        more = f" and {len(moved) - 3} more are renumbered" if len(moved) > 3 else ""
        return [
            f"The accuracy is {accuracy:.0%}, and {numbering.accuracy:.0%} if {first}{more}: name the "
            "folders by the labels of the network."
        ]
    if accuracy < 2 / len(classes):
        return [
            f"On these images the network is hardly better than guessing ({accuracy:.0%}): check that they "
            "show its classes, and that the folders are named by its labels."
        ]
    if accuracy < LOW:
        return [
            f"The accuracy on the clean images is only {accuracy:.0%}: check the table of normalizations, "
            "sizes and borders, and the labels."
        ]
    return []


def target_warning(classes: Tensor, labels: Tensor, target: int) -> str:
    """Return a sentence where the network predicts another class than `target` for most triggered images;
    else an empty one.

    Args:
        classes, labels: predicted and true, (N,) int64.
    """
    wrong = classes[classes != labels]
    if not len(wrong):
        return "The network predicts the true class of every triggered image: do they carry the trigger?"
    most = int(wrong.bincount().argmax())
    share = float((classes == most).float().mean())
    if most == target or share < 0.5:
        return ""
    return (
        f"The network predicts class {most} for {share:.0%} of the triggered images, not the target {target}."
    )

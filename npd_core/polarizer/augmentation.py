"""Augmented copies of the defender's clean images: changes of the kind that a trigger makes, the label kept.

Every copy is changed by one family, drawn at random. A polarizer that learns on the copies too, and on their
adversarial perturbations, keeps more of the true class of a triggered image than one that has seen clean
images alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from npd_core.config.npd import FAMILIES, UNIVERSAL
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError, unknown_name
from npd_core.polarizer.universal import Universal, perturb

BLEND_WEIGHT = 0.35
"""Largest weight of the other image."""
NOISE_WEIGHT = 0.3
"""Largest weight of the noise."""
FIELD_DEVIATION = 0.12
"""Standard deviation of the color field at its knots, in [0, 1] pixel units."""
KNOTS = 4
"""Knots of a smooth field along each side of the image."""
WARP_SHIFT = (0.5, 1.0)
"""Smallest and largest root mean square of a warp's displacement, in pixels of a 32 x 32 image."""
PATCH_SIDE = (3, 8)
"""Smallest and largest side of a patch, in pixels of a 32 x 32 image."""

Family = Callable[[Tensor, Generator], Tensor]
"""(B, 3, H, W) float32 in [0, 1], on the CPU -> changed images of the same shape and range."""


def blend(x: Tensor, generator: Generator) -> Tensor:
    """Mix each image with another one of the batch, of weight uniform in [0, BLEND_WEIGHT]."""
    order = torch.randperm(len(x), generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return torch.lerp(x, x[partner], _uniform(x, 0.0, BLEND_WEIGHT, generator))


def field(x: Tensor, generator: Generator) -> Tensor:
    """Add a smooth color field: Gaussian at KNOTS x KNOTS knots, bilinear between them."""
    knots = FIELD_DEVIATION * torch.randn(len(x), 3, KNOTS, KNOTS, generator=generator)
    return (x + _smooth(knots, x)).clamp(0, 1)


def warp(x: Tensor, generator: Generator) -> Tensor:
    """Shift the pixels along a smooth random field, by WARP_SHIFT on average; bilinear, the border
    repeated."""
    height, width = x.shape[-2:]
    shift = _smooth(torch.randn(len(x), 2, KNOTS, KNOTS, generator=generator), x)
    shift = shift / shift.square().sum(1, keepdim=True).mean((2, 3), keepdim=True).sqrt()
    shift = shift * _uniform(x, *WARP_SHIFT, generator) * (height / 32)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack(
        [
            (columns + shift[:, 0]) * (2 / max(1, width - 1)) - 1,
            (rows + shift[:, 1]) * (2 / max(1, height - 1)) - 1,
        ],
        dim=-1,
    )
    return F.grid_sample(x, grid, padding_mode="border", align_corners=True)


def patch(x: Tensor, generator: Generator) -> Tensor:
    """Cover a square at a random position, of one random color or of random pixels."""
    height, width = x.shape[-2:]
    smallest, largest = (max(1, round(side * height / 32)) for side in PATCH_SIDE)
    side = torch.randint(smallest, largest + 1, (len(x), 1), generator=generator)
    inside = []
    for length in (height, width):
        start = (torch.rand(len(x), 1, generator=generator) * (length - side + 1)).long()
        at = torch.arange(length)
        inside.append((start <= at) & (at < start + side))
    covered = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    color = torch.rand(len(x), x.shape[1], 1, 1, generator=generator)
    pixels = torch.rand(x.shape, generator=generator)
    flat = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(covered, torch.where(flat, color, pixels), x)


def noise(x: Tensor, generator: Generator) -> Tensor:
    """Mix each image with uniform noise of weight uniform in [0, NOISE_WEIGHT]."""
    return torch.lerp(x, torch.rand(x.shape, generator=generator), _uniform(x, 0.0, NOISE_WEIGHT, generator))


APPLY: dict[str, Family] = {"blend": blend, "field": field, "warp": warp, "patch": patch, "noise": noise}
"""Families that need the image alone; `universal` also needs the network."""
assert (*APPLY, UNIVERSAL) == FAMILIES


def augmented(
    clean: ImageSet, families: Sequence[str], generator: Generator, universal: Universal | None = None
) -> Tensor:
    """Return one changed copy of each image; the family of each is drawn at random.

    Args:
        clean: N images on the CPU, with their labels.
        families: names in FAMILIES.
        generator: on the CPU; the only source of random numbers.
        universal: perturbations of the family `universal`.
    Returns:
        (N, 3, H, W) uint8.
    Raises:
        UnknownNameError: no such family.
        ConfigError: no family, or `universal` without perturbations.
    """
    if not families:
        raise ConfigError(f"Augmented copies need at least one family of {', '.join(FAMILIES)}.")
    for name in families:
        if name not in FAMILIES:
            raise unknown_name("family", name, FAMILIES)
    if UNIVERSAL in families and universal is None:
        raise ConfigError("The family `universal` needs the perturbations of a network: pass `universal`.")
    drawn = torch.randint(len(families), (len(clean.labels),), generator=generator)
    copies = clean.images.clone()
    for number, name in enumerate(families):
        rows = (drawn == number).nonzero()[:, 0]
        if len(rows):
            x = clean.images[rows].float() / 255
            if name in APPLY:
                changed = APPLY[name](x, generator)
            else:
                assert universal is not None
                changed = perturb(x, clean.labels[rows], universal, generator)
            copies[rows] = (changed * 255).round().to(torch.uint8)
    return copies


def with_copies(
    clean: ImageSet, families: Sequence[str], copies: int, seed: int, universal: Universal | None = None
) -> ImageSet:
    """Return the images followed by `copies` changed versions of all of them, labels repeated.

    Args:
        clean: N images.
        families: as for `augmented`; empty: the images alone.
        seed: of the families and their random numbers.
        universal: as for `augmented`.
    Returns:
        N (1 + copies) images; version v of image i stands at v N + i.
    """
    if not families:
        return clean
    generator = torch.Generator().manual_seed(seed)
    versions = [clean.images, *(augmented(clean, families, generator, universal) for _ in range(copies))]
    return ImageSet(torch.cat(versions), clean.labels.repeat(copies + 1))


def _uniform(x: Tensor, low: float, high: float, generator: Generator) -> Tensor:
    """Return one random number per image, (B, 1, 1, 1)."""
    return low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=generator)


def _smooth(knots: Tensor, x: Tensor) -> Tensor:
    """Return knots (B, C, KNOTS, KNOTS) interpolated to the size of the images."""
    return F.interpolate(knots, size=x.shape[-2:], mode="bilinear", align_corners=True)

"""How clearly an image can be seen, so that the first images that are shown are good ones.

The rule looks at clean pixels alone, never at a trigger or a network.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""
DARK, BRIGHT = 0.4, 0.85
"""Mean luminance below and above which an image counts as too dark or too bright."""


def clarity(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return how clear each image is in its middle: its contrast and color, less where dark or pale.

    The outer fifth on each side does not count: it is mostly background.

    Args:
        images: (N, 3, H, W) uint8.
    Returns:
        (N,) in [0, 1]: the standard deviation of the luminance in [0, 1] plus half the mean difference of the
        strongest and the weakest of red, green and blue; times the mean luminance over DARK where it is below
        DARK, and times its distance from white over 1 - BRIGHT where it is above BRIGHT.
    """
    margin = images.shape[-1] // 5
    middle = images[..., margin : images.shape[-2] - margin, margin : images.shape[-1] - margin]
    pixels = middle.astype(np.float64) / 255
    luminance = np.tensordot(pixels, LUMA, axes=([1], [0]))
    mean, contrast = luminance.mean(axis=(1, 2)), luminance.std(axis=(1, 2))
    color = (pixels.max(axis=1) - pixels.min(axis=1)).mean(axis=(1, 2))
    return np.asarray(
        (contrast + color / 2) * np.minimum(np.minimum(mean / DARK, (1 - mean) / (1 - BRIGHT)), 1.0)
    )


def clearest(images: NDArray[np.uint8], labels: NDArray[np.int64], each: int = 1) -> NDArray[np.int64]:
    """Return the places of the clearest images of each class: class by class, the clearest one first.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        each: most images of a class.
    """
    score = clarity(images)
    order = np.lexsort((np.arange(len(labels)), -score, labels))
    ranked = labels[order]
    first = np.searchsorted(ranked, ranked)  # place of the clearest image of the same class
    return np.asarray(order[np.arange(len(order)) - first < each])

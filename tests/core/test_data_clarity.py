"""Clarity: contrast counts, darkness and paleness take from it, and each class is ranked on its own."""

from __future__ import annotations

import numpy as np
import pytest

from npd_core.data.clarity import BRIGHT, DARK, LUMA, clarity, clearest


def halves(dark: float, bright: float) -> np.ndarray:
    """A gray image, its left half darker than its right one; brightness in [0, 1]."""
    image = np.full((3, 4, 4), round(255 * bright), np.uint8)
    image[..., :2] = round(255 * dark)
    return image


def test_clarity_is_contrast_at_medium_brightness() -> None:
    found = clarity(np.stack([halves(0.4, 0.6), halves(0.2, 0.8), halves(0.5, 0.5)]))
    assert found == pytest.approx([0.1, 0.3, 0.0], abs=5e-3)


def test_dark_and_pale_images_count_less() -> None:
    dark, pale = clarity(np.stack([halves(0.1, 0.3), halves(0.8, 1.0)]))
    assert dark == pytest.approx(0.1 * 0.2 / DARK, abs=5e-3)
    assert pale == pytest.approx(0.1 * 0.1 / (1 - BRIGHT), abs=5e-3)


def test_color_counts_half() -> None:
    red = np.zeros((1, 3, 4, 4), np.uint8)
    red[:, 0] = 255
    assert clarity(red) == pytest.approx([0.5 * LUMA[0] / DARK])


def test_the_background_does_not_count() -> None:
    framed = np.full((1, 3, 10, 10), 255, np.uint8)
    framed[..., 2:8, 2:8] = 128
    assert clarity(framed) == pytest.approx([0.0])


def test_each_class_has_its_own_clearest_images() -> None:
    images = np.stack([halves(0.5, 0.6), halves(0.3, 0.7), halves(0.45, 0.55), halves(0.2, 0.8)])
    labels = np.array([7, 7, 2, 7])
    assert clearest(images, labels).tolist() == [2, 3]
    assert clearest(images, labels, each=2).tolist() == [2, 3, 1]

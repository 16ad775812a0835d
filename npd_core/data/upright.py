"""Any image file as eight-bit RGB: upright, 16 bits scaled, transparent parts on white."""

from __future__ import annotations

import numpy as np
from PIL import Image

ORIENTATION = 0x112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""How an image is rotated, by its Exif orientation."""


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return the rotation that makes the image upright; None if there is none, or it cannot be read."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # many cameras and editors write invalid Exif blocks
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to eight bits per channel, with transparent parts on white."""
    if image.mode.startswith("I"):  # 16 bits per pixel; a plain conversion would make nearly all of it white
        wide = np.asarray(image, dtype=np.float64)
        return Image.fromarray((wide.clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    transparent = image.convert("RGBA")
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(transparent)
    return flat.convert("RGB")

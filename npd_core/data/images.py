"""Photos and painted overlays of a visitor: decode them with limits, crop and resize them, blend them.

Works on numpy arrays and imports no torch. Nothing is written to disk.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from npd_core.data.parquet import FORMATS, MAX_PIXELS
from npd_core.data.upright import to_rgb, turn_of
from npd_core.errors import StorageError

MAX_BYTES = 25 * 1024 * 1024
"""Largest file that is looked at."""
MAX_OVERLAY = 200_000
"""Longest overlay, in characters; 64 x 64 noisy pixels take about 22 000."""
PREFIX = "data:image/png;base64,"
_TO_QUERY, _FROM_QUERY = str.maketrans("+/", "-_"), str.maketrans("-_", "+/")


def decode_image(data: bytes, size: int) -> NDArray[np.uint8]:
    """Decode a photo or drawing: upright, on white where transparent, its middle square resized.

    Args:
        data: the bytes of a PNG, JPEG, WebP, GIF, BMP or PPM file in any color mode; the first frame of an
            animation.
        size: height and width of the result in pixels.
    Returns:
        (3, size, size) uint8.
    Raises:
        StorageError: empty, over MAX_BYTES or MAX_PIXELS, damaged, or not an image.
    """
    if not data:
        raise StorageError("The file is empty; choose another image.")
    if len(data) > MAX_BYTES:
        raise StorageError(
            f"The file has {len(data) / 2**20:.0f} MB, the limit is {MAX_BYTES // 2**20} MB; choose a "
            "smaller image."
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            progressive = image.info.get("progressive")  # decoded in full, to notice missing parts
            if image.format in ("JPEG", "MPO") and not progressive:
                image.draft(None, (8 * size, 8 * size))  # decode a big photo at a fraction of its size
            if image.width * image.height > MAX_PIXELS:
                raise StorageError(
                    f"The image has {image.width} x {image.height} pixels, the limit is "
                    f"{MAX_PIXELS / 1e6:.0f} million; make it smaller."
                )
            turn = turn_of(image)
            upright = to_rgb(image) if turn is None else to_rgb(image).transpose(turn)
            square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
            return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise StorageError("The image has too many pixels; make it smaller.") from error
    except UnidentifiedImageError as error:
        raise StorageError("This file is not an image; choose a PNG, JPEG, WebP, GIF or BMP file.") from error
    except (OSError, ValueError, TypeError, LookupError, SyntaxError, EOFError, struct.error) as error:
        raise StorageError(
            "The image is damaged or cut short; save it again or choose another one."
        ) from error


def decode_overlay(uri: str, size: int) -> NDArray[np.uint8]:
    """Decode what was painted or stamped in a browser.

    Args:
        uri: PNG data URI of exactly size x size pixels.
    Returns:
        (4, size, size) uint8: red, green, blue, opacity.
    Raises:
        StorageError: anything else.
    """
    problem = "The painted trigger could not be read: clear it and paint it again."
    if not uri.startswith(PREFIX) or len(uri) > MAX_OVERLAY:
        raise StorageError(problem)
    try:
        data = base64.b64decode(uri[len(PREFIX) :], validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (size, size):
                raise StorageError(problem)
            return np.ascontiguousarray(np.asarray(image.convert("RGBA")).transpose(2, 0, 1))
    except (OSError, ValueError, SyntaxError, EOFError, binascii.Error) as error:
        raise StorageError(problem) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise StorageError(problem) from error


def to_query(uri: str) -> str:
    """Shorten a PNG data URI to characters that a URL carries unescaped; `from_query` is the inverse."""
    return uri.removeprefix(PREFIX).translate(_TO_QUERY).rstrip("=")


def from_query(text: str) -> str:
    """Return the PNG data URI that `to_query` shortened; it may be invalid, see `decode_overlay`."""
    return PREFIX + text.translate(_FROM_QUERY) + "=" * (-len(text) % 4)


def overlay(images: NDArray[np.uint8], rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend `rgba` over images: (1 - opacity) * image + opacity * color, rounded.

    Args:
        images: (3, H, W) or (N, 3, H, W) uint8.
        rgba: (4, H, W) uint8.
    Returns:
        uint8, the shape of `images`.
    """
    opacity = rgba[3].astype(np.int32)
    mixed = images.astype(np.int32) * (255 - opacity) + rgba[:3].astype(np.int32) * opacity
    return ((mixed + 127) // 255).astype(np.uint8)

"""Pictures that a visitor brings: decode them with limits, bring them to a model's size, lay something over
them.

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
from npd_core.errors import StorageError

MAX_BYTES = 25 * 1024 * 1024
"""Largest file that is looked at."""
MAX_OVERLAY = 200_000
"""Longest overlay, in characters; one of 64 x 64 noisy pixels has about 22 000."""
PREFIX = "data:image/png;base64,"
_TO_QUERY, _FROM_QUERY = str.maketrans("+/", "-_"), str.maketrans("-_", "+/")


ORIENTATION = 0x112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""How a picture is turned upright, by the number that its Exif block gives its orientation."""


def decode_picture(data: bytes, size: int) -> NDArray[np.uint8]:
    """A photo or drawing as a model wants it: upright, on white where it is see-through, its middle square
    cut out.

    Args:
        data: a file's bytes: PNG, JPEG, WebP, GIF, BMP or PPM in any colour mode; of an animation the first
            picture counts.
        size: height and width of the result in pixels.
    Returns:
        (3, size, size) uint8.
    Raises:
        StorageError: empty, over MAX_BYTES or MAX_PIXELS, damaged, or not a picture.
    """
    if not data:
        raise StorageError("The file is empty; choose another picture.")
    if len(data) > MAX_BYTES:
        raise StorageError(
            f"The file has {len(data) / 2**20:.0f} MB, the limit is {MAX_BYTES // 2**20} MB; choose a "
            "smaller picture."
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.format in ("JPEG", "MPO") and not image.info.get(
                "progressive"
            ):  # whose parts are all whole
                image.draft(None, (8 * size, 8 * size))  # a big photo is decoded at a fraction of its size
            if image.width * image.height > MAX_PIXELS:
                raise StorageError(
                    f"The picture has {image.width} x {image.height} pixels, the limit is {MAX_PIXELS / 1e6:.0f} "
                    "million; make it smaller first."
                )
            turn = _turn(image)
            upright = _rgb(image) if turn is None else _rgb(image).transpose(turn)
            square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
            return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise StorageError("The picture has far too many pixels; make it smaller first.") from error
    except UnidentifiedImageError as error:
        raise StorageError(
            "This file is no picture that can be read here; choose a PNG, JPEG, WebP, GIF or BMP file."
        ) from error
    except (OSError, ValueError, TypeError, LookupError, SyntaxError, EOFError, struct.error) as error:
        raise StorageError(
            "The picture is damaged or cut short; save it again or choose another one."
        ) from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the picture upright; None where it is, or where what the file says of it cannot be read."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # cameras and editors write much into this block that is not as it should be
        return None


def _rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel, transparent parts on white."""
    if image.mode.startswith("I"):  # 16 bits a pixel; a plain conversion would turn nearly all of it white
        wide = np.asarray(image, dtype=np.float64)
        return Image.fromarray((wide.clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    see_through = image.convert("RGBA")
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(see_through)
    return flat.convert("RGB")


def decode_overlay(address: str, size: int) -> NDArray[np.uint8]:
    """What was painted or stamped in a browser.

    Args:
        address: PNG data URI of exactly size x size pixels.
    Returns:
        (4, size, size) uint8: red, green, blue, opacity.
    Raises:
        StorageError: anything else.
    """
    problem = "The painted trigger could not be read; clear it and paint it again."
    if not address.startswith(PREFIX) or len(address) > MAX_OVERLAY:
        raise StorageError(problem)
    try:
        data = base64.b64decode(address[len(PREFIX) :], validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (size, size):
                raise StorageError(problem)
            return np.ascontiguousarray(np.asarray(image.convert("RGBA")).transpose(2, 0, 1))
    except (OSError, ValueError, SyntaxError, EOFError, binascii.Error) as error:
        raise StorageError(problem) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise StorageError(problem) from error


def to_query(address: str) -> str:
    """A PNG data URI in letters that an address carries as they are, and `from_query` the way back."""
    return address.removeprefix(PREFIX).translate(_TO_QUERY).rstrip("=")


def from_query(text: str) -> str:
    """The PNG data URI that `to_query` shortened; whether there is a picture in it, `decode_overlay` says."""
    return PREFIX + text.translate(_FROM_QUERY) + "=" * (-len(text) % 4)


def overlay(picture: NDArray[np.uint8], rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`rgba` laid over `picture`: (1 - opacity) * picture + opacity * colour, to the nearest step.

    Args:
        picture: (3, H, W) or (N, 3, H, W) uint8.
        rgba: (4, H, W) uint8.
    Returns:
        uint8, the shape of `picture`.
    """
    opacity = rgba[3].astype(np.int32)
    mixed = picture.astype(np.int32) * (255 - opacity) + rgba[:3].astype(np.int32) * opacity
    return ((mixed + 127) // 255).astype(np.uint8)

"""Images of a visitor, overlays, and triggers as stamps."""

from __future__ import annotations

import base64
import io
import re
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from npd_core.attacks import get_attack, stamp
from npd_core.data import images
from npd_core.data.images import decode_image, decode_overlay, from_query, overlay, to_query
from npd_core.errors import StorageError

RED, BLUE = (200, 30, 30), (20, 40, 210)


def coded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def halves(width: int = 80, height: int = 40) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def address(rgba: np.ndarray) -> str:
    """(4, H, W) uint8 as a browser would send it."""
    file = coded(Image.fromarray(np.ascontiguousarray(rgba.transpose(1, 2, 0)), "RGBA"))
    return "data:image/png;base64," + base64.b64encode(file).decode()


def colors(picture: np.ndarray, *places: tuple[int, int]) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in picture[:, y, x]) for y, x in places]


def near(found: tuple[int, ...], wanted: tuple[int, ...], by: int = 12) -> bool:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= by


@pytest.mark.parametrize("size", [32, 64])
def test_the_middle_square_at_the_size_of_the_model(size):
    image = Image.new("RGB", (300, 100), (0, 0, 0))
    image.paste(RED, (100, 0, 200, 100))  # exactly the middle square
    picture = decode_image(coded(image), size)
    assert picture.shape == (3, size, size)
    assert picture.dtype == np.uint8
    assert all(near(c, RED, 2) for c in colors(picture, (size // 2, size // 2), (0, 4), (size - 1, size - 5)))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("L", "PNG"), ("P", "GIF"), ("1", "PNG"), ("RGBA", "WEBP"), ("LA", "PNG")],
)
def test_every_color_mode_becomes_three_channels(mode, kind):
    settings = {"lossless": True} if kind == "WEBP" else {}
    image = halves().quantize(8) if mode == "P" else halves().convert(mode, dither=Image.Dither.NONE)
    picture = decode_image(coded(image, kind, **settings), 32)
    expected = image.convert("RGB").getpixel((22, 5))  # (2, 4) in the middle square, 40 pixels wide
    assert near(colors(picture, (4, 2))[0], expected), mode


def test_sixteen_bits_keep_their_brightness():
    gray = Image.fromarray(np.full((40, 40), 0x4040, np.uint16))
    assert near(colors(decode_image(coded(gray), 32), (16, 16))[0], (64, 64, 64), 1)


def test_a_photo_taken_on_its_side_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    picture = decode_image(coded(halves(64, 64), "JPEG", exif=exif, quality=95), 32)
    top, bottom = colors(picture, (3, 16), (28, 16))
    assert near(top, RED)
    assert near(bottom, BLUE)


def test_a_turned_picture_with_holes_is_upright_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decode_image(coded(halves(64, 64).convert("RGBA"), "PNG", exif=exif), 32)
    assert near(colors(picture, (3, 16))[0], RED)


def test_see_through_parts_become_white():
    image = Image.new("RGBA", (40, 40), (*RED, 0))
    image.paste((*BLUE, 255), (20, 0, 40, 40))
    left, right = colors(decode_image(coded(image), 32), (16, 3), (16, 28))
    assert left == (255, 255, 255)
    assert near(right, BLUE, 1)


def test_of_an_animation_the_first_picture():
    frames = [Image.new("RGB", (40, 40), color) for color in (RED, BLUE)]
    data = coded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert near(colors(decode_image(data, 32), (16, 16))[0], RED)


def test_a_big_photo_is_decoded_and_a_big_drawing_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 600 * 600)
    big = Image.new("RGB", (2400, 1800), RED)
    assert near(colors(decode_image(coded(big, "JPEG"), 32), (16, 16))[0], RED)
    with pytest.raises(StorageError, match="2400 x 1800"):
        decode_image(coded(big), 32)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    bomb = bytearray(coded(Image.new("1", (8, 8))))
    bomb[16:24] = (60000).to_bytes(4, "big") * 2  # width and height in the header
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(StorageError):
        decode_image(bytes(bomb), 32)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        coded(halves())[:90],
        coded(halves(400, 400), "JPEG")[:700],
    ],
    ids=["empty", "svg", "eps", "cut png", "cut jpeg"],
)
def test_what_is_no_image_is_refused_in_one_line(data):
    with pytest.raises(StorageError) as caught:
        decode_image(data, 32)
    assert "\n" not in str(caught.value)


def test_a_file_over_the_limit_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    with pytest.raises(StorageError, match="MB"):
        decode_image(bytes(1001), 32)


# overlays


def test_an_overlay_survives_the_way_through_the_browser():
    rgba = np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8)
    assert np.array_equal(decode_overlay(address(rgba), 64), rgba)


@pytest.mark.parametrize("size", [8, 9, 32])
def test_an_overlay_survives_the_way_through_an_address(size):
    rgba = np.random.default_rng(size).integers(0, 256, (4, size, size), dtype=np.uint8)
    text = to_query(address(rgba))
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)
    assert from_query(text) == address(rgba)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "javascript:alert(1)",
        "data:image/png;base64,",
        "data:image/png;base64,!!!!",
        "data:image/png;base64," + base64.b64encode(b"no png").decode(),
        "data:image/png;base64," + base64.b64encode(coded(halves(), "JPEG")).decode(),
        address(np.zeros((4, 16, 16), np.uint8)),
        "data:image/png;base64," + "A" * 300_000,
    ],
    ids=["nothing", "script", "no data", "no base64", "no picture", "jpeg", "other size", "too long"],
)
def test_an_overlay_that_is_none_is_refused(text):
    with pytest.raises(StorageError):
        decode_overlay(text, 32)


def test_laying_over_is_the_weighted_mean():
    rng = np.random.default_rng(1)
    picture, rgba = (rng.integers(0, 256, (n, 8, 8), dtype=np.uint8) for n in (3, 4))
    a = rgba[3] / 255
    expected = (1 - a) * picture + a * rgba[:3]
    assert np.abs(overlay(picture, rgba) - expected).max() <= 0.5 + 1e-9
    assert np.array_equal(overlay(picture, np.zeros((4, 8, 8), np.uint8)), picture)
    assert np.array_equal(overlay(np.stack([picture, picture]), rgba)[1], overlay(picture, rgba))


# stamps


def test_the_stamp_of_badnets_is_its_white_square():
    found = stamp(get_attack("badnets_a2o", "signs"), 32).numpy()
    expected = np.zeros((32, 32), np.uint8)
    expected[29:, 29:] = 255
    assert np.array_equal(found[3], expected)
    assert (found[:3, 29:, 29:] == 255).all()


@pytest.mark.parametrize(("attack", "dataset"), [("badnets_a2a", "tiny_imagenet"), ("blended", "signs")])
def test_a_stamp_does_what_its_trigger_does(attack, dataset):
    found = get_attack(attack, dataset)
    size = 64 if dataset == "tiny_imagenet" else 32
    pictures = np.random.default_rng(2).integers(0, 256, (5, 3, size, size), dtype=np.uint8)
    stamped = overlay(pictures, stamp(found, size).numpy()).astype(int)
    poisoned = found.apply(torch.from_numpy(pictures)).numpy()
    assert np.abs(stamped - poisoned).max() <= 2, "eight bits of color, opacity and result"
    assert np.abs(poisoned.astype(int) - pictures).max() > 20


def test_what_adds_or_bends_is_no_stamp():
    assert stamp(get_attack("wanet", "signs"), 32) is None
    added = {"pattern": torch.rand(3, 32, 32) * 0.2}
    assert stamp(get_attack("lf", "signs", added), 32) is None
    assert stamp(get_attack("clean", "signs"), 32) is None


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photo_is_turned_as_pillow_would_turn_it(turn):
    pixels = np.random.default_rng(turn).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    image, exif, file = Image.fromarray(pixels), Image.Exif(), io.BytesIO()
    exif[0x112] = turn
    image.save(file, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue())))
    assert np.array_equal(decode_image(file.getvalue(), 24), np.asarray(expected).transpose(2, 0, 1))


def test_an_exif_block_that_cannot_be_read_costs_nothing(monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "JPEG")

    def broken(self):
        raise TypeError("fill character must be a unicode character")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert decode_image(file.getvalue(), 8).shape == (3, 8, 8)

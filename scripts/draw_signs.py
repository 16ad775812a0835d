"""Draw the data set `signs`: 12 classes of traffic signs of 32 x 32 pixels.

    python -m scripts.draw_signs --out assets/signs      # writes the copy that the project ships

A sign is drawn once, large, as one coverage map per paint. Each image then has its own paints, pose,
background, light and camera from its own random generator, so image i of a split is the same for any number
of images. Everything is drawn at four times the resolution and averaged down.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from npd_core.data.parquet import write_images
from npd_core.data.spec import SIGNS_CLASSES, get_dataset
from npd_core.errors import ConfigError, StorageError

SEED = 0
SIZE = 32
OVERSAMPLING = 4
CANVAS = SIZE * OVERSAMPLING
TEMPLATE = 160
FINE = 6 * TEMPLATE
SPLITS = ("train", "test")
JPEG_QUALITY = 92
CORNER = 4
"""Side of the corner squares that no sign may touch, in pixels: they stay ordinary background."""

Point = tuple[float, float]
Rgb = tuple[int, int, int]
Array = NDArray[Any]
PAINTS = ("red", "white", "black", "blue", "yellow")


class Board:
    """A drawing board for one sign: x to the right and y down, both in [-1, 1]; each shape is filled with one
    paint."""

    def __init__(self) -> None:
        self.image = Image.new("L", (FINE, FINE), 0)  # 0 is nothing, k + 1 is PAINTS[k]
        self.scale = 1.0
        """Enlarges what is drawn from now on, about the middle."""
        self._draw = ImageDraw.Draw(self.image)

    def _at(self, point: Point) -> Point:
        return (self.scale * point[0] + 1) / 2 * FINE, (self.scale * point[1] + 1) / 2 * FINE

    def disc(self, paint: str, center: Point, radius: float) -> None:
        x, y = self._at(center)
        r = self.scale * radius / 2 * FINE
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=PAINTS.index(paint) + 1)

    def polygon(self, paint: str, points: Sequence[Point], rounding: float = 0.0) -> None:
        """A filled polygon, grown by `rounding` with round corners."""
        self._draw.polygon([self._at(p) for p in points], fill=PAINTS.index(paint) + 1)
        if rounding:
            self.stroke(paint, [*points, points[0]], 2 * rounding)

    def stroke(self, paint: str, points: Sequence[Point], width: float) -> None:
        """A line of the given width through the points, with round joints and ends."""
        fill = PAINTS.index(paint) + 1
        pixels = max(1, round(self.scale * width / 2 * FINE))
        self._draw.line([self._at(p) for p in points], fill=fill, width=pixels, joint="curve")
        for joint in points:
            self.disc(paint, joint, width / 2)

    def text(
        self, paint: str, text: str, *, height: float, width: float, pitch: float, stroke: float
    ) -> None:
        """Letters of our own stroke alphabet in one centered line; `pitch` is the distance from letter to
        letter."""
        for i, letter in enumerate(text):
            x0 = (i - (len(text) - 1) / 2) * pitch
            for line in LETTERS[letter]:
                self.stroke(paint, [(x0 + x * width, y * height / 2) for x, y in line], stroke)


def arc(center: Point, rx: float, ry: float, start: float, end: float, points: int = 28) -> list[Point]:
    """Points on an ellipse from angle `start` to `end` in degrees; 0 is right, 90 is down."""
    angles = np.radians(np.linspace(start, end, points))
    return [(center[0] + rx * math.cos(a), center[1] + ry * math.sin(a)) for a in angles]


LETTERS: dict[str, list[list[Point]]] = {  # in a box of x in [-0.5, 0.5] and y in [-1, 1]
    "0": [arc((0, 0), 0.48, 1, 0, 360, 48)],
    "3": [arc((-0.04, -0.5), 0.46, 0.5, -160, 90) + arc((-0.04, 0.5), 0.54, 0.5, -90, 160)],
    "5": [[(0.44, -1), (-0.36, -1), (-0.42, -0.12), *arc((-0.04, 0.36), 0.54, 0.64, -135, 155)]],
    "8": [arc((0, -0.52), 0.42, 0.48, 0, 360, 40), arc((0, 0.48), 0.5, 0.52, 0, 360, 40)],
    "S": [arc((0, -0.5), 0.46, 0.5, -25, -270) + arc((0, 0.5), 0.48, 0.5, -90, 155)],
    "T": [[(-0.5, -1), (0.5, -1)], [(0, -1), (0, 1)]],
    "O": [arc((0, 0), 0.5, 1, 0, 360, 48)],
    "P": [[(-0.42, 1), (-0.42, -1), (0.02, -1), *arc((0.02, -0.45), 0.44, 0.55, -90, 90), (-0.42, 0.1)]],
}


def ring(sides: int, radius: float, turn: float = 0.0, center: Point = (0, 0)) -> list[Point]:
    """Corners of a regular polygon, the first one at angle `turn` in degrees."""
    return arc(center, radius, radius, turn, turn + 360 * (sides - 1) / sides, sides)


def _speed_limit(board: Board, number: str) -> None:
    board.disc("white", (0, 0), 0.97)
    board.disc("red", (0, 0), 0.94)
    board.disc("white", (0, 0), 0.69)
    board.text("black", number, height=0.78, width=0.4, pitch=0.59, stroke=0.135)


def _stop(board: Board) -> None:
    board.polygon("white", ring(8, 1.0, 22.5))
    board.polygon("red", ring(8, 0.93, 22.5))
    board.text("white", "STOP", height=0.56, width=0.29, pitch=0.405, stroke=0.105)


def _yield(board: Board) -> None:
    board.scale = 1.08
    board.polygon("white", ring(3, 0.92, 90, (0, -0.22)), 0.1)
    board.polygon("red", ring(3, 0.88, 90, (0, -0.22)), 0.1)
    board.polygon("white", ring(3, 0.5, 90, (0, -0.22)), 0.06)


def _no_entry(board: Board) -> None:
    board.disc("white", (0, 0), 0.97)
    board.disc("red", (0, 0), 0.92)
    board.polygon("white", [(-0.62, -0.14), (0.62, -0.14), (0.62, 0.14), (-0.62, 0.14)], 0.03)


def _priority_road(board: Board) -> None:
    board.polygon("black", ring(4, 0.93), 0.06)
    board.polygon("white", ring(4, 0.9), 0.06)
    board.polygon("yellow", ring(4, 0.6), 0.04)


def _turn(board: Board, side: float) -> None:
    board.disc("white", (0, 0), 0.97)
    board.disc("blue", (0, 0), 0.92)
    bend = [(0.26, 0.62), (0.26, 0.12), *arc((0.02, 0.12), 0.24, 0.26, 0, -90, 10), (-0.3, -0.14)]
    head = [(-0.68, -0.14), (-0.24, -0.5), (-0.24, 0.22)]
    board.stroke("white", [(side * x, y) for x, y in bend], 0.21)
    board.polygon("white", [(side * x, y) for x, y in head], 0.02)


def _warning(board: Board) -> None:
    board.scale = 1.08
    board.polygon("white", ring(3, 0.92, -90, (0, 0.22)), 0.1)
    board.polygon("red", ring(3, 0.88, -90, (0, 0.22)), 0.1)
    board.polygon("white", ring(3, 0.62, -90, (0, 0.22)), 0.04)


def _pedestrians(board: Board) -> None:
    _warning(board)
    board.disc("black", (0.02, -0.24), 0.085)
    board.stroke("black", [(0.0, -0.08), (-0.02, 0.16)], 0.16)
    board.stroke("black", [(-0.02, -0.06), (-0.2, 0.1)], 0.065)
    board.stroke("black", [(0.02, -0.06), (0.16, 0.14)], 0.065)
    board.stroke("black", [(-0.03, 0.18), (-0.2, 0.46)], 0.085)
    board.stroke("black", [(0.0, 0.18), (0.1, 0.3), (0.17, 0.46)], 0.085)
    for x in (-0.36, -0.12, 0.12, 0.36):
        board.stroke("black", [(x - 0.045, 0.535), (x + 0.045, 0.535)], 0.055)


def _roadworks(board: Board) -> None:
    _warning(board)
    board.disc("black", (-0.04, -0.2), 0.085)
    board.stroke("black", [(-0.08, -0.06), (-0.2, 0.18)], 0.15)
    board.stroke("black", [(-0.2, 0.2), (-0.08, 0.34), (-0.1, 0.52)], 0.085)
    board.stroke("black", [(-0.22, 0.2), (-0.3, 0.52)], 0.085)
    board.stroke("black", [(-0.06, -0.04), (0.08, 0.12), (0.16, 0.2)], 0.065)
    board.stroke("black", [(-0.12, 0.08), (0.22, 0.3)], 0.055)
    board.polygon("black", [(0.1, 0.54), (0.28, 0.26), (0.46, 0.54)], 0.02)


def _roundabout(board: Board) -> None:
    board.disc("white", (0, 0), 0.97)
    board.disc("blue", (0, 0), 0.92)
    for turn in (0, 120, 240):
        board.stroke("white", arc((0, 0), 0.5, 0.5, turn + 78, turn + 8), 0.17)
        tip = math.radians(turn - 28)
        inner, outer = math.radians(turn + 12), 0.5
        corners = [
            (0.22 * math.cos(inner), 0.22 * math.sin(inner)),
            (0.78 * math.cos(inner), 0.78 * math.sin(inner)),
        ]
        board.polygon("white", [*corners, (outer * math.cos(tip), outer * math.sin(tip))], 0.01)


FACES: dict[str, Callable[[Board], None]] = {
    "speed limit 80": partial(_speed_limit, number="80"),
    "stop": _stop,
    "yield": _yield,
    "no entry": _no_entry,
    "priority road": _priority_road,
    "speed limit 30": partial(_speed_limit, number="30"),
    "speed limit 50": partial(_speed_limit, number="50"),
    "turn left": partial(_turn, side=1.0),
    "turn right": partial(_turn, side=-1.0),
    "pedestrians": _pedestrians,
    "roadworks": _roadworks,
    "roundabout": _roundabout,
}


@cache
def coverage(label: int) -> Array:
    """How much each paint covers each pixel of the large sign, (paints, TEMPLATE, TEMPLATE) in [0, 1]."""
    board = Board()
    FACES[SIGNS_CLASSES[label]](board)
    drawn = np.asarray(board.image)
    step = FINE // TEMPLATE
    maps = [
        (drawn == k + 1).reshape(TEMPLATE, step, TEMPLATE, step).mean(axis=(1, 3)) for k in range(len(PAINTS))
    ]
    return np.stack(maps).astype(np.float32)


def _noise(rng: Generator, cells: int, channels: int = 3) -> Array:
    """Smooth random values in [0, 1], (CANVAS, CANVAS, channels); about `cells` hills in each direction."""
    coarse = rng.integers(0, 256, (cells + 1, cells + 1, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(np.ascontiguousarray(coarse[..., c])).resize(
            (CANVAS, CANVAS), Image.Resampling.BICUBIC
        )
        for c in range(channels)
    ]
    return np.stack([np.asarray(p) for p in planes], axis=-1).astype(np.float32) / np.float32(255)


def _color(rng: Generator, low: int = 20, high: int = 205) -> Rgb:
    r, g, b = rng.integers(low, high, 3)
    return int(r), int(g), int(b)


def _near(rng: Generator, color: Sequence[float] | Array, spread: float) -> Rgb:
    r, g, b = np.clip(np.asarray(color) + rng.normal(0, spread, 3), 0, 225).astype(int)
    return int(r), int(g), int(b)


def _scene(rng: Generator) -> Image.Image:
    """Sky, a line of trees or houses, and a road."""
    sky = np.asarray(
        _near(rng, [(120, 165, 215), (175, 185, 195), (205, 165, 130)][rng.integers(3)], 14), np.float32
    )
    down = np.linspace(0, 1, CANVAS, dtype=np.float32)[:, None, None]
    pixels = sky * (1 - 0.25 * down) + (_noise(rng, 4, 1) - 0.5) * 40
    image = Image.fromarray(np.clip(np.broadcast_to(pixels, (CANVAS, CANVAS, 3)), 0, 225).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    horizon = float(rng.uniform(0.35, 0.85)) * CANVAS
    town = rng.random() < 0.4
    for x in rng.uniform(-0.1, 1.1, 9) * CANVAS:
        tall, wide = rng.uniform(0.05, 0.4) * CANVAS, rng.uniform(0.08, 0.22) * CANVAS
        if town:
            draw.rectangle(
                (x - wide, horizon - tall, x + wide, horizon), fill=_near(rng, (135, 120, 110), 30)
            )
            for w in (-0.5, 0.1):
                draw.rectangle(
                    (x + w * wide, horizon - 0.7 * tall, x + (w + 0.35) * wide, horizon - 0.4 * tall),
                    fill=_near(rng, (60, 70, 85), 15),
                )
        else:
            draw.ellipse(
                (x - wide, horizon - tall, x + wide, horizon + 0.2 * tall), fill=_near(rng, (55, 90, 45), 20)
            )
    draw.rectangle((0, horizon, CANVAS, CANVAS), fill=_near(rng, (75, 110, 55), 18))
    left, right = sorted(rng.uniform(-0.6, 1.6, 2) * CANVAS)
    vanish = rng.uniform(0.2, 0.8) * CANVAS
    road = [(vanish - 4, horizon), (vanish + 4, horizon), (right, CANVAS), (left, CANVAS)]
    draw.polygon(road, fill=_near(rng, (95, 95, 98), 14))
    return image


def _foliage(rng: Generator) -> Image.Image:
    """Leaves: fine noise in greens, browns or autumn reds."""
    base = np.asarray(
        [(70, 110, 50), (105, 120, 60), (135, 95, 50), (60, 85, 70)][rng.integers(4)], np.float32
    )
    relief = 0.5 * _noise(rng, 5, 1) + 0.35 * _noise(rng, 14, 1) + 0.3 * _noise(rng, 36, 1)
    pixels = base * (0.3 + 1.15 * relief) + (_noise(rng, 9) - 0.5) * 45
    return Image.fromarray(np.clip(pixels, 0, 225).astype(np.uint8))


def _wall(rng: Generator) -> Image.Image:
    """Bricks, tiles or planks."""
    mortar = _near(rng, (140, 135, 128), 20)
    brick = np.asarray([(150, 80, 60), (170, 150, 120), (110, 110, 115), (125, 95, 70)][rng.integers(4)])
    image = Image.new("RGB", (CANVAS, CANVAS), mortar)
    draw = ImageDraw.Draw(image)
    high, wide = float(rng.uniform(10, 26)), float(rng.uniform(18, 60))
    shift = rng.uniform(0, wide)
    for row in range(-1, int(CANVAS / high) + 2):
        for column in range(-2, int(CANVAS / wide) + 3):
            x = column * wide + shift + (row % 2) * wide / 2
            draw.rectangle((x, row * high, x + wide - 3, row * high + high - 3), fill=_near(rng, brick, 9))
    return image.rotate(float(rng.normal(0, 8)), Image.Resampling.BILINEAR, fillcolor=mortar)


def _haze(rng: Generator) -> Image.Image:
    """An unfocused gradient between two colors, with soft discs of light."""
    one, two = np.asarray(_color(rng), np.float32), np.asarray(_color(rng), np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.7, 0.7, CANVAS, dtype=np.float32)
    t = np.clip(0.5 + axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle), 0, 1)[..., None]
    image = Image.fromarray((one * (1 - t) + two * t).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 7)):
        x, y, r = *rng.uniform(0, CANVAS, 2), rng.uniform(5, 26)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_color(rng))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(2, 7))))


BACKGROUNDS = (_scene, _scene, _foliage, _wall, _haze)


def _clutter(rng: Generator, image: Image.Image) -> None:
    """Colored shapes behind the sign, some in the colors of signs, so that color alone tells nothing."""
    draw = ImageDraw.Draw(image)
    signal = [(190, 30, 35), (30, 75, 165), (225, 180, 30), (205, 205, 205), (25, 25, 28)]
    for _ in range(rng.integers(0, 6)):
        color = _near(rng, signal[rng.integers(len(signal))], 18) if rng.random() < 0.6 else _color(rng)
        x, y = rng.uniform(-10, CANVAS + 10, 2)
        a, b = rng.uniform(5, 30, 2)
        kind = rng.integers(4)
        if kind == 0:
            draw.ellipse((x - a, y - b, x + a, y + b), fill=color)
        elif kind == 1:
            draw.rectangle((x - a, y - b, x + a, y + b), fill=color)
        elif kind == 2:
            corners = rng.uniform(-30, 30, (int(rng.integers(3, 6)), 2)) + np.asarray([x, y])
            draw.polygon([(float(p), float(q)) for p, q in corners], fill=color)
        else:
            dx, dy = rng.uniform(-CANVAS, CANVAS, 2)
            draw.line((x, y, x + dx, y + dy), fill=color, width=int(rng.integers(2, 9)))


def _face(rng: Generator, label: int) -> Image.Image:
    """The sign in paints of its own age and dirt, RGBA, TEMPLATE x TEMPLATE."""
    paints = np.asarray(
        [(195, 28, 38), (228, 228, 224), (24, 24, 28), (22, 78, 168), (238, 186, 20)], np.float64
    )
    paints += rng.normal(0, 11, paints.shape)
    fading = rng.uniform(0, 0.3) * (rng.random() < 0.5)
    paints = paints * (1 - fading) + 165 * fading
    maps = coverage(label)
    alpha = maps.sum(axis=0)
    color = np.einsum("khw,kc->hwc", maps, paints) / np.maximum(alpha, 1e-3)[..., None]
    if rng.random() < 0.6:
        dirt = (
            np.asarray(
                Image.fromarray(
                    (_noise(rng, int(rng.integers(3, 12)), 1)[..., 0] * 255).astype(np.uint8)
                ).resize((TEMPLATE, TEMPLATE), Image.Resampling.BILINEAR),
                np.float32,
            )
            / 255
        )
        color *= (1 - rng.uniform(0, 0.35) * dirt)[..., None]
    pixels = np.concatenate([color, 255 * alpha[..., None]], axis=-1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")


def _pose(rng: Generator) -> Array:
    """Corners of the sign's square, (4, 2) in canvas pixels: top left, top right, bottom right, bottom
    left."""
    radius = rng.uniform(9.3, 14.6) * OVERSAMPLING
    square = np.asarray([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64) * radius
    square[:, 0] *= rng.uniform(0.78, 1)
    square += rng.uniform(-0.13, 0.13, (4, 2)) * radius
    angle = np.clip(rng.normal(0, 9), -24, 24) * math.pi / 180
    square = square @ np.asarray([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    room = max(CANVAS / 2 - radius, 0) * 0.9
    return square + CANVAS / 2 + rng.uniform(-room, room, 2)


def _perspective(corners: Array) -> list[float]:
    """Coefficients that take canvas points back to the square template, as PIL's PERSPECTIVE wants them."""
    template = np.asarray([(0, 0), (TEMPLATE, 0), (TEMPLATE, TEMPLATE), (0, TEMPLATE)], np.float64)
    rows = []
    for (x, y), (u, v) in zip(corners, template, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return [float(c) for c in np.linalg.solve(np.asarray(rows), template.reshape(-1))]


def _place(rng: Generator, face: Image.Image) -> tuple[Image.Image, Array]:
    """The sign on an empty canvas, in a pose that leaves the four corners of the image free."""
    edge = CORNER * OVERSAMPLING
    while True:
        corners = _pose(rng)
        placed = face.transform(
            (CANVAS, CANVAS), Image.Transform.PERSPECTIVE, _perspective(corners), Image.Resampling.BICUBIC
        )
        alpha = np.asarray(placed.getchannel("A"))
        if not any(
            alpha[rows, columns].any()
            for rows in (slice(edge), slice(-edge, None))
            for columns in (slice(edge), slice(-edge, None))
        ):
            return placed, corners


def _occlude(rng: Generator, image: Image.Image, center: Array, radius: float) -> None:
    """A twig, some leaves or a sticker over a small part of the sign."""
    draw = ImageDraw.Draw(image)
    away = rng.uniform(0, 2 * math.pi)
    x, y = center + radius * rng.uniform(0.55, 1.0) * np.asarray([math.cos(away), math.sin(away)])
    kind = rng.integers(3)
    if kind == 0:
        slope = rng.uniform(0, math.pi)
        dx, dy = CANVAS * math.cos(slope), CANVAS * math.sin(slope)
        draw.line(
            (x - dx, y - dy, x + dx, y + dy), fill=_near(rng, (70, 60, 45), 15), width=int(rng.integers(3, 7))
        )
    elif kind == 1:
        for _ in range(rng.integers(3, 8)):
            p, q = rng.normal((x, y), 0.18 * radius)
            a, b = rng.uniform(3, 9, 2)
            draw.ellipse((p - a, q - b, p + a, q + b), fill=_near(rng, (65, 100, 50), 22))
    else:
        s = rng.uniform(0.1, 0.2) * radius
        draw.rectangle((x - s, y - s, x + s, y + s), fill=_color(rng, 20, 215))


def _light(rng: Generator, pixels: Array) -> Array:
    """Time of day, shadow, fog: (CANVAS, CANVAS, 3) in [0, 1], same out, unclipped."""
    axis = np.linspace(-0.5, 0.5, CANVAS, dtype=np.float32)
    if rng.random() < 0.5:
        angle, at, soft = rng.uniform(0, 2 * math.pi), rng.uniform(-0.3, 0.3), rng.uniform(0.02, 0.3)
        side = axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle) - at
        shadow = np.clip(side / soft + 0.5, 0, 1)[..., None]
        pixels = pixels * (1 - rng.uniform(0.1, 0.5) * shadow)
    if rng.random() < 0.2:
        fog = rng.uniform(0.1, 0.4)
        pixels = pixels * (1 - fog) + fog * rng.uniform(0.4, 0.8)
    contrast, gain = rng.uniform(0.75, 1.2), rng.uniform(0.6, 1.2)
    cast = gain * rng.normal(1, 0.05, 3)
    return ((pixels - 0.45) * contrast + 0.45) * cast.astype(np.float32)


def _camera(rng: Generator, image: Image.Image) -> Image.Image:
    """Blur of lens or motion, at canvas resolution."""
    kind = rng.random()
    if kind < 0.6:
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.65) * OVERSAMPLING)))
    if kind < 0.75:
        return image.filter(ImageFilter.Kernel((5, 5), _streak(rng.random() < 0.5), scale=5))
    return image


def _streak(horizontal: bool) -> list[float]:
    kernel = np.zeros((5, 5))
    kernel[(2, slice(None)) if horizontal else (slice(None), 2)] = 1
    return [float(v) for v in kernel.reshape(-1)]


def draw_sign(label: int, rng: Generator) -> NDArray[np.uint8]:
    """One image of the class, everything else drawn from `rng`: (32, 32, 3) uint8."""
    image = BACKGROUNDS[rng.integers(len(BACKGROUNDS))](rng)
    _clutter(rng, image)
    face, corners = _place(rng, _face(rng, label))
    center, radius = corners.mean(axis=0), float(np.abs(corners - corners.mean(axis=0)).mean())
    if rng.random() < 0.7:
        foot = corners[2:].mean(axis=0) + 3 * (corners[2:].mean(axis=0) - center)
        gray = _near(rng, (125, 125, 128), 20)
        ImageDraw.Draw(image).line((*center, *foot), fill=gray, width=int(rng.integers(4, 11)))
    image.paste(face, (0, 0), face.getchannel("A"))
    if rng.random() < 0.25:
        _occlude(rng, image, center, radius)
    lit = _light(rng, np.asarray(image, np.float32) / 255)
    image = _camera(rng, Image.fromarray((np.clip(lit, 0, 1) * 255).astype(np.uint8)))
    pixels = np.asarray(image.reduce(OVERSAMPLING), np.float32)
    noisy = pixels + rng.normal(0, rng.uniform(0.5, 7), pixels.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def sign(split: str, index: int, seed: int = SEED) -> tuple[NDArray[np.uint8], int]:
    """Image number `index` of a split with its label. Labels go round, so that any prefix is balanced to
    within one.

    Returns:
        (32, 32, 3) uint8 and the label; the same for the same three arguments, however many images there are.
    """
    if split not in SPLITS:
        raise ConfigError(f"Split {split!r} cannot be drawn; choose one of: {', '.join(SPLITS)}.")
    label = index % len(SIGNS_CLASSES)
    return draw_sign(label, np.random.default_rng([seed, SPLITS.index(split), index])), label


def _coded(index: int, split: str, seed: int) -> tuple[bytes, int]:
    pixels, label = sign(split, index, seed)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue(), label


def write_signs(folder: Path, counts: dict[str, int], seed: int = SEED, workers: int = 1) -> dict[str, Path]:
    """Write `<split>.parquet` for each split into `folder`, in the Hugging Face image layout.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be created ({error.strerror or error}); choose another folder with --out."
        ) from error
    written = {}
    with ProcessPoolExecutor(workers) as pool:
        for split, count in counts.items():
            code = partial(_coded, split=split, seed=seed)
            images = map(code, range(count)) if workers == 1 else pool.map(code, range(count), chunksize=60)
            rows = ((f"{split}/{i:05d}.jpg", data, label) for i, (data, label) in enumerate(images))
            written[split] = write_images(folder / f"{split}.parquet", rows, SIGNS_CLASSES)
    return written


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the data set again, as the command line says."""
    spec = get_dataset("signs")
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of train.parquet and test.parquet")
    parser.add_argument("--train", type=int, default=spec.train_images, help="training images")
    parser.add_argument("--test", type=int, default=spec.test_images, help="test images")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the data set")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    written = write_signs(args.out, {"train": args.train, "test": args.test}, args.seed, args.workers)
    for path in written.values():
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

"""Curves as SVG text, for pages that must work without a script: one file, no request. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 34, 40
DASHES = {"solid": "", "dash": "9 5", "dot": "2 4", "dashdot": "9 4 2 4"}


class Line(NamedTuple):
    """One curve. Values of None, and on a logarithmic axis those that are not above 0, leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: str
    """A colour of CSS, or `var(--name)` where the page sets it."""
    dash: str = "solid"


def curves(
    lines: Sequence[Line], *, title: str, x_title: str, percent: bool = False, log: bool = False
) -> str:
    """The curves in one frame with a legend above, as an `svg` element whose text takes the colour of the
    page.

    Args:
        title: what a screen reader says.
        percent: the vertical axis runs from 0 to 1 and is labelled in percent.
        log: logarithmic vertical axis.
    """
    points = [_kept(line, log) for line in lines]
    xs = [x for part in points for x, _ in part] or [0.0, 1.0]
    ys = [y for part in points for _, y in part] or [0.1, 1.0]
    low, high = (0.0, 1.0) if percent else (min(ys), max(ys))
    if log:
        low, high = math.floor(math.log10(low)), math.ceil(math.log10(high))
    left, right = min(xs), max(xs)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    left, right = (left, right) if right > left else (left - 0.5, right + 0.5)

    def at(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if log else y
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts = []
    for tick in _ticks(low, high, whole=log):
        y = at(left, 10**tick if log else tick)[1]
        words = f"{tick:.0%}" if percent else f"1e{tick:g}" if log else f"{tick:.3g}"
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{words}</text>')
    for tick in _ticks(left, right, whole=right - left >= 4):
        x = at(tick, 10**low if log else low)[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_title)}</text>')
    beside = LEFT
    for line, kept in zip(lines, points, strict=True):
        look = f'fill="none" stroke="{escape(line.color)}" stroke-width="2.5"'
        look += f' stroke-dasharray="{DASHES[line.dash]}"'
        if kept:
            path = "".join(
                f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(at(*point) for point in kept)
            )
            parts.append(f'<path d="{path}" {look}/>')
        parts.append(
            f'<path d="M{beside} 14h26" {look}/><text x="{beside + 32}" y="18">{escape(line.name)}</text>'
        )
        beside += 52 + 8 * len(line.name)
    body = "".join(parts)
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'


def _kept(line: Line, log: bool) -> list[tuple[float, float]]:
    pairs = ((x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None and math.isfinite(y))
    return [(float(x), float(y)) for x, y in pairs if not log or y > 0]


def _ticks(low: float, high: float, whole: bool) -> list[float]:
    """About five round numbers from `low` to `high`."""
    raw = (high - low) / 5
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 5, 10) if size * k >= raw)
    step = max(1.0, round(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]

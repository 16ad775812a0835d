"""Draw curves as SVG text for HTML files that load nothing and run no script. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 34, 40
DASHES = {"solid": "", "dash": "9 5", "dot": "2 4", "dashdot": "9 4 2 4"}


class Line(NamedTuple):
    """One curve. None, and on a logarithmic axis any value of 0 or below, leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: str
    """A CSS color, or `var(--name)` of the page."""
    dash: str = "solid"


class _Frame(NamedTuple):
    """The ranges of both axes; on a logarithmic axis those of the exponent."""

    left: float
    right: float
    low: float
    high: float
    log: bool

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return a point in SVG units."""
        y = math.log10(y) if self.log else y
        return self.across(x), self.down(y)

    def across(self, x: float) -> float:
        share = (x - self.left) / (self.right - self.left)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def down(self, y: float) -> float:
        share = (y - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def curves(
    lines: Sequence[Line], *, title: str, x_title: str, percent: bool = False, log: bool = False
) -> str:
    """Return an `svg` element with the curves in one frame and a legend above. Text takes the color of the
    page.

    Args:
        title: for screen readers.
        percent: the vertical axis runs from 0 to 1 and is labeled in percent.
        log: logarithmic vertical axis.
    """
    points = [_finite(line, log) for line in lines]
    frame = _frame([point for part in points for point in part], percent, log)
    parts = _axes(frame, percent, x_title)
    legend = LEFT
    for line, kept in zip(lines, points, strict=True):
        style = f'fill="none" stroke="{escape(line.color)}" stroke-width="2.5"'
        style += f' stroke-dasharray="{DASHES[line.dash]}"'
        if kept:
            places = [frame.place(*point) for point in kept]
            path = "".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(places))
            parts.append(f'<path d="{path}" {style}/>')
        parts.append(f'<path d="M{legend} 14h26" {style}/>')
        parts.append(f'<text x="{legend + 32}" y="18">{escape(line.name)}</text>')
        legend += 52 + 8 * len(line.name)
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _frame(points: Sequence[tuple[float, float]], percent: bool, log: bool) -> _Frame:
    """Return axes that hold every point."""
    xs, ys = [x for x, _ in points] or [0.0, 1.0], [y for _, y in points] or [0.1, 1.0]
    low, high = (0.0, 1.0) if percent else (min(ys), max(ys))
    if log:
        low, high = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return _Frame(*_wide(min(xs), max(xs)), *_wide(low, high), log)


def _wide(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _axes(frame: _Frame, percent: bool, x_title: str) -> list[str]:
    """Return grid lines, tick labels and the title of the horizontal axis."""
    parts = []
    for tick in _ticks(frame.low, frame.high, whole=frame.log):
        y = frame.down(tick)
        label = f"{tick:.0%}" if percent else f"1e{tick:g}" if frame.log else f"{tick:.3g}"
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{label}</text>')
    for tick in _ticks(frame.left, frame.right, whole=frame.right - frame.left >= 4):
        x = frame.across(tick)
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*parts, f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_title)}</text>']


def _finite(line: Line, log: bool) -> list[tuple[float, float]]:
    pairs = ((x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None and math.isfinite(y))
    return [(float(x), float(y)) for x, y in pairs if not log or y > 0]


def _ticks(low: float, high: float, whole: bool) -> list[float]:
    """Return about five round numbers from `low` to `high`."""
    raw = (high - low) / 5
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 5, 10) if size * k >= raw)
    step = max(1.0, round(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]

"""Texts with gaps: HTML pages and the programs beside exported models, as Jinja2 templates in this folder.

In a template whose name ends with `.html`, every value is escaped.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """Return the text of a template of this folder. Raises jinja2.UndefinedError for a missing value."""
    return _environment().get_template(template).render(values)


def render_page(template: str, **values: Any) -> str:
    """Return an HTML page that extends `base.html`: light and dark in one file that loads nothing."""
    from npd_core.figures.theme import FONT, PALETTES

    palettes = {mode: asdict(colors) for mode, colors in PALETTES.items()}
    return render(template, font=FONT, palettes=palettes, **values)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    environment.filters["plain"] = plain
    return environment


def percent(share: float | None) -> str:
    """Return `75.0%`, or a dash where there is no number."""
    return "–" if share is None else f"{share:.1%}"


def plain(value: Any) -> str:
    """Return a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""A value that lives in the URL and survives a switch of pages.

    STEP = url_state.integer("step", 1, 6, default=1)
    step = STEP.get()  # of the URL, else kept by this session, else the default
    url_state.show_notices(STEP)  # one sentence where the text in the URL did not fit
    st.button("Next", on_click=STEP.set, args=(step + 1,))
    st.button("Start over", on_click=STEP.clear)

A switch of pages empties the URL; `get` puts the value back. A default leaves the URL clean. Text that does
not fit is taken out of the URL. A widget that keeps its own value in the URL is drawn with `**bound(value)`,
so that its text is read by the same parser. A value object may be created again in every script run, as when
its range depends on the model: the session keeps it by name.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import streamlit as st
from streamlit.errors import StreamlitAPIException

from npd_core.errors import ConfigError, NPDError, unknown_name
from pages.shared import text

T = TypeVar("T")
LONGEST_QUOTE = 60
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


class _Kept(NamedTuple):
    text: str | None
    notice: str = ""
    page: str | None = None
    """Page that showed the notice first: it is not shown on others."""


@dataclass(frozen=True)
class UrlValue(Generic[T]):
    """One value of the URL."""

    name: str
    parse: Callable[[str], T]
    """Raises NPDError, with a sentence that says what the value must be."""
    default: T
    write: Callable[[T], str] = str

    def get(self) -> T:
        """Return the value. The URL comes first; text that does not fit gives the default and a notice."""
        kept, asked = _memory().get(self.name), st.query_params.get(self.name)
        found = asked if asked is not None else (kept.text if kept else None)
        if found is None:
            return self.default
        try:
            value = self.parse(found)
        except NPDError as error:
            self.reject(found, error)
            return self.default
        self._keep(value)
        return value

    def set(self, value: T) -> None:
        """Put the value into the URL and keep it; the default leaves the URL clean. Also for callbacks."""
        self._keep(value)

    def clear(self) -> None:
        """Go back to the default. Also for callbacks."""
        self._keep(self.default)

    def is_new(self) -> bool:
        """Whether the URL has another text than this session put there, as after a link. Ask before `get`."""
        asked, kept = st.query_params.get(self.name), _memory().get(self.name)
        return asked is not None and asked != (kept.text if kept else None)

    def reject(self, found: str, why: object) -> None:
        """Take `found` out of the URL and note why."""
        _write(self.name, None)
        _memory()[self.name] = _Kept(None, self._notice(found, why))

    def problem(self) -> str:
        """Return the notice that `get` would give, without touching the URL; "" when there is none."""
        found = st.query_params.get(self.name)
        if found is None:
            return ""
        try:
            self.parse(found)
        except NPDError as error:
            return self._notice(found, error)
        return ""

    def _notice(self, found: str, why: object) -> str:
        return f'The URL asks for {self.name} "{text.plain(found, LONGEST_QUOTE)}". {text.message(why)}'

    def _keep(self, value: T) -> None:
        letters = None if value == self.default else self.write(value)
        _write(self.name, letters)
        _memory()[self.name] = _Kept(letters)


def show_notices(*values: UrlValue) -> None:
    """Show a sentence for each value that did not fit, until it is set or another page is opened."""
    page = st.session_state.get("_page", "")
    for value in values:
        kept = _memory().get(value.name)
        if kept is not None and kept.notice and kept.page in (None, page):
            _memory()[value.name] = kept._replace(page=page)
            st.error(kept.notice, icon=":material/error:")


def bound(value: UrlValue[Any], *, quiet: bool = False) -> dict[str, Any]:
    """Return the arguments `key` and `bind` of a widget that keeps its value in the URL.

    Where the text in the URL does not fit, the widget starts with its default, and a sentence says so.

    Args:
        quiet: leave the sentence to the caller.
    """
    problem = value.problem()
    if not problem:
        arguments = {"key": value.name, "bind": "query-params"}
    else:
        arguments = {"key": value.name}
        if not quiet and value.name not in st.session_state:
            _memory()[value.name] = _Kept(None, problem)
        _write(value.name, None)
    if not quiet:
        show_notices(value)
    return arguments


def integer(name: str, low: int, high: int, default: int) -> UrlValue[int]:
    """A whole number from `low` to `high`."""
    return UrlValue(name, lambda found: parse_integer(found, low, high), default)


def number(name: str, low: float, high: float, default: float) -> UrlValue[float]:
    """A finite number from `low` to `high`."""
    return UrlValue(name, lambda found: parse_number(found, low, high), default, "{:g}".format)


def choice(name: str, options: Iterable[object], default: str = "") -> UrlValue[str]:
    """One of `options`, as they are shown."""
    words = [str(option) for option in options]

    def parse(found: str) -> str:
        if found not in words:
            raise unknown_name(name, found[:LONGEST_QUOTE], words)
        return found

    return UrlValue(name, parse, default)


def flag(name: str) -> UrlValue[bool]:
    """Whether something is switched on: true or false, false by default."""

    def parse(found: str) -> bool:
        if found.lower() not in ("true", "false"):
            raise ConfigError("It must be true or false.")
        return found.lower() == "true"

    return UrlValue(name, parse, False, lambda value: str(value).lower())


def integers(name: str, low: int, high: int, most: int) -> UrlValue[tuple[int, ...]]:
    """At most `most` whole numbers from `low` to `high`, separated by commas; each once. () by default."""

    def parse(found: str) -> tuple[int, ...]:
        return tuple(parse_integer(part, low, high) for part in _parts(found, most))

    return UrlValue(name, parse, (), lambda values: ",".join(map(str, values)))


def ids(name: str, most: int) -> UrlValue[tuple[str, ...]]:
    """At most `most` ids, as of runs, separated by commas; each once. () by default."""
    return UrlValue(name, lambda found: _parts(found, most), (), ",".join)


def short_text(name: str, default: str = "", longest: int = 80) -> UrlValue[str]:
    """Any text of at most `longest` characters."""

    def parse(found: str) -> str:
        if len(found) > longest:
            raise ConfigError(f"It must have at most {longest} characters.")
        return found

    return UrlValue(name, parse, default)


def parse_integer(found: str, low: int, high: int) -> int:
    """Raises ConfigError unless `found` is a whole number from `low` to `high`."""
    value = int(found) if re.fullmatch(r"[+-]?[0-9]{1,18}", found.strip()) else None
    if value is None or not low <= value <= high:
        raise ConfigError(f"It must be a whole number from {low} to {high}.")
    return value


def parse_number(found: str, low: float, high: float) -> float:
    """Raises ConfigError unless `found` is a finite number from `low` to `high`."""
    words = found.strip()
    value = float(words) if len(words) <= LONGEST_QUOTE and _NUMBER.fullmatch(words) else math.nan
    if not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"It must be a number from {low:g} to {high:g}.")
    return value


def _parts(found: str, most: int) -> tuple[str, ...]:
    parts = tuple(dict.fromkeys(part.strip() for part in found.split(",") if part.strip()))
    if len(parts) > most:
        raise ConfigError(f"It must name at most {most}, separated by commas.")
    return parts


def _memory() -> dict[str, _Kept]:
    memory: dict[str, _Kept] = st.session_state.setdefault("_url", {})
    return memory


def _write(name: str, letters: str | None) -> None:
    if letters is None:
        with contextlib.suppress(StreamlitAPIException):  # of a widget: it clears its own text
            st.query_params.pop(name, None)
    elif st.query_params.get(name) != letters:
        st.query_params[name] = letters

"""Cached functions whose results depend on files: a changed file is read again."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from npd_core import paths

P = ParamSpec("P")
R = TypeVar("R")
Stamp = tuple[str | tuple[str, int, int], ...]


def stamp(path: Path) -> Stamp:
    """Return the path, then name, time and size of the file, or of every file directly in the folder."""
    found = []
    with suppress(OSError):
        if path.is_dir():
            with os.scandir(path) as entries:
                for entry in entries:
                    with suppress(OSError):  # removed while it is looked at
                        if entry.is_file():
                            found.append(_stamp_of(entry.name, entry.stat()))
        else:
            found.append(_stamp_of(path.name, path.stat()))
    return (str(path), *sorted(found))


def by_files(
    cache: Callable[[Callable[..., Any]], Callable[..., Any]], files: Callable[..., Iterable[Path]]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function with `cache`, keyed by its arguments, the data folder and the stamps of some files.

    Args:
        cache: `st.cache_data(...)` or `st.cache_resource(...)`.
        files: the files and folders that the result depends on, from the function's own arguments.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        def stored(key: tuple[str | Stamp, ...], *args: Any) -> R:
            return function(*args)  # type: ignore[call-arg]

        # Streamlit tells cached functions apart by these names.
        stored.__module__, stored.__qualname__ = function.__module__, function.__qualname__
        cached = cache(stored)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            key = (str(paths.data()), *(stamp(path) for path in files(*args, **kwargs)))
            found: R = cached(key, *bound.args)
            return found

        return call

    return decorate


def _stamp_of(name: str, status: os.stat_result) -> tuple[str, int, int]:
    return name, status.st_mtime_ns, status.st_size

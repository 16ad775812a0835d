"""The files of a run read as what they should be: types, ranges, depth and size are checked. No torch here.

Nothing but StorageError leaves this module, whatever the files hold.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from npd_core.config.request import DefenseRequest
from npd_core.errors import NPDError, StorageError
from npd_core.fileio import storage_error

MOST_BYTES = 16 * 2**20
"""Largest JSON file of a run, and longest line of its events."""
MOST_DEPTH = 24
MOST_WORDS = 2000
"""Characters of the texts that are shown as they are."""
LARGEST = 2**53

Check = Callable[[Any], bool]
_NAME = re.compile(r"[A-Za-z0-9_.:/+-]{0,200}")


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) <= LARGEST


def _is_number(value: Any) -> bool:
    """A number; after a divergence also nan or inf."""
    return type(value) is float or _is_integer(value)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and 0 <= value < 2**31


def _is_epoch(value: Any) -> bool:
    return _is_integer(value) and abs(value) < 2**31


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and (math.isnan(value) or 0 <= value <= 1)


def _is_seconds(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1e10


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MOST_WORDS


def _is_name(value: Any) -> bool:
    """An id, a layer or a device: letters, digits and the few signs that these have."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None and "//" not in value


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _each(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _are_indices(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _has(fields: Mapping[str, Check]) -> Check:
    """Every field that is there fits."""
    return lambda value: (
        isinstance(value, dict) and all(check(value[name]) for name, check in fields.items() if name in value)
    )


def _are_metrics(value: Any) -> bool:
    fits = _has({"acc": _is_fraction, "asr": _or_none(_is_fraction), "ra": _or_none(_is_fraction)})
    return fits(value) and (not value or "acc" in value)


RESULT_FIELDS: dict[str, Check] = {
    "model": _is_name,
    "defense": _is_name,
    "layer": _or_none(_is_name),
    "before": _are_metrics,
    "after": _are_metrics,
    "der": _or_none(_is_fraction),
    "seconds": _each(_or_none(_is_seconds)),
    "config": _is_mapping,
    "environment": _has({"device": _is_text}),
    "clean_indices": _are_indices,
}
_LOSSES = _each(_is_number)
EVENT_FIELDS: dict[str, dict[str, Check]] = {
    "Started": {
        **dict.fromkeys(("epochs", "warmup_epochs", "steps_per_epoch", "clean_images"), _is_count),
        "device": _is_text,
    },
    "StepEnd": {"epoch": _is_epoch, "step": _is_count, "losses": _LOSSES},
    "EpochEnd": {"epoch": _is_epoch, "losses": _LOSSES, "seconds": _is_seconds},
    "Measured": {
        "epoch": _is_epoch,
        "acc": _is_fraction,
        "asr": _or_none(_is_fraction),
        "ra": _or_none(_is_fraction),
        "images": _is_count,
    },
    "Finished": {"epoch": _is_epoch, "seconds": _is_seconds},
    "Failed": {"reason": _is_text, "epoch": _is_epoch, "seconds": _is_seconds},
}
"""Fields that an event needs."""
OPTIONAL_EVENT_FIELDS: dict[str, Check] = {
    "layer": _or_none(_is_name),
    "kept": _is_flag,
    "stopped": _is_flag,
    "objective": _or_none(_is_number),
    "details": _is_mapping,
    "time": _is_seconds,
}


def load_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run. Raises StorageError."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise storage_error(path, error, "read") from error
    value = parse(text)
    if value is None:
        raise _damaged(path)
    return value


def parse(text: bytes) -> dict[str, Any] | None:
    """Return a JSON object of bounded size and depth; None when it is none."""
    if len(text) > MOST_BYTES:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_shallow(value) else None


def load_result(path: Path) -> dict[str, Any]:
    """Return the result of a run; fields of other versions stay. Raises StorageError."""
    result = load_json(path)
    wrong = next((n for n, check in RESULT_FIELDS.items() if n in result and not check(result[n])), None)
    if wrong is not None:
        raise _damaged(path, wrong)
    return result


def load_request(path: Path, values: Mapping[str, Any] | None = None) -> DefenseRequest:
    """Return the request of a run.

    Args:
        path: of the file; it names the run in messages.
        values: what the file holds; None: read it.

    Raises:
        StorageError: it is damaged, or of another version.
    """
    values = load_json(path) if values is None else values
    try:
        texts = [
            values.get("model"),
            values.get("defense", ""),
            values.get("layer") or "",
            values.get("device", ""),
        ]
        if not all(map(_is_name, texts)) or not isinstance(values.get("config", {}), dict):
            raise _damaged(path)
        request = DefenseRequest.from_dict(values)
        _ = request.key
    except (
        NPDError,
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = str(error) if isinstance(error, NPDError) else "its request is missing or malformed."
        raise StorageError(
            f"Run {path.parent.name} was written by another version or damaged: {reason}"
        ) from error
    return request


def is_event(record: Mapping[str, Any]) -> bool:
    """Return whether a record is a whole event, so that every reader can use it."""
    kind = record.get("type")
    if not isinstance(kind, str) or kind not in EVENT_FIELDS:
        return False
    needed = EVENT_FIELDS[kind]
    return all(name in record and check(record[name]) for name, check in needed.items()) and all(
        check(record[name])
        for name, check in OPTIONAL_EVENT_FIELDS.items()
        if name in record and name not in needed
    )


def _is_shallow(value: Any, depth: int = MOST_DEPTH) -> bool:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_shallow(part, depth - 1) for part in parts)
    return True


def _damaged(path: Path, field: str = "") -> StorageError:
    where = f" in `{field}`" if field else ""
    return StorageError(f"{path} is damaged{where} and cannot be read: delete the run, or start it again.")

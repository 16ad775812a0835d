"""The errors of this project. Each message is one sentence that names the problem and the remedy.

NPDError
├── UnknownNameError   a name (model, layer, attack, data set, norm) that does not exist
├── ConfigError        a value out of its range, or two values that contradict each other
├── DataMissingError   a data set, or a part of it, that this machine lacks
├── CheckpointError    weights or a saved polarizer that are absent, damaged, or do not fit
├── StorageError       a file that could not be written or read (disk full, no permission)
└── TrainingError      a training that diverged
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_SEED = 2**32 - 1


class NPDError(Exception):
    """Base of every error that this project raises on purpose. Its text can be shown to a user."""


class UnknownNameError(NPDError):
    """A name that does not exist."""


class ConfigError(NPDError):
    """A setting that cannot be used."""


class DataMissingError(NPDError):
    """A data set that this machine lacks."""


class CheckpointError(NPDError):
    """Weights that cannot be trusted or do not fit."""


class StorageError(NPDError):
    """A file that could not be read or written."""


class TrainingError(NPDError):
    """A training that diverged."""


def unknown_name(kind: str, name: object, choices: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that is not among `choices`; it names the nearest and up to twelve of them.

    Args:
        kind: what the name stands for, in singular: "model", "layer", "attack".
        name: the unknown name.
        choices: every valid name.
    """
    names = list(choices)
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    shown = ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "")
    return UnknownNameError(
        f"Unknown {kind} {str(name)!r}.{hint} Choose one of: {shown or 'none available'}."
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, shortened, or the name of its class; for use in a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")


def check_seed(seed: object) -> None:
    """Raise ConfigError for a seed that some generator of random numbers would refuse."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"`seed` must be a whole number from 0 to {MAX_SEED}, got {str(seed)[:40]}.")


def out_of_memory(error: BaseException) -> bool:
    """Return whether the machine or its accelerator ran out of memory. Does not import torch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"

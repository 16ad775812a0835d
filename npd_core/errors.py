"""What can go wrong, as one family of errors. Each message is one sentence that a person can act on.

NPDError
├── UnknownNameError   a name (model, layer, attack, data set, norm) that does not exist; says the nearest one
├── ConfigError        a value out of its range, or two values that contradict each other
├── DataMissingError   a data set, or a part of it, that is not on this machine
├── CheckpointError    weights or a saved polarizer that are absent, damaged, or do not fit
└── StorageError       a file that could not be written or read (disk full, no permission)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_SEED = 2**32 - 1


class NPDError(Exception):
    """Base of every error that this project raises on purpose. `str(error)` is fit to be shown to a visitor."""


class UnknownNameError(NPDError):
    """A name that is not in the table it was looked up in."""


class ConfigError(NPDError):
    """A setting that cannot be used."""


class DataMissingError(NPDError):
    """A data set that is not here."""


class CheckpointError(NPDError):
    """Weights that cannot be trusted or do not fit."""


class StorageError(NPDError):
    """A file that could not be read or written."""


def unknown_name(kind: str, name: object, choices: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not among `choices`: names the nearest one, then (up to twelve of) them all.

    Args:
        kind: what the name was meant to be, in singular: "model", "layer", "attack".
        name: what was asked for.
        choices: every valid name.
    """
    names = list(choices)
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    shown = ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "")
    return UnknownNameError(
        f"Unknown {kind} {str(name)!r}.{hint} Choose one of: {shown or 'none available'}."
    )


def check_seed(seed: object) -> None:
    """Raises ConfigError for a seed that not every generator of random numbers takes."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"`seed` must be a whole number from 0 to {MAX_SEED}, got {str(seed)[:40]}.")


def out_of_memory(error: BaseException) -> bool:
    """Whether the machine or its accelerator had no memory left; torch's own error is known by its name, unimported."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"

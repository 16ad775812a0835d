"""Load attacks and defenses from outside the project. No torch here."""

from __future__ import annotations

import importlib
import os

from npd_core.errors import ConfigError

VARIABLE = "NPD_PLUGINS"
"""Environment variable with the names of modules, separated by commas. Each is imported by the command line,
the app and the processes that train, and calls `npd_core.defenses.register` or
`npd_core.attacks.register`."""


def load_plugins() -> None:
    """Import the modules that NPD_PLUGINS names. Raises ConfigError when one of them cannot be found."""
    for name in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"{VARIABLE} names {name!r}, which cannot be imported ({error}): check PYTHONPATH."
            ) from error

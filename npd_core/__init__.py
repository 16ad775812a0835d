"""Neural Polarizer Lab: the core. Data, attacks, models, the polarizer, measurement; no user interface.

The public API is what `__all__` lists, see `npd_core.api` and docs/python-api.md. It is loaded on first use,
so that `import npd_core` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from npd_core.version import __version__ as __version__

if TYPE_CHECKING:  # type hints and completion for the names that are loaded on first use
    from npd_core.api import (
        Polarized,
        attribute,
        evaluate,
        export,
        list_models,
        load_clean_images,
        load_model,
        load_polarized,
        load_test_images,
        polarize,
        register_attack,
        register_defense,
    )

__all__ = [
    "Polarized",
    "attribute",
    "evaluate",
    "export",
    "list_models",
    "load_clean_images",
    "load_model",
    "load_polarized",
    "load_test_images",
    "polarize",
    "register_attack",
    "register_defense",
]


def __getattr__(name: str) -> Any:
    """Load the public API on first use (PEP 562)."""
    if name in __all__:
        return getattr(importlib.import_module("npd_core.api"), name)
    raise AttributeError(f"module 'npd_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return sorted([*globals(), *__all__])

"""The executable companion to visual privacy: the thin library under the notebooks.

`from vplib import metrics` finds the module whichever room it lives in, and imports no other.
"""

import importlib

__version__ = "0.1.0"

_ROOMS = {
    "metrics": "show",
    "models": "nets",
    "plots": "show",
    "training": "nets",
    "widgets": "show",
}


def __getattr__(name: str):
    """A module of the foundation that notebooks import from the top."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{_ROOMS[name]}.{name}")

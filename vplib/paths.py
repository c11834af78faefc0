"""Where the clone, the cache and the downloads lie; nothing depends on the working folder."""

import os
import tempfile
from pathlib import Path

import platformdirs


def repository_root() -> Path | None:
    """The clone that this vplib is imported from, or None when it was installed from a wheel."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "notebooks").is_dir() and (root / "pyproject.toml").is_file() else None


def cache_root() -> Path:
    """Where trained models are kept: `VPLIB_CACHE`, else the platform's user cache.

    A relative `VPLIB_CACHE` is taken from the root of the clone, as `VPLIB_DATA` is. A user without
    a home that can be written has one among the temporary folders, but for `XDG_CACHE_HOME`.

    Raises:
        ValueError: `VPLIB_CACHE` is relative and vplib was not imported from a clone, or begins
            with the home of a user who has none.
    """
    if given := _given("VPLIB_CACHE"):
        return given
    home = None if os.environ.get("XDG_CACHE_HOME") else lent_home()
    return home / ".cache" / "vplib" if home else platformdirs.user_cache_path("vplib")


def lent_home() -> Path | None:
    """A folder for a user without a home that can be written, as in some containers; else None."""
    home = os.path.expanduser("~")
    there = next(p for p in (Path(home), *Path(home).parents) if p.exists())
    if home != "~" and os.access(there, os.W_OK | os.X_OK):
        return None
    return Path(tempfile.gettempdir(), f"vplib-{os.getuid()}")


def data_root() -> Path:
    """Where downloads lie: `VPLIB_DATA`, else data/ in a clone, else the user's cache.

    A relative `VPLIB_DATA` is taken from the root of the clone, since notebooks run in several
    working folders.

    Raises:
        ValueError: as of `cache_root`, of `VPLIB_DATA`.
    """
    return _given("VPLIB_DATA") or (repository_root() or cache_root()) / "data"


def _given(variable: str) -> Path | None:
    """The folder that an environment variable names."""
    given, clone = os.environ.get(variable), repository_root()
    if not given:
        return None
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{variable}={given}: {error}") from None
    if not path.is_absolute() and clone is None:
        raise ValueError(f"{variable}={given} must be an absolute path outside a clone")
    return path if path.is_absolute() else (clone / path).resolve()

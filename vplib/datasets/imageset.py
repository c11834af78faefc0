"""The one form in which images reach an experiment, and its division into disjoint pools."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch

MAX_BYTES = 2 * 10**9  # more than this in one tensor wants a word from the caller


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory.

    Args:
        images: (N, C, H, W) float32 in [0, 1], C is 1 or 3.
        labels: (N,) int64, each an index into `classes`.
        classes: the names of the classes.
        name: what `load` was asked for.
        attributes: per attribute (N, ...) values, where the set has them.
        landmarks: (N, L, 2) pixel positions, where the set has them.
        masks: (N, H, W) label maps, where the set has them.

    Raises:
        ValueError: shapes, dtypes or ranges are not as above; the message says which.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    name: str = "images"
    attributes: dict[str, torch.Tensor] | None = None
    landmarks: torch.Tensor | None = None
    masks: torch.Tensor | None = None

    def __post_init__(self):
        """Refuses what would make a later result silently wrong."""
        for problem in self._problems():
            raise ValueError(f"{self.name}: {problem}")
        check_range(self.images, f"{self.name}: ")

    def _problems(self) -> Iterator[str]:
        shape, dtype, count = tuple(self.images.shape), self.images.dtype, len(self.classes)
        if len(shape) != 4 or shape[1] not in (1, 3):
            hint = "; add the channel with images[:, None]" if len(shape) == 3 else ""
            yield f"images must be (N, 1 or 3, H, W), not {shape}{hint}"
        if dtype != torch.float32:
            yield f"images must be float32 in [0, 1], not {dtype}"
        labels, found = self.labels, tuple(self.labels.shape)
        if found != shape[:1] or labels.dtype != torch.int64:
            yield f"labels must be int64 of shape {shape[:1]}, not {labels.dtype} of shape {found}"
        low, high = labels.aminmax() if len(labels) else (0, 0)
        if low < 0 or high >= count:
            lie = f"these lie in {low}..{high}"
            yield f"labels must lie in 0..{count - 1} for {count} classes, {lie}"
        beside = dict(self.attributes or {}, landmarks=self.landmarks, masks=self.masks)
        for key, value in beside.items():
            if value is not None and len(value) != shape[0]:
                yield f"{key} has {len(value)} rows for {shape[0]} images"

    def __len__(self):
        """The number of images."""
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    def require(
        self, *, images: int = 1, classes: int = 1, per_class: int = 1, pixels: int = 1, why: str
    ) -> "ImageSet":
        """The set itself, if an experiment can do with it.

        Args:
            images: the fewest images in all.
            classes: the fewest classes.
            per_class: the fewest images of the smallest class.
            pixels: the fewest pixels of the shorter side.
            why: what needs that many, for the reader.

        Raises:
            ValueError: the set has less of one; the message says what it has, and all that is
                needed.
        """
        smallest = torch.bincount(self.labels, minlength=len(self.classes)).min().item()
        sides = "x".join(map(str, self.shape[1:]))
        have = (
            (len(self), images, "images"),
            (len(self.classes), classes, "classes"),
            (smallest, per_class, "images of each class"),
            (min(self.shape[1:]), pixels, "pixels a side"),
        )
        if any(found < least for found, least, _ in have):
            needed = ", ".join(
                f"{least} {what}" for found, least, what in have if least > 1 or found < least
            )
            raise ValueError(
                f"{self.name} has {len(self)} images of {sides} pixels and {len(self.classes)} "
                f"classes, the smallest of {smallest}; this notebook needs at least {needed}: {why}"
            )
        return self

    def subset(self, rows) -> "ImageSet":
        """These rows, in this order.

        Args:
            rows: indices, or a mask of N truth values.
        """
        rows = torch.as_tensor(rows)
        return self._each(lambda value: value[rows.to(value.device)])

    def with_classes(self, classes) -> "ImageSet":
        """Only the images of these classes, which are renumbered in the order given.

        Args:
            classes: class indices, each once.

        Raises:
            ValueError: there is no such class, or it is named twice.
        """
        classes = [int(c) for c in classes]
        count = len(self.classes)
        if not 0 < len(set(classes) & set(range(count))) == len(classes):
            raise ValueError(
                f"{self.name}: classes must lie in 0..{count - 1}, each once, not {classes}"
            )
        renumber = torch.full((count,), -1, device=self.labels.device)
        renumber[classes] = torch.arange(len(classes), device=self.labels.device)
        chosen = self.subset(renumber[self.labels] >= 0)
        names = tuple(self.classes[c] for c in classes)
        return replace(chosen, labels=renumber[chosen.labels], classes=names)

    def split(self, *, seed: int = 0, **pools: int) -> SimpleNamespace:
        """Disjoint random pools in which every class has its share.

        Args:
            seed: decides who is in which pool.
            **pools: the number of images of each pool by name, for example `members=200`.

        Returns:
            The pools as attributes, each an ImageSet.

        Raises:
            ValueError: a size is no positive integer, or the pools want more than there is.
        """
        for pool, size in pools.items():
            if not is_whole(size, 1):
                raise ValueError(
                    f"{self.name}: pool {pool!r} needs a size of 1 or more, not {size!r}"
                )
        wanted = sum(pools.values())
        if wanted > len(self):
            sizes = " + ".join(f"{pool} {size}" for pool, size in pools.items())
            raise ValueError(
                f"{self.name}: pools want {sizes} = {wanted} images, there are {len(self)}; "
                "take smaller pools or a larger dataset"
            )
        order, start, found = balanced_order(self.labels, seed), 0, {}
        for pool, size in pools.items():
            found[pool] = self.subset(order[start : start + size])
            start += size
        return SimpleNamespace(**found)

    def with_label_noise(self, rate: float, *, seed: int = 0) -> "ImageSet":
        """The set with a share of labels replaced by another class, drawn once for all users.

        A memorization dial: a wrong label can only be learned by heart. Draw it before the set
        is split, so that members, nonmembers and shadows hold the same (image, label) pairs;
        otherwise a wrong label alone reveals membership.

        Args:
            rate: the share of labels to replace, from 0 to 1.
            seed: decides which labels, and their replacements.

        Raises:
            ValueError: the rate is outside 0..1, or there is only one class.
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"label noise must be a rate from 0 to 1, not {rate}")
        if len(self.classes) < 2:
            raise ValueError(f"{self.name}: label noise needs at least two classes")
        rng = np.random.default_rng(seed)
        chosen = torch.from_numpy(rng.permutation(len(self))[: round(rate * len(self))])
        labels = self.labels.clone()
        shift = torch.from_numpy(rng.integers(1, len(self.classes), len(chosen)))
        labels[chosen] = (labels[chosen] + shift.to(labels.device)) % len(self.classes)
        return replace(self, labels=labels)

    def to(self, device) -> "ImageSet":
        """The same set with its tensors on another device."""
        return self._each(lambda value: value.to(device))

    def _each(self, change) -> "ImageSet":
        """The same set with every tensor changed."""
        found = {name: getattr(self, name) for name in ("images", "labels", "landmarks", "masks")}
        found = {name: change(value) for name, value in found.items() if value is not None}
        attributes = self.attributes and {k: change(v) for k, v in self.attributes.items()}
        return replace(self, **found, attributes=attributes)


def balanced_order(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """A random order of the rows in which any stretch holds every class in proportion.

    The j-th of the n images of a class is placed at (j + offset) / n of the way.

    Args:
        labels: (N,) class indices.
        seed: decides the order.

    Returns:
        (N,) row indices.
    """
    rng = np.random.default_rng(seed)
    labels = labels.cpu().numpy()
    place = np.empty(len(labels))
    for c in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == c))
        place[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return torch.from_numpy(np.argsort(place, kind="stable"))


def check_bytes(shape: tuple[int, int, int, int]) -> None:
    """Refuses images that would take more than `MAX_BYTES` of memory, with the arithmetic.

    Args:
        shape: (N, C, H, W) of the float32 tensor to make.

    Raises:
        ValueError: it would be larger.
    """
    count, channels, height, width = shape
    needed = 4 * count * channels * height * width
    if needed > MAX_BYTES:
        raise ValueError(
            f"{count} images x {channels} x {height} x {width} x 4 bytes = "
            f"{needed / 1e9:.1f} GB, more than {MAX_BYTES / 1e9:.1f} GB; pass a smaller "
            "image_size or num_images"
        )


def check_range(images: torch.Tensor, where: str = "") -> None:
    """Refuses images that are none, or not in [0, 1].

    Args:
        images: (N, C, H, W) of any type.
        where: they come from, for the message.

    Raises:
        ValueError: there is no pixel, pixels are integers, or one lies outside or is NaN.
    """
    if not images.is_floating_point():
        raise ValueError(
            f"{where}images must be floating point in [0, 1], not {images.dtype}; "
            "divide 8-bit images by 255"
        )
    if not images.numel():
        raise ValueError(f"{where}there is no image")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ValueError(
            f"{where}images must lie in [0, 1], these lie in [{low:.3g}, {high:.3g}]; "
            "divide 8-bit images by 255"
        )


def is_whole(value, least: int = 0) -> bool:
    """Whether this is a whole number, of Python or NumPy, from `least` on; True is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least

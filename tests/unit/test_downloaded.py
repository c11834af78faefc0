"""The downloaded sets, from tiny files in the layout that torchvision and scikit-learn read."""

import bz2
import hashlib
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from sklearn.datasets import fetch_lfw_people
from torchvision import datasets as tv

from vplib import datasets
from vplib.datasets import DatasetUnavailable, downloaded, fetching, imageset, loading, stored

RNG = np.random.default_rng(0)
TRAIN, TEST = 6, 4  # images in the tiny sets


@pytest.fixture
def root(monkeypatch, tmp_path):
    """An empty data root, no network, and the sizes of the tiny sets."""

    def refuse(*args, **kwargs):
        raise socket.gaierror(socket.EAI_AGAIN, "no network here")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("VPLIB_DATA", str(tmp_path / "data"))
    tiny = {name: {"train": TRAIN, "test": TEST, "all": TRAIN + TEST} for name in downloaded.COUNTS}
    monkeypatch.setattr(downloaded, "COUNTS", tiny)
    return tmp_path / "data"


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def save(pixels, file: Path, **options) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


# Each writes a tiny set below a root and returns the path to damage, and what `load` names.


def write_fashion_mnist(root, monkeypatch):
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", TRAIN), ("t10k", TEST)):
        pixels = RNG.integers(0, 256, (n, 28, 28), np.uint8)
        images = struct.pack(">iiii", 2051, n, 28, 28) + pixels.tobytes()
        labels = struct.pack(">ii", 2049, n) + bytes(i % 10 for i in range(n))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return raw / "train-images-idx3-ubyte", root / "FashionMNIST"


def write_cifar(root, monkeypatch, kind, key, names):
    folder = root / kind.base_folder
    folder.mkdir(parents=True)

    def dump(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, md5(folder / file)]

    lists = {"train_list": [], "test_list": []}
    for which, files in lists.items():
        old = getattr(kind, which)
        n = (TRAIN if which == "train_list" else TEST) // len(old) or 1
        for file, _ in old:
            pixels = RNG.integers(0, 256, (n, 3072), np.uint8)
            files.append(dump(file, {"data": pixels, key: [i % 2 for i in range(n)]}))
        monkeypatch.setattr(kind, which, files)
    meta = dict(kind.meta)
    meta["md5"] = dump(meta["filename"], {meta["key"]: names})[1]
    monkeypatch.setattr(kind, "meta", meta)
    return folder / lists["train_list"][0][0], folder


def write_cifar10(root, monkeypatch):
    monkeypatch.setitem(downloaded.COUNTS, "cifar10", {"train": 5, "test": TEST})  # five batches
    return write_cifar(root, monkeypatch, tv.CIFAR10, "labels", ["airplane", "automobile"])


def write_cifar100(root, monkeypatch):
    return write_cifar(root, monkeypatch, tv.CIFAR100, "fine_labels", ["apple", "fish"])


def write_svhn(root, monkeypatch):
    root.mkdir(parents=True)
    for part, n in (("train", TRAIN), ("test", TEST)):
        url, name, _ = tv.SVHN.split_list[part]
        labels = np.array([[10 - i] for i in range(n)], np.uint8)  # 10 stands for the digit 0
        pixels = RNG.integers(0, 256, (32, 32, 3, n), np.uint8)
        scipy.io.savemat(root / name, {"X": pixels, "y": labels})
        monkeypatch.setitem(tv.SVHN.split_list, part, [url, name, md5(root / name)])
    return root / "train_32x32.mat", root / "train_32x32.mat"


def write_usps(root, monkeypatch):
    root.mkdir(parents=True)
    for name, n in (("usps.bz2", TRAIN), ("usps.t.bz2", TEST)):
        lines = [
            f"{i + 1} "
            + " ".join(f"{k + 1}:{v:.4f}" for k, v in enumerate(RNG.uniform(-1, 1, 256)))
            for i in range(n)
        ]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))
    return root / "usps.bz2", root / "usps.bz2"


def write_omniglot(root, monkeypatch):
    place = root / "omniglot-py"
    for folder, alphabets in (
        ("images_background", ("Greek", "Latin", "Balinese")),
        ("images_evaluation", ("Tibetan", "ULOG")),
    ):
        for alphabet in alphabets:
            for i in range(2):  # one character a drawing
                pixels = np.full((105, 105), 255, np.uint8)
                pixels[10:20, 30 * i : 30 * i + 5] = 0
                file = place / folder / alphabet / f"character0{i + 1}" / "0001_01.png"
                file.parent.mkdir(parents=True)
                Image.fromarray(pixels).convert("1").save(file)
        (place / f"{folder}.zip").write_bytes(b"left over")
        monkeypatch.setitem(tv.Omniglot.zips_md5, folder, md5(place / f"{folder}.zip"))
    return place / "images_background" / "Greek" / "character01" / "0001_01.png", place


def write_lfw(root, monkeypatch):
    home = root / "sklearn" / "lfw_home"
    for person, n in (("Ada_Lovelace", 5), ("Grace_Hopper", 4), ("Alan_Turing", 1)):
        for i in range(1, n + 1):
            pixels = RNG.integers(0, 256, (250, 250, 3), np.uint8)
            save(pixels, home / "lfw_funneled" / person / f"{person}_{i:04}.jpg")
    for name in ("pairs", "pairsDevTrain", "pairsDevTest"):
        (home / f"{name}.txt").write_text("")
    return home / "lfw_funneled" / "Alan_Turing" / "Alan_Turing_0001.jpg", home


CELEBA_PARTS = [0, 1, 2, 2, 0, 0, 1, 2, 0, 2]  # training, validation, test


def write_celeba(root, monkeypatch):
    place = root / "celeba"
    n = TRAIN + TEST
    for i in range(n):
        pixels = np.zeros((218, 178, 3), np.uint8)
        pixels[100 - 4 : 100 + 5, 60 - 4 : 60 + 5] = 255  # around the left eye
        pixels[:20], pixels[198:] = 255, 255  # outside of the middle square
        save(pixels, place / "img_align_celeba" / f"{i + 1:06}.jpg", quality=95)
    names = [f"attribute_{a}" for a in range(40)]
    files = [f"{i + 1:06}.jpg" for i in range(n)]

    def table(*rows, header=None):
        lines = [
            f"{file}  {' '.join(map(str, row))}" for file, row in zip(files, rows, strict=True)
        ]
        head = [] if header is None else [str(n), " ".join(header) + " "]
        return "\n".join(head + lines) + "\n"

    texts = {
        "list_attr_celeba.txt": table(
            *([1 if (i + a) % 3 == 0 else -1 for a in range(40)] for i in range(n)), header=names
        ),
        "identity_CelebA.txt": table(*([100 + 7 * part] for part in CELEBA_PARTS)),
        "list_bbox_celeba.txt": table(*([1, 2, 3, 4] for _ in range(n)), header=["x", "y"]),
        "list_landmarks_align_celeba.txt": table(
            *([60, 100, 110, 100, 88, 125, 65, 150, 108, 150] for _ in range(n)), header=["x"]
        ),
        "list_eval_partition.txt": table(*([part] for part in CELEBA_PARTS)),
    }
    for name, text in texts.items():
        (place / name).write_text(text)
    monkeypatch.setattr(
        tv.CelebA,
        "file_list",
        [("id", md5(place / name), name) for name in texts] + [("id", "", "img_align_celeba.zip")],
    )
    return place / "img_align_celeba" / "000001.jpg", place


WRITERS = {
    "fashion_mnist": write_fashion_mnist,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn": write_svhn,
    "lfw": write_lfw,
    "usps": write_usps,
    "omniglot": write_omniglot,
    "celeba": write_celeba,
}
SHAPES = {
    "fashion_mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "svhn": (3, 32, 32),
    "lfw": (3, 62, 47),
    "usps": (1, 16, 16),
    "omniglot": (1, 105, 105),
    "celeba": (3, 218, 178),
}
PLACES = {  # what is missing, where it comes from, what does instead
    "mnist": ("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/", "mnist5k"),
    "olivetti": ("sklearn/olivetti_py3.pkz", "https://ndownloader.figshare.com/", "digits"),
    "fashion_mnist": ("FashionMNIST", "http://fashion-mnist.s3-website", "mnist5k"),
    "cifar10": ("cifar-10-batches-py", "https://www.cs.toronto.edu/", "mnist5k"),
    "cifar100": ("cifar-100-python", "https://www.cs.toronto.edu/", "mnist5k"),
    "svhn": ("train_32x32.mat", "http://ufldl.stanford.edu/", "mnist5k"),
    "lfw": ("sklearn/lfw_home", "https://ndownloader.figshare.com/", "digits"),
    "usps": ("usps.bz2", "https://www.csie.ntu.edu.tw/", "digits"),
    "omniglot": ("omniglot-py", "https://raw.githubusercontent.com/brendenlake/", "digits"),
    "celeba": ("celeba", "https://drive.google.com/", "digits"),
}
ALL = pytest.mark.parametrize("name", WRITERS)


def test_every_set_is_tried_here_or_in_test_datasets():
    assert set(WRITERS) | {"mnist", "olivetti"} == set(downloaded.LOADERS)
    assert set(downloaded.COUNTS) == set(downloaded.LOADERS) <= set(datasets.NAMES)


def test_the_published_sizes():
    counts = downloaded.COUNTS
    assert counts["celeba"]["train"] == 162_770 + 19_867
    assert counts["celeba"]["all"] == counts["celeba"]["train"] + counts["celeba"]["test"]
    assert counts["omniglot"] == {"train": 964 * 20, "test": 659 * 20}


# From disk, without a network


@ALL
def test_from_disk(name, root, monkeypatch):
    WRITERS[name](root, monkeypatch)
    both = datasets.load(name, "all")
    assert both.shape == SHAPES[name] and both.name == name and both.images.is_contiguous()
    parts = [datasets.load(name, split) for split in ("train", "test")]
    assert sum(map(len, parts)) == len(both)
    assert 0 < both.images.std() and {p.shape for p in parts} == {both.shape}
    for part in parts:  # the parts hold the images of the whole
        whole = {image.numpy().tobytes() for image in both.images}
        assert {image.numpy().tobytes() for image in part.images} <= whole
    some = datasets.load(name, "all", num_images=3, image_size=10)
    assert some.images.shape == (3, both.shape[0], 10, 10)
    again = datasets.load(name, "all", num_images=np.int64(3), image_size=np.int64(10))
    assert torch.equal(some.images, again.images) and torch.equal(some.labels, again.labels)
    with pytest.raises(ValueError, match=rf"{name} \(test\) has {len(parts[1])} images, not 99"):
        datasets.load(name, "test", num_images=99)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100", "svhn", "usps"])
def test_arrays_are_torchvisions(name, root, monkeypatch):
    WRITERS[name](root, monkeypatch)
    kind = {"fashion_mnist": tv.FashionMNIST}.get(name) or getattr(tv, name.upper())
    both = []
    for split in ("train", "test"):
        peer = kind(root, split) if name == "svhn" else kind(root, train=split == "train")
        ours = datasets.load(name, split)
        pixels = [torch.from_numpy(np.array(image, np.float32) / 255) for image, _ in peer]
        pixels = torch.stack(pixels)
        pixels = pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None]
        assert torch.equal(ours.images, pixels)
        assert ours.labels.tolist() == [label for _, label in peer]
        if name not in ("svhn", "usps"):
            assert ours.classes == tuple(peer.classes)
        both.append(ours.images)
    assert torch.equal(datasets.load(name, "all").images, torch.cat(both))


def test_svhns_ten_is_the_digit_zero(root, monkeypatch):
    write_svhn(root, monkeypatch)
    assert datasets.load("svhn").labels.tolist() == [0, 9, 8, 7, 6, 5]


def test_omniglot_is_torchvisions_in_alphabetical_order(root, monkeypatch):
    write_omniglot(root, monkeypatch)
    train, test, both = (datasets.load("omniglot", split) for split in ("train", "test", "all"))
    assert train.classes[:3] == (
        "Balinese/character01",
        "Balinese/character02",
        "Greek/character01",
    )
    assert not set(train.classes) & set(test.classes)
    assert both.classes == train.classes + test.classes
    assert torch.equal(both.images, torch.cat([train.images, test.images]))
    assert both.labels.tolist() == [*train.labels.tolist(), *(test.labels + 6).tolist()]
    for ours, background in ((train, True), (test, False)):
        peer = tv.Omniglot(root, background=background)
        theirs = {peer._characters[c]: np.asarray(i, np.float32) / 255 for i, c in peer}
        for image, label in zip(ours.images, ours.labels, strict=True):
            assert np.array_equal(image[0].numpy(), theirs[ours.classes[label]])
    assert train.images.mean() > 0.9  # black strokes on white, as stored


def test_lfw_is_scikit_learns(root, monkeypatch):
    write_lfw(root, monkeypatch)
    ours = datasets.load("lfw", "all")
    peer = fetch_lfw_people(data_home=root / "sklearn", color=True, download_if_missing=False)
    order = np.arange(10)
    np.random.RandomState(42).shuffle(order)  # scikit-learn shuffles
    assert ours.classes == ("Ada Lovelace", "Alan Turing", "Grace Hopper")
    assert np.array_equal(ours.labels[order].numpy(), peer.target)
    theirs = torch.from_numpy(peer.images).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours.images[order], theirs, rtol=0, atol=1e-6)
    square = datasets.load("lfw", "all", image_size=125).images  # the same middle, not scaled
    box = (78 - 62, 0, 172 - 62, 125)
    picture = Image.open(root / "sklearn/lfw_home/lfw_funneled/Ada_Lovelace/Ada_Lovelace_0001.jpg")
    part = np.asarray(picture.crop((78, 70, 172, 195)), np.float32) / 255
    assert np.array_equal(square[0][:, :, box[0] : box[2]].permute(1, 2, 0).numpy(), part)


def test_celeba(root, monkeypatch):
    write_celeba(root, monkeypatch)
    train, test, both = (datasets.load("celeba", split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(both)) == (6, 4, 10)
    assert train.classes == ("person 100", "person 107") and test.classes == ("person 114",)
    assert train.labels.tolist() == [0, 1, 0, 0, 1, 0]  # 1: the validation part
    assert len(both.attributes) == 40 and set(test.attributes) == set(both.attributes)
    rows = [i for i, part in enumerate(CELEBA_PARTS) if part < 2]
    for a, (name, values) in enumerate(train.attributes.items()):
        assert name == f"attribute_{a}" and values.dtype == torch.bool
        assert values.tolist() == [(i + a) % 3 == 0 for i in rows]
    assert train.landmarks.shape == (6, 5, 2) and train.landmarks[0, 2].tolist() == [88, 125]
    peer = tv.CelebA(root, "test")
    for image, (picture, _) in zip(test.images, peer, strict=True):
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(picture, np.float32) / 255)
    ours = torch.stack(list(test.attributes.values()), 1).int()
    assert torch.equal(ours, peer.attr.int())


@pytest.mark.parametrize("size", [89, 100, 178, 256])
def test_celebas_landmarks_follow_the_image_size(root, monkeypatch, size):
    write_celeba(root, monkeypatch)
    data = datasets.load("celeba", "test", image_size=size, num_images=2)
    assert data.landmarks.shape == (2, 5, 2) and all(len(v) == 2 for v in data.attributes.values())
    bright = (data.images[0].mean(0) > 0.5).nonzero().float()  # only the square around the eye
    x, y = data.landmarks[0, 0].tolist()
    assert bright.mean(0).tolist() == pytest.approx([y, x], abs=0.6)
    assert len(bright) == pytest.approx((9 * size / 178) ** 2, rel=0.35)


# Only what is asked for is decoded, and what is too much is refused before


@pytest.mark.parametrize("name", ["omniglot", "lfw", "celeba"])
def test_only_the_chosen_images_are_decoded(name, root, monkeypatch):
    WRITERS[name](root, monkeypatch)
    opened, real = [], stored.open_image
    monkeypatch.setattr(stored, "open_image", lambda file: opened.append(file) or real(file))
    datasets.load(name, "all", num_images=2)
    assert len(opened) == 2
    opened.clear()
    shape = (2, SHAPES[name][0], 40, 40)
    monkeypatch.setattr(imageset, "MAX_BYTES", 4 * int(np.prod(shape)) - 1)
    message = " x ".join(map(str, shape)) + " x 4 bytes = 0.0 GB, more than 0.0 GB; pass a smaller"
    message = message.replace("2 x", "2 images x", 1)
    with pytest.raises(ValueError, match=re.escape(message)):
        datasets.load(name, "all", num_images=2, image_size=40)
    assert not opened
    assert len(datasets.load(name, "all", num_images=2, image_size=39)) == 2


def test_full_celeba_is_refused_at_once(monkeypatch):
    n = downloaded.COUNTS["celeba"]["train"]
    labels = torch.arange(n) % 9177
    whole = stored.Stored(
        labels, tuple(map(str, range(9177))), (3, 218, 178), lambda *a: pytest.fail("decoded")
    )
    monkeypatch.setitem(loading._LOADERS, "celeba", lambda split: whole)
    message = "146110 images x 3 x 218 x 178 x 4 bytes = 68.0 GB, more than 2.0 GB; pass a smaller"
    with pytest.raises(ValueError, match=re.escape(message)):
        datasets.load("celeba")


@pytest.mark.parametrize("name", ["fashion_mnist", "svhn"])
def test_arrays_too_large(name, root, monkeypatch):
    WRITERS[name](root, monkeypatch)
    with pytest.raises(ValueError, match=r"6 images x \d x 10000 x 10000 x 4 bytes = \d+.\d GB"):
        datasets.load(name, image_size=10_000)


# Missing


@pytest.mark.parametrize("name", PLACES)
def test_no_network(name, root):
    place, address, instead = PLACES[name]
    start = time.monotonic()
    with pytest.raises(DatasetUnavailable) as error:
        datasets.load(name)
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert f"dataset {name!r} is not at {root / place}" in message
    assert address in message and "cannot be reached" in message and "no network here" in message
    assert "set VPLIB_DATA" in message
    assert f"or use '{instead}', which needs no network" in message
    assert instead in ("digits", "mnist5k") and str(root) in message.split("Copy ")[1]
    assert "\n" not in message and not re.search(r"[{}]{2}|\{\}", message)
    assert not root.exists()


@pytest.mark.parametrize("name, file", [("svhn", "test_32x32.mat"), ("usps", "usps.t.bz2")])
def test_a_part_that_is_missing(name, file, root, monkeypatch):
    WRITERS[name](root, monkeypatch)
    (root / file).unlink()
    assert len(datasets.load(name, "train")) == TRAIN  # its file is there
    for split in ("test", "all"):
        with pytest.raises(DatasetUnavailable, match=f"{name!r} is not at .*{re.escape(file)} and"):
            datasets.load(name, split)


# Damaged


@ALL
@pytest.mark.parametrize("how", ["truncated", "empty", "other", "missing"])
def test_damaged(name, how, root, monkeypatch):
    file, place = WRITERS[name](root, monkeypatch)
    content = file.read_bytes()
    damage = {"truncated": content[: len(content) // 2], "empty": b"", "other": b"<html>" * 99}
    if how in damage:
        file.write_bytes(damage[how])
    elif file != place:  # a single file that is missing is fetched instead
        file.unlink()
    else:
        return
    with pytest.raises(DatasetUnavailable) as error:
        datasets.load(name, "all")
    message = str(error.value)
    if how == "missing" and name in ("fashion_mnist", "cifar10", "cifar100"):  # no picture of many
        file = file.relative_to(place).as_posix()
        assert message.startswith(f"dataset {name!r} at {place} lacks {file}: copy it there; or")
    else:
        assert message.startswith(f"dataset {name!r} at {place} is damaged (")
        assert message.endswith("). Delete it and run again.")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "from_", "to", "said"),
    [
        ("omniglot", "images_evaluation", "images_evaluation.zip", "lacks {}/: unpack {}.zip to"),
        ("omniglot", "images_evaluation", "python/images_evaluation", "lacks {}/: move python/{}"),
        ("celeba", "img_align_celeba", "img_align_celeba.zip", "lacks {}/: unpack {}.zip to it"),
        ("celeba", "identity_CelebA.txt", "Anno/identity_CelebA.txt", "lacks {}: move Anno/{} to"),
        ("lfw", "lfw_funneled", "lfw-funneled.tgz", "lacks {}/: unpack lfw-funneled.tgz to it"),
        ("cifar10", "batches.meta", "batches.meta.txt", "lacks {}: move batches.meta.txt to it"),
        ("cifar100", "test", "gone", "lacks {}: copy it there"),
        ("fashion_mnist", "raw/t10k-labels-idx1-ubyte", "raw/t10k-labels-idx1-ubyte.gz", "{}.gz"),
    ],
)
def test_copied_by_hand(name, from_, to, said, root, monkeypatch):
    _, place = WRITERS[name](root, monkeypatch)
    for left in place.glob("*.zip"):
        left.unlink()
    (place / to).parent.mkdir(exist_ok=True)
    if to.endswith((".zip", ".tgz")):
        shutil.rmtree(place / from_)
        (place / to).write_bytes(b"packed")
    else:
        (place / from_).replace(place / to)
    with pytest.raises(DatasetUnavailable) as error:
        datasets.load(name, "all")
    message = str(error.value).replace(f"{place}/", "")
    assert message.startswith(f"dataset {name!r} at {place} lacks {from_}")
    assert said.format(from_, from_) in message and "damaged" not in message


@pytest.mark.parametrize(
    ("name", "packed", "place"),
    [
        ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python"),
        ("lfw", "sklearn/lfw-funneled.tgz", "sklearn/lfw_home"),
    ],
)
def test_a_set_that_is_packed_must_be_unpacked(name, packed, place, root):
    (root / packed).parent.mkdir(parents=True)
    (root / packed).write_bytes(b"packed")
    said = f"{name!r} is not at {root / place}, but {root / packed} is: unpack it there, and run"
    with pytest.raises(DatasetUnavailable, match=re.escape(said)):
        datasets.load(name)


def test_one_part_of_fashion_mnist_does_alone(root, monkeypatch):
    file, place = write_fashion_mnist(root, monkeypatch)
    whole = datasets.load("fashion_mnist", "test")
    file.unlink()
    assert torch.equal(datasets.load("fashion_mnist", "test").images, whole.images)
    assert whole.classes[0] == "T-shirt/top"


@pytest.mark.parametrize("name", ["omniglot", "lfw"])
def test_hidden_files_of_another_system_are_not_counted(name, root, monkeypatch):
    file, _ = WRITERS[name](root, monkeypatch)
    whole = datasets.load(name, "all")
    file.with_name(f"._{file.name}").write_bytes(b"of a Mac")
    (file.parent.with_name("._folder")).mkdir()
    assert torch.equal(datasets.load(name, "all").images, whole.images)


@pytest.mark.parametrize("how", ["eps", "huge", "pipe"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_hostile_picture_is_damage(how, root, monkeypatch):
    file, _ = write_lfw(root, monkeypatch)
    file.unlink()
    if how == "eps":
        file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 250 250\n")
    elif how == "huge":
        Image.new("1", (13_000, 13_000)).save(file, "PNG")
    elif hasattr(os, "mkfifo"):
        os.mkfifo(file)
    with pytest.raises(DatasetUnavailable, match=f"damaged .{file.name}: .*Delete it and run"):
        datasets.load("lfw", "all")


@ALL
def test_too_few_images_are_damage(name, root, monkeypatch):
    _, place = WRITERS[name](root, monkeypatch)
    monkeypatch.setitem(downloaded.COUNTS, name, dict.fromkeys(("train", "test", "all"), 77))
    message = re.escape(f"dataset {name!r} at {place} is damaged (") + r"\d+ images instead of 77\)"
    with pytest.raises(DatasetUnavailable, match=message):
        datasets.load(name, "train")


@pytest.mark.parametrize("name", ["omniglot", "lfw", "celeba"])
def test_a_picture_that_is_too_small(name, root, monkeypatch):
    file, place = WRITERS[name](root, monkeypatch)
    Image.new("RGB", (50, 40)).save(file)
    message = rf"damaged \({file.name}: 50x40 pixels, fewer than expected\)"
    with pytest.raises(DatasetUnavailable, match=message):
        datasets.load(name, "all")


def test_files_that_may_not_be_read_are_not_called_damaged(root, monkeypatch):
    write_usps(root, monkeypatch)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "usps.bz2")

    monkeypatch.setattr(bz2, "open", refuse)
    with pytest.raises(PermissionError, match="usps.bz2"):
        datasets.load("usps")


# Downloads


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(fetching, "_unreachable", lambda url: "")


def left_in(place: Path) -> list[str]:
    return sorted(f.name for f in place.iterdir() if not f.name.endswith(".lock"))


@pytest.mark.parametrize("name", ["usps", "svhn"])
def test_a_download_of_single_files(name, root, online, monkeypatch, tmp_path):
    WRITERS[name](tmp_path / "source", monkeypatch)
    module = sys.modules[{"usps": tv.USPS, "svhn": tv.SVHN}[name].__module__]
    asked = []

    def download_url(url, folder, filename, md5):
        assert Path(folder).parent == root and left_in(root)[0].startswith(f".{filename}.")
        asked.append(filename)
        (Path(folder) / filename).write_bytes((tmp_path / "source" / filename).read_bytes())

    monkeypatch.setattr(module, "download_url", download_url)
    assert len(datasets.load(name, "train")) == TRAIN and len(asked) == 1
    assert left_in(root) == asked
    assert len(datasets.load(name, "all")) == TRAIN + TEST and len(asked) == 2
    assert left_in(root) == sorted(asked)


def test_both_parts_of_omniglot_are_downloaded(root, online, monkeypatch, tmp_path):
    write_omniglot(tmp_path / "source", monkeypatch)
    module = sys.modules[tv.Omniglot.__module__]

    def download(url, folder, filename, md5):
        source = tmp_path / "source" / "omniglot-py"
        shutil.copytree(source / filename[:-4], Path(folder) / filename[:-4])
        shutil.copy(source / filename, folder)

    monkeypatch.setattr(module, "download_and_extract_archive", download)
    assert len(datasets.load("omniglot", "all")) == TRAIN + TEST
    assert left_in(root) == ["omniglot-py"]


@ALL
@pytest.mark.filterwarnings("ignore:Retry downloading:UserWarning")
def test_a_download_that_fails_leaves_nothing(name, root, online):
    with pytest.raises(DatasetUnavailable, match="the download failed") as error:
        datasets.load(name)  # the network is off
    place, _, instead = PLACES[name]
    assert f"dataset {name!r} is not at {root / place}" in str(error.value)
    assert f"or use '{instead}'." in str(error.value)
    assert left_in((root / place).parent) == []


def test_what_a_killed_download_left_is_removed(root, online):
    killed = root / ".thing.x1y2z3"
    killed.mkdir(parents=True)
    (killed / "thing").write_text("half of")
    told = dict(url="https://example.org", files="it to {}", instead="digits")
    place = fetching.fetched(
        "thing", root, "thing", lambda beside: (beside / "thing").write_text("whole"), **told
    )
    assert place.read_text() == "whole" and left_in(root) == ["thing"]


PROCESS = """
import sys, time
from pathlib import Path
from torchvision import datasets as tv
from vplib import datasets
from vplib.datasets import downloaded, fetching

source = Path(sys.argv[1])
fetching._unreachable = lambda url: ""
downloaded.COUNTS["usps"] = {"train": 6, "test": 4}

def download_url(url, folder, filename, md5):
    with open(source / "downloads", "a") as log:
        log.write(filename + chr(10))
    content = (source / filename).read_bytes()
    with open(Path(folder) / filename, "wb") as file:
        for i in range(0, len(content), 999):
            file.write(content[i : i + 999])
            file.flush()
            time.sleep(0.05)

sys.modules[tv.USPS.__module__].download_url = download_url
print(len(datasets.load("usps", "all")))
"""


def test_two_processes_download_once(tmp_path, monkeypatch):
    source, root = tmp_path / "source", tmp_path / "data"
    write_usps(source, monkeypatch)
    environment = os.environ | {"VPLIB_DATA": str(root), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(source)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and out.split() == ["10"], err
    assert sorted((source / "downloads").read_text().split()) == ["usps.bz2", "usps.t.bz2"]
    assert left_in(root) == ["usps.bz2", "usps.t.bz2"]

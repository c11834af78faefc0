"""Rendered people: who they are, how they look in a session and on a photo, as an `ImageSet`.

Every parameter is a hash of the seed, the person (session, photo) and its own name: a person is the
same in each call, whoever else is asked for. No real person is in here, and no rate measured on
these faces is one on real people.
"""

import zlib
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from vplib import experiment
from vplib.datasets import face_renderer
from vplib.datasets.face_renderer import LANDMARKS, PARTS, Params, Rendered
from vplib.datasets.imageset import ImageSet

__all__ = [
    "EXPRESSIONS", "LANDMARKS", "PARTS", "Rendered", "identities", "people", "photos", "render",
    "sequence",
]  # fmt: skip

EXPRESSIONS = ("neutral", "smiling", "surprised")
MAX_PEOPLE = 1_000_000
SIZES = (32, 128)
BATCH = 128
PIXELS = 2**18

SKINS = [(0.30, 0.18, 0.13), (0.55, 0.35, 0.24), (0.78, 0.54, 0.40), (0.93, 0.72, 0.58), (1.0, 0.85, 0.74)]
HAIRS = [(0.07, 0.06, 0.07), (0.20, 0.12, 0.08), (0.36, 0.20, 0.11), (0.56, 0.28, 0.12), (0.80, 0.60, 0.32), (0.74, 0.73, 0.72)]
IRISES = [(0.20, 0.11, 0.06), (0.38, 0.22, 0.10), (0.35, 0.42, 0.20), (0.25, 0.45, 0.62), (0.45, 0.55, 0.60)]
# Ranges of what a person keeps; uniform and independent of each other.
IDENTITY = dict(
    face_width=(0.42, 0.54), face_height=(0.56, 0.68), taper=(0.0, 0.55), square=(0.0, 0.6),
    ear=(0.09, 0.15), neck=(0.20, 0.30), shoulders=(0.80, 1.05), blush=(0.1, 0.5),
    eye_gap=(0.18, 0.25), eye_y=(-0.10, 0.02), eye_size=(0.095, 0.145), eye_shape=(0.60, 0.95),
    eye_slant=(-0.20, 0.28), brow=(0.014, 0.044), brow_width=(0.11, 0.18), brow_gap=(0.16, 0.24),
    brow_slope=(-0.045, 0.05), brow_arch=(0.0, 0.07), nose_length=(0.22, 0.36),
    nose_width=(0.065, 0.135), mouth_y=(0.35, 0.43), mouth_width=(0.19, 0.29), lips=(0.022, 0.055),
    volume=(0.03, 0.20), hairline=(-0.50, -0.24), parting=(-0.28, 0.28), fringe=(-0.15, 0.20),
    temples=(0.05, 0.30), length=(0.55, 1.0), curl_phase=(0.0, 6.3), beard_length=(0.0, 0.25),
)  # fmt: skip
# Ranges of what a session keeps, and of what changes from photo to photo.
SESSION = dict(
    gradient_x=(-1.0, 1.0), gradient_y=(-1.0, 1.0), disc_x=(-1.0, 1.0), disc_y=(-1.0, 0.6),
    disc=(0.0, 0.6), stripe_rate=(12.0, 32.0), upright=(0.0, 1.0), light_x=(-0.30, 0.30),
    light_y=(-0.20, 0.08), gain=(0.80, 1.12),
)  # fmt: skip
PHOTO = dict(
    yaw=(-0.50, 0.50), pitch=(-0.22, 0.22), roll=(-0.22, 0.22), scale=(0.90, 1.18),
    shift_x=(-0.10, 0.10), shift_y=(0.0, 0.16), gaze_x=(-1.0, 1.0), gaze_y=(-0.7, 0.7),
    lens=(0.75, 1.0), angular=(0.0, 0.6), held_x=(-0.9, 0.9), held_y=(0.1, 0.9),
    held_angle=(-0.7, 0.7), noise=(0.01, 0.03),
)  # fmt: skip


def _mix(state: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _uniform(name: str, *keys) -> Tensor:
    """(N,) numbers in [0, 1): a hash of the name and of each row of the keys."""
    state = np.array([zlib.crc32(name.encode())], np.uint64)
    for key in keys:
        state = _mix(state * np.uint64(0x9E3779B97F4A7C15) + np.asarray(key).astype(np.uint64))
    return torch.from_numpy((state >> np.uint64(40)).astype(np.float32) / 2**24)


def _between(name: str, span: tuple[float, float], *keys) -> Tensor:
    return span[0] + (span[1] - span[0]) * _uniform(name, *keys)


def _palette(colours: list, place: Tensor) -> Tensor:
    """(N, 3) colours along a palette, from its first at 0 to its last at 1."""
    colours = torch.tensor(colours)
    place = place * (len(colours) - 1)
    low = place.long().clamp(max=len(colours) - 2)
    return torch.lerp(colours[low], colours[low + 1], (place - low)[:, None])


def _colour(name: str, low: float, high: float, *keys) -> Tensor:
    return torch.stack([_between(f"{name} {c}", (low, high), *keys) for c in "rgb"], 1)


def identities(people: Iterable[int], *, seed: int = 0) -> Params:
    """What people keep from photo to photo."""
    keys = seed, _people(people)
    found = {name: _between(name, span, *keys) for name, span in IDENTITY.items()}
    skin = _palette(SKINS, _uniform("tone", *keys))
    warm = _between("undertone", (-1, 1), *keys)[:, None] * torch.tensor([[0.02, 0.0, -0.03]])
    hair = _palette(HAIRS, _uniform("hair colour", *keys) ** 1.3)
    found["tone"] = _uniform("tone", *keys)
    found["skin"] = (skin + warm).clamp(0, 1)
    found["hair"] = hair
    found["brows"] = hair * 0.65
    found["iris"] = _palette(IRISES, _uniform("iris", *keys))
    lip = skin * torch.tensor([[0.86, 0.62, 0.62]])
    red = torch.tensor([[0.75, 0.22, 0.25]])
    found["lip"] = torch.lerp(lip, red, _between("lipstick", (0.0, 0.6), *keys)[:, None])
    found["curl"] = (_uniform("curly", *keys) < 0.4) * _between("curl", (0.06, 0.22), *keys)
    found["long_hair"] = (_uniform("long hair", *keys) < 0.45).float()
    found["beard"] = (_uniform("beard", *keys) < 0.4) * _between("density", (0.75, 1.0), *keys)
    return found


def photos(people, sessions, numbers, *, seed: int = 0, **fixed) -> Params:
    """What changes between photos."""
    person, session, number = np.broadcast_arrays(_people(people), sessions, numbers)
    keys = seed, person, session
    found = {name: _between(name, span, *keys) for name, span in SESSION.items()}
    found["backdrop"] = _colour("backdrop", 0.15, 0.95, *keys)
    found["backdrop_2"] = _colour("backdrop 2", 0.15, 0.95, *keys)
    found["clothes"] = _colour("clothes", 0.08, 0.92, *keys)
    found["clothes_2"] = _colour("clothes 2", 0.08, 0.92, *keys)
    found["stripes"] = (_uniform("stripes", *keys) < 0.45).float()
    found["cast"] = _colour("cast", 0.82, 1.15, *keys)
    keys = *keys, number
    found |= {name: _between(name, span, *keys) for name, span in PHOTO.items()}
    found["expression"] = (3 * _uniform("expression", *keys)).long()
    for name, share in (("glasses", 0.3), ("hat", 0.22), ("occluder", 0.1), ("cap", 0.5)):
        found[name] = (_uniform(name, *keys) < share).float()
    smiling, surprised = ((found["expression"] == k).float() for k in (1, 2))
    found["smile"] = (
        _between("mood", (-0.15, 0.15), *keys) * (1 - smiling)
        + _between("smile", (0.75, 1.1), *keys) * smiling
    )
    found["round"] = surprised * _between("round", (0.8, 1.0), *keys)
    found["open"] = smiling * _between("laugh", (0.1, 0.75), *keys) + surprised * _between(
        "gape", (0.7, 1.0), *keys
    )
    found["teeth"] = torch.ones_like(smiling)
    found["raise"] = surprised * _between("surprise", (0.6, 1.0), *keys)
    blinks = (_uniform("blinks", *keys) < 0.06).float()
    found["blink"] = _between("lids", (0.8, 1.05), *keys) * (1 - blinks) + 0.18 * blinks
    found["frame"] = _colour("frame", 0.02, 0.45, *keys)
    found["hat_colour"] = _colour("hat colour", 0.08, 0.92, *keys)
    found["held"] = _colour("held", 0.1, 0.9, *keys)
    found["grain"] = _uniform("grain", *keys)
    return found


@cache
def _grain() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(2**20, np.float32))


def render(identity: Params, nuisance: Params, image_size: int = 32, *, body: bool = False):
    """Renders."""
    grain, values = _grain(), 3 * image_size**2
    band = max(1, PIXELS // (BATCH * image_size))
    bands = [range(k, min(k + band, image_size)) for k in range(0, image_size, band)]
    parts = []
    for some in torch.arange(len(nuisance["yaw"])).split(BATCH):
        i = {k: v[some] for k, v in identity.items()}
        n = {k: v[some] for k, v in nuisance.items()}
        pieces = [face_renderer._render(i, n, image_size, body, rows) for rows in bands]
        images, masks = torch.cat([p[0] for p in pieces], 2), torch.cat([p[1] for p in pieces], 1)
        starts = (n["grain"] * (len(grain) - values)).long()
        noise = torch.stack([grain[s : s + values] for s in starts.tolist()]).view_as(images)
        images = (images + noise * n["noise"][:, None, None, None]).clamp_(0, 1)
        landmarks, box = face_renderer._truth(i, n, image_size, body)
        parts.append((images, masks, landmarks, face_renderer._visible(landmarks.detach(), masks, n["yaw"]), torch.stack([n["yaw"], n["pitch"], n["roll"]], 1), box))
    return Rendered(*(torch.cat(p) for p in zip(*parts)))


def _people(people):
    return np.asarray(list(people) if not isinstance(people, np.ndarray) else people)

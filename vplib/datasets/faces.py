"""Rendered people: who they are, how they look in a session and on a photo, as an `ImageSet`.

A parameter is a hash of the seed, the person (session, photo) and its own name: a person is the
same in each call, whoever else is asked for. No real person is in here, and no rate measured on
these faces is one on real people.
"""

import math
import zlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from vplib import experiment
from vplib.datasets.face_renderer import LANDMARKS as LANDMARKS
from vplib.datasets.face_renderer import check_size, render
from vplib.datasets.face_shapes import PARTS as PARTS
from vplib.datasets.face_shapes import Params
from vplib.datasets.imageset import ImageSet, check_bytes, is_whole

EXPRESSIONS = ("neutral", "smiling", "surprised")
MAX_PEOPLE = 10**6
# What `datasets.load("faces")` holds: each person in 15 sessions of two photos, ten to train on.
PEOPLE, PER_SESSION, SESSIONS = 40, 2, {"train": (0, 10), "test": (10, 15), "all": (0, 15)}

# Colours along which a person's lie.
SKIN = (
    (0.30, 0.18, 0.13), (0.55, 0.35, 0.24), (0.78, 0.54, 0.40), (0.93, 0.72, 0.58),
    (1.0, 0.85, 0.74),
)  # fmt: skip
HAIR = (
    (0.07, 0.06, 0.07), (0.20, 0.12, 0.08), (0.36, 0.20, 0.11), (0.56, 0.28, 0.12),
    (0.80, 0.60, 0.32), (0.74, 0.73, 0.72),
)  # fmt: skip
IRIS = (
    (0.20, 0.11, 0.06), (0.38, 0.22, 0.10), (0.35, 0.42, 0.20), (0.25, 0.45, 0.62),
    (0.45, 0.55, 0.60),
)  # fmt: skip
# Ranges, uniform and independent of each other: of what a person keeps,
IDENTITY = dict(
    face_width=(0.4, 0.56), face_height=(0.58, 0.72), taper=(0.0, 0.65), square=(0.0, 0.65),
    ear=(0.079, 0.16), neck=(0.18, 0.32), shoulders=(0.8, 1.05), blush=(0.1, 0.5),
    eye_gap=(0.17, 0.26), eye_y=(-0.12, 0.041), eye_size=(0.086, 0.15),
    eye_shape=(0.54, 1.01), eye_slant=(-0.28, 0.36), brow=(0.012, 0.05),
    brow_width=(0.098, 0.19), brow_gap=(0.15, 0.25), brow_slope=(-0.062, 0.067),
    brow_arch=(-0.012, 0.082), nose_length=(0.17, 0.29), nose_width=(0.053, 0.15),
    mouth_y=(0.34, 0.42), mouth_width=(0.17, 0.31), lips=(0.018, 0.06), volume=(0.01, 0.24),
    hairline=(-0.54, -0.24), parting=(-0.3, 0.3), fringe=(-0.2, 0.2), temples=(0.0, 0.35),
    length=(0.47, 1.08), curl_phase=(0.0, 6.3), beard_length=(0.0, 0.25),
)  # fmt: skip
# of what a session keeps,
SESSION = dict(
    gradient_x=(-1.0, 1.0), gradient_y=(-1.0, 1.0), disc_x=(-1.0, 1.0), disc_y=(-1.0, 0.6),
    disc=(0.0, 0.6), stripe_rate=(12.0, 32.0), upright=(0.0, 1.0), light_x=(-0.30, 0.30),
    light_y=(-0.20, 0.08), gain=(0.58, 1.15),
)  # fmt: skip
# and of what changes from photo to photo. Angles in radians.
PHOTO = dict(
    yaw=(-0.28, 0.28), pitch=(-0.13, 0.13), roll=(-0.13, 0.13), scale=(0.84, 1.0),
    shift_x=(-0.07, 0.07), shift_y=(0.02, 0.13), gaze_x=(-1.0, 1.0), gaze_y=(-0.7, 0.7),
    lens=(0.75, 1.0), angular=(0.0, 0.6), held_x=(-0.9, 0.9), held_y=(0.1, 0.9),
    held_angle=(-0.7, 0.7), noise=(0.01, 0.03), grain=(0.0, 1.0),
)  # fmt: skip
SHARES = dict(glasses=0.3, hat=0.22, occluder=0.1, cap=0.5)  # of the photos, whoever is on them


def people(
    identities: Iterable[int],
    photos_each: int,
    *,
    image_size: int = 32,
    sessions: int | Iterable[int] = 10,
    seed: int = 0,
    body: bool = False,
    **fixed,
) -> ImageSet:
    """Photos of these people, dealt out evenly to their sessions; a person is a class.

    Calls with different people, or with different sessions of the same people, share no photo.
    More photos of a session come after its first ones: they are the same in a larger set.

    Args:
        identities: who, as whole numbers from 0 to 999,999, each once: `range(0, 40)`.
        photos_each: photos of each person.
        image_size: height and width in pixels, 32 to 128.
        sessions: how many sessions a person has, or which: `range(10, 15)`. A session has its own
            clothes, background, light and white balance.
        seed: another seed is another world, with other people.
        body: head and shoulders, 64 pixels or more.
        **fixed: values that all photos have, by the name of a parameter of `SESSION` or `PHOTO`,
            or `glasses`, `hat`, `occluder`, `expression`: `people(..., glasses=1, yaw=0.0)`.

    Returns:
        The set, with `landmarks` (N, 12, 2), `masks` (N, H, W) and these attributes: `person`,
        `session`, `expression` (an index into `EXPRESSIONS`), `beard`, `long_hair`, `glasses`,
        `hat`, `occluder` (0 or 1), `tone` (of the skin, 0 dark to 1 light), `yaw`, `pitch`,
        `roll` (radians), `visible` (N, 12) and `head_box` (N, 4), as `render` returns them.

    Raises:
        ValueError: an argument cannot be, or the images would take more than 2 GB.
    """
    who = _whole("identities", identities, MAX_PEOPLE)
    held = _whole("sessions", range(sessions) if is_whole(sessions) else sessions, MAX_PEOPLE)
    if not is_whole(photos_each, 1):
        raise ValueError(f"photos_each must be a whole number of 1 or more, not {photos_each!r}")
    number = np.tile(np.arange(photos_each), len(who))
    person, session = np.repeat(who, photos_each), held[number % len(held)]
    settings = dict(image_size=image_size, seed=seed, body=body)
    return _photos(who, person, session, number // len(held), **settings, **fixed)


def standard_labels(split: str) -> Tensor:
    """The labels of `datasets.load("faces", split)`: photo after photo of each person.

    Args:
        split: "train", "test" or "all".
    """
    low, high = SESSIONS[split]
    return torch.arange(PEOPLE).repeat_interleave((high - low) * PER_SESSION)


def standard(split: str, rows: Tensor, image_size: int | None) -> ImageSet:
    """Some photos of `datasets.load("faces", split)`; the parts hold other sessions.

    Args:
        split: "train", "test" or "all".
        rows: which, as indices into `standard_labels`.
        image_size: as in `people`; 32 by default.
    """
    low, high = SESSIONS[split]
    each = (high - low) * PER_SESSION
    number = rows.numpy() % each
    where = rows.numpy() // each, low + number // PER_SESSION, number % PER_SESSION
    return _photos(np.arange(PEOPLE), *where, image_size=32 if image_size is None else image_size)


def identity_params(identities: Iterable[int], *, seed: int = 0) -> Params:
    """What people keep from photo to photo: the first argument of `render`.

    Beard, long hair, and the colours of skin, hair and eyes are independent of each other.

    Args:
        identities: who, as in `people`, but also several times.
        seed: as in `people`.

    Returns:
        By name, (N,) float32 and, for colours, (N, 3) in [0, 1].

    Raises:
        ValueError: no such person, or no such seed.
    """
    keys = _seed(seed), _whole("identities", identities, MAX_PEOPLE, distinct=False)
    found = {name: _between(name, span, *keys) for name, span in IDENTITY.items()}
    found["tone"] = _uniform("tone", *keys)
    skin, hair = _palette(SKIN, found["tone"]), _palette(HAIR, _uniform("hair colour", *keys))
    undertone = torch.tensor([0.02, 0.0, -0.03])
    found["skin"] = (skin + _between("undertone", (-1, 1), *keys)[:, None] * undertone).clamp(0, 1)
    found["hair"], found["brows"] = hair, hair * 0.65
    found["iris"] = _palette(IRIS, _uniform("iris", *keys))
    pale, red = skin * torch.tensor([0.86, 0.62, 0.62]), torch.tensor([0.75, 0.22, 0.25])
    found["lip"] = torch.lerp(pale, red, _between("lipstick", (0.0, 0.6), *keys)[:, None])
    found["curl"] = _share("curly", 0.4, *keys) * _between("curl", (0.06, 0.22), *keys)
    found["long_hair"] = _share("long hair", 0.45, *keys)
    found["beard"] = _share("beard", 0.4, *keys) * _between("density", (0.88, 1.0), *keys)
    return found


def nuisance_params(identities, sessions, numbers, *, seed: int = 0, **fixed) -> Params:
    """What sessions and photos add: the second argument of `render`.

    Args:
        identities: (N,) who, as in `people`.
        sessions: (N,) whole numbers, or one for all.
        numbers: (N,) which photo of the session, or one for all.
        seed: as in `people`.
        **fixed: as in `people`.

    Returns:
        By name, (N,) float32 and, for colours, (N, 3) in [0, 1].

    Raises:
        ValueError: an argument cannot be.
    """
    _check_fixed(fixed)
    person = _whole("identities", identities, MAX_PEOPLE, distinct=False)
    keys = _seed(seed), *np.broadcast_arrays(person, sessions, numbers)
    of_session, of_photo = keys[:-1], keys
    found = {name: _between(name, span, *of_session) for name, span in SESSION.items()}
    found["stripes"] = _share("stripes", 0.45, *of_session)
    found["cast"] = _colour("cast", 0.78, 1.22, *of_session)
    found["clothes"] = _colour("clothes", 0.08, 0.92, *of_session)
    found["clothes_2"] = _colour("clothes 2", 0.08, 0.92, *of_session)
    for name in ("backdrop", "backdrop_2"):  # pale: a loud one is learnt instead of the person
        gray = _between(f"{name} gray", (0.2, 0.9), *of_session)[:, None]
        found[name] = (gray + _colour(name, -0.12, 0.12, *of_session)).clamp(0, 1)
    found |= {name: _between(name, span, *of_photo) for name, span in PHOTO.items()}
    found |= {name: _share(name, share, *of_photo) for name, share in SHARES.items()}
    found["frame"] = _colour("frame", 0.02, 0.32, *of_photo)
    found["hat_colour"] = _colour("hat colour", 0.08, 0.92, *of_photo)
    found["held"] = _colour("held", 0.1, 0.9, *of_photo)
    found["expression"] = (_uniform("expression", *of_photo) * len(EXPRESSIONS)).floor()
    for name, value in fixed.items():
        value = EXPRESSIONS.index(value) if isinstance(value, str) else value
        found[name] = torch.full_like(found["yaw"], value)

    def amount(name, low, high):
        return _between(name, (low, high), *of_photo)

    smiling, surprised = ((found["expression"] == k).float() for k in (1, 2))
    found["smile"] = torch.where(
        smiling > 0, amount("smile", 0.75, 1.1), amount("mood", -0.15, 0.15)
    )
    found["open"] = smiling * amount("laugh", 0.1, 0.75) + surprised * amount("gape", 0.7, 1.0)
    found["round"] = surprised * amount("round", 0.8, 1.0)
    found["raise"] = surprised * amount("surprise", 0.6, 1.0)
    found["blink"] = torch.where(
        _share("blinks", 0.06, *of_photo) > 0, 0.18, amount("lids", 0.8, 1.05)
    )
    return found


def _photos(who, person, session, number, *, image_size, seed=0, body=False, **fixed) -> ImageSet:
    """The set of these photos."""
    check_size(image_size, body)
    check_bytes((len(person), 3, image_size, image_size))
    known = identity_params(person, seed=seed)
    photo = nuisance_params(person, session, number, seed=seed, **fixed)
    with torch.no_grad():
        found = render(known, photo, image_size, body=body)
    attributes = {
        "person": torch.from_numpy(person).long(),
        "session": torch.from_numpy(session).long(),
        "expression": photo["expression"].long(),
        "beard": (known["beard"] > 0).long(),
        "long_hair": known["long_hair"].long(),
        **{name: photo[name].long() for name in ("glasses", "hat", "occluder")},
        "tone": known["tone"],
        **dict(zip(("yaw", "pitch", "roll"), found.pose.unbind(1), strict=True)),
        "visible": found.visible,
        "head_box": found.head_box,
    }
    order = np.argsort(who)
    labels = torch.from_numpy(order[np.searchsorted(who, person, sorter=order)])
    names = tuple(f"person {k}" for k in who.tolist())
    truth = dict(attributes=attributes, landmarks=found.landmarks, masks=found.masks)
    return ImageSet(found.images, labels, names, "faces", **truth)


def _whole(name: str, values, end: int, distinct: bool = True) -> np.ndarray:
    """These whole numbers from 0 to below the end, as an array."""
    values = [values] if not isinstance(values, Iterable) or isinstance(values, str) else values
    values = values.tolist() if isinstance(values, np.ndarray | Tensor) else list(values)
    wrong = [v for v in values if not (is_whole(v) and v < end)]
    if wrong or not values:
        raise ValueError(
            f"{name} must be whole numbers from 0 to {end - 1:,}, at least one, "
            f"not {wrong[0] if wrong else 'none'!r}; give for example range(0, 40)"
        )
    if distinct and len(set(values)) < len(values):
        raise ValueError(f"{name} must name each once; {len(values)} are given, some twice")
    return np.array(values, dtype=np.int64)


def _seed(seed: int) -> int:
    if not (is_whole(seed) and seed < 2**32):
        raise ValueError(f"seed must be an integer from 0 to 4294967295, not {seed!r}")
    return seed


def _check_fixed(fixed: dict) -> None:
    """Refuses a fixed value of no parameter, or one that it cannot have."""
    for name, value in fixed.items():
        known = (*SESSION, *PHOTO, *SHARES, "expression")
        if name not in known:
            raise ValueError(f"photos have no {name!r} to fix; {experiment.nearest(name, known)}")
        choices = (0, 1, 2, *EXPRESSIONS) if name == "expression" else (0, 1)
        if name in ("expression", *SHARES):
            wanted, good = f"one of {choices}", value in choices
        else:
            wanted = "a finite number"
            good = isinstance(value, int | float | np.number) and math.isfinite(value)
        if not good:
            raise ValueError(f"{name} must be {wanted} for all photos, not {value!r}")


def _mix(state: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: each bit of the state reaches every bit of the result."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _uniform(name: str, *keys) -> Tensor:
    """(N,) numbers in [0, 1): a hash of the name and of each row of the keys."""
    state = np.array([zlib.crc32(name.encode())], np.uint64)
    for key in keys:
        step = np.asarray(key).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = _mix(_mix(state) + step)
    return torch.from_numpy((state >> np.uint64(40)).astype(np.float32) / np.float32(2**24))


def _between(name: str, span: tuple[float, float], *keys) -> Tensor:
    return span[0] + (span[1] - span[0]) * _uniform(name, *keys)


def _share(name: str, share: float, *keys) -> Tensor:
    """(N,) 1 for this share of the rows, 0 for the others."""
    return (_uniform(name, *keys) < share).float()


def _colour(name: str, low: float, high: float, *keys) -> Tensor:
    return torch.stack([_between(f"{name} {c}", (low, high), *keys) for c in "rgb"], 1)


def _palette(colours: tuple, place: Tensor) -> Tensor:
    """(N, 3) colours along a row of them, from its first at 0 to its last at 1."""
    row = torch.tensor(colours)
    place = place * (len(row) - 1)
    low = place.long().clamp(max=len(row) - 2)
    return torch.lerp(row[low], row[low + 1], (place - low)[:, None])

"""Cartoon faces from parameters, with the truth beside them; differentiable throughout.

`face_shapes` has the shapes; here they are painted one over the other, shaded, and measured. The
batch is the last axis until the images are done.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vplib.datasets import face_shapes as shapes
from vplib.datasets.face_shapes import Frame, Layer, Params
from vplib.datasets.imageset import is_whole

BATCH = 128  # images at a time: shorter runs cost more calls, longer ones make windows wider
PIXELS = 2**18  # of a band of them, in rows that a core's cache holds
LANDMARKS = (
    "left brow", "right brow", "left eye", "right eye", "nose bridge", "nose tip",
    "mouth left", "mouth right", "mouth middle", "chin", "left ear", "right ear",
)  # fmt: skip
SEEN_ON = [  # a landmark is visible where the label map shows one of these parts
    *["brows skin"] * 2, *["eyes"] * 2, "nose skin", "nose",
    *["mouth beard skin"] * 2, "mouth", "skin beard body", *["skin"] * 2,
]  # fmt: skip
SHOWS = torch.tensor([[part in names.split() for part in shapes.PARTS] for names in SEEN_ON])


class Rendered(NamedTuple):
    """Images with the truth beside them.

    Args:
        images: (N, 3, H, W) in [0, 1].
        masks: (N, H, W) uint8, the part of `PARTS` that each pixel shows.
        landmarks: (N, 12, 2) x and y of `LANDMARKS` in pixels; a whole number is the middle of
            a pixel. Left and right are the viewer's.
        visible: (N, 12) whether a landmark is in the image and nothing covers it.
        pose: (N, 3) yaw (to the viewer's right), pitch (down), roll (clockwise), in radians.
        head_box: (N, 4) left, top, right, bottom in pixels, around face, ears and hair of the
            scalp; it may reach out of the image.
    """

    images: Tensor
    masks: Tensor
    landmarks: Tensor
    visible: Tensor
    pose: Tensor
    head_box: Tensor


def _frame(n: Params, size: int, body: bool, rows: range) -> Frame:
    """The grid, moved, turned and scaled; with the body, from further away."""
    far = 1.9 if body else 1.0
    dtype, device = n["yaw"].dtype, n["yaw"].device
    step = (torch.arange(size, dtype=dtype, device=device) + 0.5) * (2 / size) - 1
    scale = n["scale"] * far
    shift = n["shift_x"] / far, n["shift_y"] / far - (0.40 if body else 0.0)
    u = ((step[:, None] - shift[0]) * scale).expand(len(rows), size, -1)
    v = ((step[rows.start : rows.stop, None, None] - shift[1]) * scale).expand(-1, size, -1)
    cos, sin = n["roll"].cos(), n["roll"].sin()
    x, y = u * cos + v * sin, v * cos - u * sin
    return Frame(x, y, u, v, size / 2 / scale, cos, sin, shift, size, rows)


def _paint(layers: Iterator[Layer], canvas: Tensor, labels: Tensor) -> Tensor:
    """Lays the layers over the canvas, (3, H, W, N), and notes the parts in the label map."""
    for where, alpha, colour, part in layers:
        if not alpha.numel():
            continue
        colour, at = shapes.batch_last(colour.to(canvas)), (slice(None), *where)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (canvas, alpha, colour)):
            below, canvas = canvas, canvas.clone()  # autograd needs what lies below as it was
            canvas[at] = torch.lerp(below[at], colour, alpha)
        else:
            canvas[at].lerp_(colour, alpha)
        if part:
            labels[where].masked_fill_(alpha > 0.5, part)
    return canvas


def _worn(f: Frame, i: Params, n: Params, canvas: Tensor, labels: Tensor) -> Tensor:
    """Paints what few wear, on the photos of those alone."""
    for layers in (shapes.glasses, shapes.hat, shapes.occluder):
        some = n[layers.__name__].nonzero()[:, 0]
        if not len(some):
            continue
        few = f._replace(
            **{k: getattr(f, k)[..., some] for k in ("x", "y", "u", "v", "fine", "cos", "sin")},
            shift=tuple(t[some] for t in f.shift),
        )
        wearers = ({k: v[some] for k, v in params.items()} for params in (i, n))
        parts = labels[..., some]
        painted = _paint(layers(few, *wearers), canvas[..., some], parts)
        labels[..., some] = parts
        canvas = canvas.index_copy(-1, some, painted)
    return canvas


def _render(i: Params, n: Params, size: int, body: bool, rows: range) -> tuple[Tensor, Tensor]:
    """Images and label maps, without noise: some rows of them, (N, 3, rows, W) and (N, rows, W)."""
    f = _frame(n, size, body, rows)
    wave = (f.x * 13 + i["curl_phase"]).sin_() * (f.y * 11 - i["curl_phase"]).cos_() * i["curl"]
    w, h = i["face_width"], i["face_height"]
    low = f.y.clamp(min=0)
    xs = f.x - 0.16 * n["yaw"] * low  # the chin turns further than the brow
    across, down = xs * (low * (i["taper"] / w) + 1 / w), f.y * (1 / h)
    bend = across.clamp(-1.2, 1.2) * n["light_x"] + down.clamp(-1.2, 1.2) * n["light_y"]
    # Capped, or the corners of a square face would come back far outside of it.
    across, down = across.square().clamp_(max=2), down.square().clamp_(max=2)
    far = across + down - i["square"] * across * down

    def layers():
        yield from shapes.back_hair(f, i, n, wave)
        yield from shapes.body(f, i, n)
        yield from shapes.head(f, i, n, xs, far)
        yield from shapes.eyes(f, i, n)
        yield from shapes.nose(f, i, n)
        yield from shapes.mouth(f, i, n)
        yield from shapes.front_hair(f, i, n, wave)

    labels = torch.zeros(len(rows), size, len(w), dtype=torch.uint8, device=w.device)
    canvas = _paint(layers(), shapes.background(f, n), labels)
    canvas = _worn(f, i, n, canvas, labels)
    shade = (bend - 0.16 * far.clamp(max=1.3) + 0.06) * (labels > 0) + 1
    images = canvas * shade * shapes.batch_last(n["cast"] * n["gain"][:, None])
    return images.permute(3, 0, 1, 2), labels.permute(2, 0, 1)


def render(
    identity: Params, nuisance: Params, image_size: int = 32, *, body: bool = False
) -> Rendered:
    """Images of people, with the truth beside them; differentiable in every parameter.

    Args:
        identity: what a person keeps, as `faces.identity_params` draws it: (N,) numbers and
            (N, 3) colours by name. Take a copy and change a value to get another person.
        nuisance: what a photo has, as `faces.nuisance_params` draws it.
        image_size: height and width in pixels, 32 to 128.
        body: head and shoulders instead of the head alone; 64 pixels or more.

    Returns:
        The images and their truth. Gradients reach images, landmarks, pose and head box; label
        map and visibility are whole numbers and have none.

    Raises:
        ValueError: the size is none of these, or parameters are missing or differ in number.
    """
    check_size(image_size, body)
    number = len(next(iter(identity.values())))
    for name, value in (identity | nuisance).items():
        if len(value) != number or not number:
            raise ValueError(
                f"parameter {name!r} has {len(value)} rows, another {number}; "
                "each needs one row an image, and there must be an image"
            )
    some = torch.arange(number).split(max(1, min(BATCH, PIXELS // image_size)))
    both = [[{k: v[rows] for k, v in d.items()} for d in (identity, nuisance)] for rows in some]
    try:
        parts = [_photos(i, n, image_size, body) for i, n in both]
    except KeyError as error:
        raise ValueError(
            f"parameter {error} is missing; start from those that faces.identity_params and "
            "faces.nuisance_params give"
        ) from None
    return Rendered(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _photos(i: Params, n: Params, size: int, body: bool) -> Rendered:
    """A few images at once, in bands of rows."""
    dtype = torch.promote_types(i["skin"].dtype, n["yaw"].dtype)
    i, n = ({k: v.to(dtype) for k, v in d.items()} for d in (i, n))
    i["face_height"] = i["face_height"] + 0.05 * n["open"]  # the jaw drops
    step = max(1, PIXELS // (len(n["yaw"]) * size))
    bands = [range(k, min(k + step, size)) for k in range(0, size, step)]
    images, masks = zip(*(_render(i, n, size, body, rows) for rows in bands), strict=True)
    images, masks = (torch.cat(images, 2) + _noise(n, size)).clamp(0, 1), torch.cat(masks, 1)
    frame = _frame(n, size, body, range(1))
    landmarks, box = _landmarks(frame, i, n), _head_box(frame, i, n)
    pose = torch.stack([n["yaw"], n["pitch"], n["roll"]], 1)
    visible = _visible(landmarks.detach(), masks)
    return Rendered(images, masks, landmarks, visible, pose, box)


def check_size(image_size: int, body: bool) -> None:
    """Refuses sizes that the truth is not made for.

    Raises:
        ValueError: the size is no whole number from 32 (with the body 64) to 128.
    """
    low, high = (64 if body else 32), 128
    if not (is_whole(image_size, low) and image_size <= high):
        what = "head and shoulders" if body else "faces"
        raise ValueError(
            f"{what} are rendered at {low} to {high} pixels, not {image_size!r}; "
            "resize the images with datasets.resize for another size"
        )


def _noise(n: Params, size: int) -> Tensor:
    """A stretch of one long row of noise for each photo: drawn anew it would cost more than paint.

    The stretch depends on the photo alone, not on who is in the batch with it.
    """
    grain, length = _grain(), 3 * size**2
    starts = (n["grain"].detach() * (len(grain) - length)).long().tolist()
    found = torch.stack([grain[start : start + length] for start in starts])
    return found.to(n["noise"]).view(-1, 3, size, size) * n["noise"][:, None, None, None]


@cache
def _grain() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(2**20, np.float32))


def _landmarks(f: Frame, i: Params, n: Params) -> Tensor:
    places = [shapes.brow_place(i, n, side)[:2] for side in (-1, 1)]
    eye_y = i["eye_y"] + 0.36 * n["pitch"]
    places += [(shapes.turned(side * i["eye_gap"], 0.36, n)[0], eye_y) for side in (-1, 1)]
    places += [(shapes.turned(0.0, 0.40, n)[0], eye_y + 0.02)]
    places += [(shapes.turned(0.0, 0.52, n)[0], i["eye_y"] + i["nose_length"] + 0.50 * n["pitch"])]
    x, y, narrow = shapes.mouth_place(i, n)
    half = i["mouth_width"] * narrow * 0.85
    corner = y - n["smile"] * 0.17 * 0.4
    places += [(x - half, corner), (x + half, corner), (x, y + n["smile"] * 0.17 * 0.45)]
    places += [(0.16 * n["yaw"] * i["face_height"], i["face_height"] - 0.04)]
    for side in (-1, 1):
        x = side * (i["face_width"] + 0.4 * i["ear"]) * n["yaw"].cos() - 0.16 * n["yaw"].sin()
        places += [(x, 0.03 - 0.1 * n["pitch"])]
    points = [torch.stack(f.pixel(x, y), -1) for x, y in places]
    return torch.stack(points, 1)


def _visible(landmarks: Tensor, masks: Tensor) -> Tensor:
    size = masks.shape[-1]
    at = landmarks.round().long()
    inside = ((at >= 0) & (at < size)).all(-1)
    x, y = at.clamp(0, size - 1).unbind(-1)
    shown = masks[torch.arange(len(masks), device=masks.device)[:, None], y, x].long()
    landmark = torch.arange(len(LANDMARKS), device=masks.device)
    return inside & SHOWS.to(masks.device)[landmark, shown]


def _head_box(f: Frame, i: Params, n: Params) -> Tensor:
    width = torch.maximum(i["face_width"] + i["volume"], i["face_width"] + i["ear"] * 0.7) + 0.03
    top = i["face_height"] * 0.88 + i["volume"] + 0.14
    middle, half = (i["face_height"] - top) / 2, (i["face_height"] + top) / 2 + 0.02
    x, y = f.pixel(torch.zeros_like(middle), middle)
    across = ((width * f.cos).square() + (half * f.sin).square()).sqrt() * f.fine
    down = ((width * f.sin).square() + (half * f.cos).square()).sqrt() * f.fine
    return torch.stack([x - across, y - down, x + across, y + down], 1)

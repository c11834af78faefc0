"""The soft shapes of a cartoon face, each a layer to paint; see `face_renderer` for the whole.

The batch is the last axis of every tensor in here, so that a parameter, (N,), broadcasts over
pixels, (H, W, N), as it is, and that a window of an image is a slice of long runs. Lengths are in
units of the head's frame: origin in the middle of the face, x to the right, y down, half an image
long where `scale` is 1. An edge is a ramp one pixel wide: cheap, and zero outside, so that a shape
is evaluated in its own window only. `i` is what a person keeps, `n` what a photo has.
"""

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

Params = dict[str, Tensor]
PARTS = (
    "background", "body", "skin", "hair", "beard", "brows", "eyes", "nose", "mouth", "worn",
)  # fmt: skip
BACKGROUND, BODY, SKIN, HAIR, BEARD, BROWS, EYES, NOSE, MOUTH, WORN = range(10)


class Layer(NamedTuple):
    """A shape: its window, how far it covers each pixel, its colour, and what it is part of."""

    where: tuple[slice, slice]
    alpha: Tensor
    colour: Tensor
    part: int | None  # None leaves the label map alone: shadows and lights


class Frame(NamedTuple):
    """Where the pixels lie: (x, y) on the tilted head, (u, v) on the upright body."""

    x: Tensor
    y: Tensor
    u: Tensor
    v: Tensor
    fine: Tensor  # pixels a unit
    cos: Tensor
    sin: Tensor
    shift: tuple[Tensor, Tensor]
    size: int
    rows: range  # of the image that are painted

    def pixel(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where a point of the head lies in the image, in pixels."""
        u, v = x * self.cos - y * self.sin, x * self.sin + y * self.cos
        middle = (self.size - 1) / 2
        return (
            u * self.fine + self.shift[0] * self.size / 2 + middle,
            v * self.fine + self.shift[1] * self.size / 2 + middle,
        )

    @torch.no_grad()
    def window(self, x, y, a, b) -> tuple[slice, slice]:
        """Rows and columns that hold the box (x +- a, y +- b) of every head of the batch."""
        x, y, a, b = (torch.as_tensor(t, dtype=self.cos.dtype) for t in (x, y, a, b))
        column, row = self.pixel(x, y)
        cos, sin = self.cos.abs(), self.sin.abs()

        def span(middle, half, painted):
            half = half * self.fine + 1
            low, high = (middle - half).min().floor(), (middle + half).max().ceil() + 1
            ends = torch.stack([low, high]) - painted.start
            return slice(*ends.clamp(0, len(painted)).int().tolist())

        rows = span(row, a * sin + b * cos, self.rows)
        return rows, span(column, a * cos + b * sin, range(self.size))

    def ramp(self, soft: float) -> float:
        """Pixels from outside to inside: one for a sharp edge, else `soft` of an image of 64."""
        return max(1.0, soft * self.size / 64) if soft else 1.0

    def reach(self, radius: Tensor, soft: float) -> Tensor:
        """How many radii a soft ellipse goes."""
        return (1 + self.ramp(soft) / (radius * self.fine)).sqrt()

    def ellipse(self, x, y, a: Tensor, b: Tensor, soft=0) -> tuple[tuple[slice, slice], Tensor]:
        """The window and the coverage of an ellipse on the head."""
        small = torch.minimum(a, b)
        reach = self.reach(small, soft)
        where = self.window(x, y, a * reach, b * reach)
        far = ((self.x[where] - x) * (1 / a)).square_()
        far += ((self.y[where] - y) * (1 / b)).square_()
        return where, self.inside(far, small, soft)

    def inside(self, far: Tensor, radius, soft: float = 0) -> Tensor:
        """Coverage from the squared distance in radii: 1 - far is twice the distance, nearly."""
        steep = radius * self.fine * (0.5 / self.ramp(soft))
        return (0.5 + steep - far * steep).clamp_(0, 1)

    def edge(self, distance: Tensor, soft: float = 0) -> Tensor:
        """Coverage from the distance to the edge, positive inside."""
        return (distance * (self.fine / self.ramp(soft)) + 0.5).clamp_(0, 1)


def _both(*alphas: Tensor) -> Tensor:
    """The intersection."""
    return reduce(torch.minimum, alphas)


def batch_last(colour: Tensor) -> Tensor:
    """(3, 1, 1, N) or (1, 1, 1, N) from colours (N, 3) or (1, 3)."""
    return colour.T[:, None, None]


def _tint(colour: Tensor, *gains: float) -> Tensor:
    return colour * colour.new_tensor(gains)


def _gray(value: float) -> Tensor:
    return torch.full((1, 3), value)


def background(f: Frame, n: Params) -> Tensor:
    """(3, H, W, N): a gradient from one colour to another, with a pale disc out of focus."""
    along = ((f.u * n["gradient_x"] + f.v * n["gradient_y"]) * 0.4 + 0.5).clamp_(0, 1)
    far = (f.u - n["disc_x"]).square_() + (f.v - n["disc_y"]).square_()
    one, other = batch_last(n["backdrop"]), batch_last(n["backdrop_2"])
    disc = f.inside(far * 3, 0.55, 10) * n["disc"]
    return torch.lerp(one, other, along).lerp_(other * 0.5 + 0.5, disc)


def body(f: Frame, i: Params, n: Params) -> Iterator[Layer]:
    """Clothes with stripes and a collar, and the neck with the shadow of the chin."""
    below = (f.v.detach()[:, 0] > 0.25).any(-1).sum().item()
    top = slice(len(f.rows) - below, None), slice(None)
    u, v = f.u[top], f.v[top]
    broad = i["shoulders"]
    down = (v - 1.5).clamp(max=0).square_()
    cloth = f.inside((u * (1 / broad)).square() + down * 1.9, 0.6)
    yield Layer(top, cloth, n["clothes"], BODY)
    stripes = (torch.where(n["upright"] > 0.5, u, v) * n["stripe_rate"]).sin_()
    yield Layer(top, _both(cloth, (stripes * 3).clamp_(0, 1)) * n["stripes"], n["clothes_2"], BODY)
    arm = f.edge(0.018 - (u.abs() - broad * 0.70 - 0.06 * (v - 1.3)).abs_()) * f.edge(v - 1.25)
    yield Layer(top, _both(cloth, arm) * 0.45, n["clothes"] * 0.45, None)
    neck = i["neck"]
    far = (u * (1 / (neck + 0.06))).square() + ((v - 0.72) * 4.2).square_()
    yield Layer(top, f.inside(far * 0.85, 0.2), n["clothes_2"], BODY)
    throat = f.inside((u * (1 / neck)).square_() + ((v - 0.70) * 4.8).square_(), 0.2)
    upper = _both(f.edge(neck - u.abs()), f.edge(0.72 - v), f.edge(v - 0.36))
    yield Layer(top, torch.maximum(throat, upper), i["skin"] * 0.86, BODY)
    shadow = _both(upper, f.edge(i["face_height"] + 0.13 - v, 8))
    yield Layer(top, shadow * 0.5, i["skin"] * 0.5, BODY)


def back_hair(f: Frame, i: Params, n: Params, wave: Tensor) -> Iterator[Layer]:
    """What of the hair lies behind the face: the scalp's, and long hair."""
    back = -0.10 * n["yaw"]
    width, height = i["face_width"] + i["volume"], i["face_height"] * 0.88 + i["volume"]
    where = f.window(back, -0.10, width * 1.2, height * 1.2)
    far = ((f.x[where] - back) * (1 / width)).square_()
    far += ((f.y[where] + 0.12) * (1 / height)).square_()
    yield Layer(where, f.inside(far + wave[where], width), i["hair"] * 0.72, HAIR)
    where = f.window(back, 0.03, width + 0.15, 1.2)
    x, y = f.x[where] - back, f.y[where]
    spread = 1 / (width + 0.03)
    far = (x * spread).square_() + ((y + 0.12) * 1.1).clamp_(max=0).square_()
    shape = _both(f.inside(far + wave[where], width), f.edge(i["length"] - y - wave[where] * 0.3))
    yield Layer(where, shape * i["long_hair"], i["hair"] * 0.66, HAIR)


def head(f: Frame, i: Params, n: Params, xs: Tensor, far: Tensor) -> Iterator[Layer]:
    """Ears, the face with its cheeks, and the beard."""
    w, h, ear = i["face_width"], i["face_height"], i["ear"]
    for side in (-1, 1):
        x = side * (w + 0.01) * n["yaw"].cos() - 0.16 * n["yaw"].sin()
        y = 0.03 - 0.1 * n["pitch"]
        where, shape = f.ellipse(x, y, ear * 0.62, ear)
        yield Layer(where, shape, i["skin"] * 0.92, SKIN)
        where, shape = f.ellipse(x + side * 0.005, y, ear * 0.32, ear * 0.6, 3)
        yield Layer(where, shape * 0.6, i["skin"] * 0.68, None)
    where = f.window(0.0, 0.0, w * 1.25, h * 1.25)
    face = f.inside(far[where], w)
    yield Layer(where, face, i["skin"], SKIN)
    for side in (-1, 1):
        x = side * w * 0.58 * n["yaw"].cos() + 0.3 * n["yaw"].sin()
        blush, shape = f.ellipse(x, 0.17 + 0.3 * n["pitch"], w * 0.30, w * 0.22, 10)
        yield Layer(blush, shape * i["blush"], _tint(i["skin"], 1.0, 0.62, 0.60), None)
    yield from _beard(f, i, n, xs, far)


def _beard(f: Frame, i: Params, n: Params, xs: Tensor, far: Tensor) -> Iterator[Layer]:
    """What grows below a line that falls from the ears to the lower lip, and a moustache."""
    mouth_x, mouth_y, narrow = mouth_place(i, n)
    w = i["face_width"]
    where = f.window(0.0, 0.32, w * 1.2, 0.62)
    x, y = f.x[where], f.y[where]
    t = xs[where] * (1 / w)
    line = mouth_y + i["lips"] + 0.04 + n["open"] * 0.13 - 0.60 * t.square()
    longer = far[where] - i["beard_length"] * (y > 0)
    jaw = _both(f.inside(longer, w), f.edge(y - line, 3))
    t = (x - mouth_x) * (1 / (i["mouth_width"] * narrow * 1.25))
    droop = mouth_y - i["lips"] - 0.035 - n["open"] * 0.10 + 0.07 * t.square()
    lens = 1 - t.square()
    lip = f.edge(0.068 * lens - (y - droop).abs_()) * (lens * 4).clamp(0, 1)
    dark = torch.minimum(i["hair"] * 0.7, i["skin"] * 0.4)  # or brown on brown would not show
    yield Layer(where, torch.maximum(jaw, lip) * i["beard"], dark, BEARD)


def turned(x, depth, n: Params):
    """Where a point at this side and depth of the head is seen, and how much narrower it looks."""
    cos, sin = n["yaw"].cos(), n["yaw"].sin()
    return x * cos + depth * sin, cos - 1.1 * x * sin


def mouth_place(i: Params, n: Params):
    """Where the mouth is seen, and how much narrower it looks."""
    x, narrow = turned(0.0, 0.42, n)
    y = i["mouth_y"] + 0.42 * n["pitch"] + 0.05 * n["open"]  # the lower lip goes further
    return x, y, narrow * (1 - 0.42 * n["round"] + 0.12 * n["smile"])


def eyes(f: Frame, i: Params, n: Params) -> Iterator[Layer]:
    """Lashes, white, iris, pupil and a highlight; the brow above."""
    for side in (-1, 1):
        x, narrow = turned(side * i["eye_gap"], 0.36, n)
        y = i["eye_y"] + 0.36 * n["pitch"]
        a = i["eye_size"] * narrow
        lid = n["blink"] * (1 + 0.25 * n["raise"] - 0.15 * n["smile"])
        b = i["eye_size"] * i["eye_shape"] * lid
        slant = i["eye_slant"] * side
        reach = f.reach(a, 6)
        where = f.window(x, y, a * 1.4 * reach, i["eye_size"] * 1.6 * reach)
        dx = f.x[where] - x
        dy = f.y[where] - y + dx * slant
        socket = (dx * (0.75 / a)).square() + ((dy + 0.02) * (0.66 / i["eye_size"])).square()
        yield Layer(where, f.inside(socket, a, 6) * 0.30, i["skin"] * 0.62, None)
        across = (dx * (1 / a)).square()
        lash = f.inside(across * 0.86 + ((dy + 0.022) * (1 / (b + 0.012))).square_(), b + 0.012)
        yield Layer(where, lash, i["skin"] * 0.25, EYES)
        white = f.inside(across + (dy * (1 / b)).square_(), b)
        yield Layer(where, white, _gray(0.95), EYES)
        r = i["eye_size"] * 0.62
        gx, gy = dx - n["gaze_x"] * a * 0.4 - 0.02 * n["yaw"], dy - n["gaze_y"] * b * 0.3
        far = (gx * (1 / narrow)).square_() + gy.square()
        far *= 1 / (r * r)
        yield Layer(where, _both(white, f.inside(far, r)), i["iris"], EYES)
        yield Layer(where, _both(white, f.inside(far * 4.4, r * 0.48)), _gray(0.04), EYES)
        spot = (gx + r * 0.35).square_() + (gy + r * 0.38).square_()
        spot = f.inside(spot * (1 / (0.09 * r * r)), r * 0.3)
        yield Layer(where, _both(white, spot) * 0.9, _gray(1.0), EYES)
        yield from _brow(f, i, n, side)


def brow_place(i: Params, n: Params, side: int):
    """Where a brow is seen, and how much narrower it looks."""
    x, narrow = turned(side * (i["eye_gap"] + 0.01), 0.38, n)
    y = i["eye_y"] - i["brow_gap"] - 0.075 * n["raise"] + 0.38 * n["pitch"]
    return x, y, narrow


def _brow(f: Frame, i: Params, n: Params, side: int) -> Iterator[Layer]:
    x, y, narrow = brow_place(i, n, side)
    half = i["brow_width"] * narrow
    where = f.window(x, y, half * 1.2, 0.14)
    t = (f.x[where] - x) * (side / half)  # -1 at the nose, 1 at the temple
    middle = y + i["brow_slope"] * t + i["brow_arch"] * (t.square() - 0.4)
    thick = i["brow"] * (1.08 - 0.25 * t - t.square().square_())
    ends = ((1.15 - t.abs()) * 6).clamp_(0, 1)
    hairs = f.edge(thick - (f.y[where] - middle).abs_()) * ends
    yield Layer(where, hairs, i["brows"], BROWS)


def nose(f: Frame, i: Params, n: Params) -> Iterator[Layer]:
    """A shaded side, the tip with its wings, nostrils, and a light on the bridge."""
    w, tip_y = i["nose_width"], i["eye_y"] + i["nose_length"] + 0.50 * n["pitch"]
    top_y = i["eye_y"] + 0.36 * n["pitch"]
    tip_x, root_x = turned(0.0, 0.52, n)[0], turned(0.0, 0.40, n)[0]
    where = f.window((tip_x + root_x) / 2, (tip_y + top_y) / 2, w * 1.8, i["nose_length"] + 0.06)
    x, y = f.x[where], f.y[where]
    down = ((y - top_y) / (tip_y - top_y)).clamp_(0, 1)
    x = x - (root_x + (tip_x - root_x) * down)
    half = w * (0.30 + 0.70 * down * down)
    ridge = _both(f.edge(half - x.abs(), 4), f.edge(y - top_y - 0.03, 4), f.edge(tip_y - y))
    dark = (x * (n["light_x"].sign() * -1 / w) * 1.2 + 0.5).clamp_(0, 1)
    yield Layer(where, ridge * dark * 0.55, i["skin"] * 0.70, NOSE)
    far = (x * (1 / w)).square_() + ((y - tip_y) * (1 / (w * 0.55))).square()
    yield Layer(where, f.inside(far, w * 0.55) * 0.9, i["skin"] * 0.90, NOSE)
    under = _both(f.inside(far, w * 0.55), f.edge(y - tip_y - w * 0.12, 3))
    yield Layer(where, under * 0.6, i["skin"] * 0.60, NOSE)
    holes = ((x.abs() - w * 0.45) * (3.6 / w)).square_()
    holes += ((y - tip_y - w * 0.22) * (6.0 / w)).square_()
    yield Layer(where, f.inside(holes, w * 0.2) * 0.8, i["skin"] * 0.28, NOSE)
    lit = (x * (3.2 / w)).square_() + ((y - tip_y + w * 0.2) * (2.6 / w)).square_()
    yield Layer(where, f.inside(lit, w * 0.3, 4) * 0.45, i["skin"] * 0.6 + 0.4, None)


def mouth(f: Frame, i: Params, n: Params) -> Iterator[Layer]:
    """Lips, and in an open mouth darkness, teeth and tongue."""
    x, y, narrow = mouth_place(i, n)
    half, gape = i["mouth_width"] * narrow, n["open"] * 0.125
    where = f.window(x, y, half * 1.1, 0.34)
    t2 = ((f.x[where] - x) * (1 / half)).square_()
    lens = 1 - t2
    ends = (lens * 6).clamp(0, 1)  # or a line as wide as a pixel would go on beyond the corners
    dy = f.y[where] - y + n["smile"] * 0.17 * (t2 - 0.45)  # the corners go up
    lips = f.edge((gape + i["lips"]) * lens - (dy - 0.3 * i["lips"]).abs_() + 0.010) * ends
    yield Layer(where, lips, i["lip"], MOUTH)
    upper = _both(lips, f.edge(-dy))
    yield Layer(where, upper, i["lip"] * 0.80, MOUTH)
    gap = f.edge((gape + 0.016) * lens - dy.abs() - 0.004) * ends
    yield Layer(where, gap, i["lip"] * 0.22, MOUTH)
    open_ = f.edge(gape * lens - dy.abs() - 0.012) * ends
    bite = f.edge(-dy - gape * (0.9 * n["round"] - 0.25))
    yield Layer(where, _both(open_, bite) * (n["open"] * 8).clamp(max=1), _gray(0.96), MOUTH)
    tongue = _both(open_, f.edge(dy - gape * (0.25 + 0.4 * t2)))
    yield Layer(where, tongue * n["round"], _tint(_gray(1.0), 0.75, 0.32, 0.32), MOUTH)
    shade = ((f.x[where] - x) * (1.8 / half)).square_()
    shade += ((dy - gape - i["lips"] * 1.3 - 0.045) * 26).square_()
    yield Layer(where, f.inside(shade, 0.04, 3) * 0.3, i["skin"] * 0.6, None)


def front_hair(f: Frame, i: Params, n: Params, wave: Tensor) -> Iterator[Layer]:
    """The hair over the forehead down to the hairline, strands of long hair, and a gloss."""
    back = -0.06 * n["yaw"]
    width, height = i["face_width"] + i["volume"], i["face_height"] * 0.88 + i["volume"]
    where = f.window(back, -0.30, width * 1.15, height * 0.98)
    x, y = f.x[where] - back, f.y[where]
    cap = (x * (1 / width)).square() + ((y + 0.12) * (1 / height)).square_()
    cap = f.inside(cap + wave[where], width)
    t = (x - 0.45 * n["yaw"].sin()) * (1 / i["face_width"])
    t2 = t.square()
    line = i["hairline"] + 0.25 * n["pitch"] + i["parting"] * t + i["fringe"] * t2
    line = line + i["temples"] * t2 * t2 + wave[where] * 0.35
    scalp = _both(cap, f.edge(line - y))
    yield Layer(where, scalp, i["hair"], HAIR)
    gloss = ((x - n["light_x"] * 0.25) * 2.2).square_() + ((y + 0.58) * 7).square_()
    gloss = _both(scalp, f.inside(gloss + 8 * wave[where], 0.3, 12))
    yield Layer(where, gloss * 0.35, i["hair"] * 0.65 + 0.25, None)
    strand = f.window(back, 0.30, width + 0.15, 0.9)
    x, y = (f.x[strand] - back).abs_(), f.y[strand]
    spread = (i["face_width"] + i["volume"] * 0.7 + 0.04) * (1 + 0.06 * y)
    inner = i["face_width"] * (0.86 + 0.16 * y.square())
    sides = _both(
        f.edge(spread - x - wave[strand] * 0.3),
        f.edge(x - inner - 0.12 * n["yaw"].abs()),
        f.edge(y + 0.42),
        f.edge(i["length"] - y),
    )
    yield Layer(strand, sides * i["long_hair"], i["hair"] * 0.9, HAIR)


def glasses(f: Frame, i: Params, n: Params) -> Iterator[Layer]:
    """Two rims with a faint reflection, the bridge and the temples."""
    y = i["eye_y"] + 0.02 + 0.38 * n["pitch"]
    for side in (-1, 1):
        x, narrow = turned(side * (i["eye_gap"] + 0.01), 0.40, n)
        a, b = 0.185 * narrow, 0.185 * n["lens"]
        where = f.window(x, y, a * 1.2, b * 1.25)
        far = ((f.x[where] - x) * (1 / a)).square_().clamp_(max=2)
        dy = ((f.y[where] - y) * (1 / b)).square_().clamp_(max=2)
        far = far + dy - n["angular"] * far * dy
        lens, hole = f.inside(far, b), f.inside(far * 1.7, b * 0.77)
        yield Layer(where, lens * n["glasses"] * 0.26, _gray(0.85), None)
        yield Layer(where, (lens - hole) * n["glasses"], n["frame"], WORN)
        inner, outer = turned(side * 0.06, 0.46, n)[0], x + side * a
        temple = side * (i["face_width"] + 0.02) * n["yaw"].cos() - 0.1 * n["yaw"].sin()
        for from_x, to_x in ((turned(0.0, 0.46, n)[0], inner), (outer, temple)):
            middle, half = (from_x + to_x) / 2, ((to_x - from_x) * side).clamp(min=0) / 2
            where = f.window(middle, y, half, 0.08)
            bar = f.edge(0.028 - (f.y[where] - y + 0.03).abs_())
            bar = _both(bar, f.edge(half - (f.x[where] - middle).abs_()))
            yield Layer(where, bar * n["glasses"], n["frame"], WORN)


def hat(f: Frame, i: Params, n: Params) -> Iterator[Layer]:
    """A beanie with a band, or a cap with a visor."""
    back = -0.06 * n["yaw"]
    width, top = i["face_width"] + i["volume"] * 0.6 + 0.05, i["face_height"] * 0.9 + 0.16
    brim = i["eye_y"] - i["brow_gap"] - 0.13 + 0.3 * n["pitch"]
    where = f.window(back, -0.5, width * 1.35, 0.62)
    x, y = f.x[where] - back, f.y[where] - brim
    x2 = x.square()
    far = x2 * (1 / (width * width)) + (y * (1 / (top + brim + 0.12))).square()
    dome = _both(f.inside(far, width), f.edge(-y - 0.25 * x2 + 0.06))
    yield Layer(where, dome * n["hat"], n["hat_colour"], WORN)
    light = _both(dome, f.inside(far + x * n["light_x"] * -0.7, 0.25, 12)) * n["hat"]
    yield Layer(where, light * 0.25, n["hat_colour"] * 0.5 + 0.5, None)
    band = _both(f.edge(width * 1.03 - x.abs()), f.edge(0.075 - (y + 0.25 * x2 - 0.01).abs_()))
    yield Layer(where, band * n["hat"] * (1 - n["cap"]), n["hat_colour"] * 0.7, WORN)
    x3 = f.x[where] - 0.75 * n["yaw"].sin()
    visor = (x3 * (1 / (width * 0.86))).square_() + ((y - 0.02) * 7.5).square_()
    yield Layer(where, f.inside(visor, 0.13) * n["hat"] * n["cap"], n["hat_colour"] * 0.6, WORN)


def occluder(f: Frame, i: Params, n: Params) -> Iterator[Layer]:
    """A phone or the like, held before the face."""
    cos, sin = n["held_angle"].cos(), n["held_angle"].sin()
    x, y = f.u - n["held_x"], f.v - n["held_y"]
    x, y = x * cos + y * sin, y * cos - x * sin
    held = _both(f.edge(0.26 - x.abs()), f.edge(0.42 - y.abs())) * n["occluder"]
    everywhere = slice(None), slice(None)
    yield Layer(everywhere, held, n["held"], WORN)
    rim = _both(f.edge(0.20 - x.abs()), f.edge(0.36 - y.abs()))
    yield Layer(everywhere, rim * n["occluder"], n["held"] * 0.35, WORN)

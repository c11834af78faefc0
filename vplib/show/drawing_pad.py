"""A pad to draw a digit on, and what becomes of it."""

from collections.abc import Callable
from pathlib import Path

import anywidget
import ipywidgets
import numpy as np
import torch
import traitlets
from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import Tensor

from vplib import experiment
from vplib.show import widgets


class DrawingPad(anywidget.AnyWidget):
    """The pad: `sent` counts up when the reader has drawn and pressed the button."""

    _esm = Path(__file__).with_suffix(".js")
    image_size = traitlets.Int(28).tag(sync=True)
    action = traitlets.Unicode("send").tag(sync=True)
    pixels = traitlets.List(traitlets.Float()).tag(sync=True)
    sent = traitlets.Int(0).tag(sync=True)


def draw(
    work: Callable[[Tensor], Figure | str], example: Tensor, *, action: str = "send"
) -> DrawingPad | None:
    """Lets the reader draw a digit, and shows what `work` makes of it, beside the pad.

    Where no front end listens, it shows what `work` makes of the example.

    Args:
        work: from the drawing, (1, 1, H, W) in [0, 1] and framed as MNIST's digits, to what to
            show.
        example: (1, H, W) in [0, 1].
        action: on the button.

    Returns:
        The pad, or None without a front end.
    """
    if not experiment.has_front_end():
        display(HTML(widgets.embedded(work(example[None]))))
        return None
    pad, view = DrawingPad(image_size=example.shape[-1], action=action), ipywidgets.HTML()

    def asked(_change):
        view.value = "working"
        pixels = torch.tensor(pad.pixels).view(1, pad.image_size, pad.image_size)
        widgets.show_in(view, lambda: widgets.embedded(work(framed(pixels)[None])))

    pad.observe(asked, "sent")
    display(ipywidgets.HBox([pad, view]))
    return pad


def framed(image: Tensor) -> Tensor:
    """A drawing framed as MNIST's digits are: scaled into 20 of 28 pixels, its mass in the middle.

    Args:
        image: (1, H, W) in [0, 1], bright on dark.

    Returns:
        (1, H, W) in [0, 1].

    Raises:
        ValueError: nothing is drawn.

    Source:
        LeCun et al., Gradient-based learning applied to document recognition, 1998, section III.
    """
    from scipy import ndimage
    from skimage.transform import resize

    pixels, size = image[0].numpy(), image.shape[-1]
    rows, columns = (np.flatnonzero((pixels > 0.1).any(axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError("nothing is drawn yet: draw a digit, then press the button")
    part = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    zoom = size * 20 / 28 / max(part.shape)
    part = resize(part, [max(1, round(n * zoom)) for n in part.shape], anti_aliasing=zoom < 1)
    found = np.zeros((size, size), np.float32)
    top, left = ((size - n) // 2 for n in part.shape)
    found[top : top + part.shape[0], left : left + part.shape[1]] = part
    middle = np.array(ndimage.center_of_mass(found))
    found = ndimage.shift(found, (size - 1) / 2 - middle, order=1)
    return torch.from_numpy(found).clamp(0, 1)[None]

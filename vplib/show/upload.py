"""A photo of the reader's own: chosen, worked on, and gone again."""

import base64
import html
from collections.abc import Callable

import ipywidgets
from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import Tensor

from vplib import experiment
from vplib.datasets import folder
from vplib.show import widgets


def upload_photo(
    work: Callable[[Tensor], tuple[Figure | str, bytes]], *, image_size: int, name: str
) -> None:
    """Lets the reader choose a photo of their own; shows what `work` makes of it, to download.

    The photo goes from the browser to this kernel and nowhere else. It is dropped from the widget
    once it is read, and "Clear" empties the view, so that a saved notebook does not hold it.
    Where no front end listens, it says so and does nothing.

    Args:
        work: from the photo, (1, 3, image_size, image_size) in [0, 1], to what to show and the
            bytes of a PNG file to download.
        image_size: what the photo's middle square is scaled to, in pixels.
        name: of the file to download.
    """
    if not experiment.has_front_end():
        display(HTML("<p>No browser is connected: nobody can choose a photo here.</p>"))
        return
    upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="choose a photo")
    upload.layout.width = "max-content"  # the default cuts the text off
    clear = ipywidgets.Button(description="Clear", tooltip="before saving the notebook")
    view = ipywidgets.HTML()

    def worked(file, data):
        shown, made = work(folder.read_photo(data, image_size, file))
        return widgets.embedded(shown) + download_link(made, name)

    def chosen(_change):
        files = uploaded_files(upload.value)
        if not files:
            return  # it was emptied just below
        view.value = "working"
        widgets.show_in(view, lambda: worked(*files[0]))
        _empty(upload)

    upload.observe(chosen, "value")
    clear.on_click(lambda _button: setattr(view, "value", ""))
    display(ipywidgets.VBox([ipywidgets.HBox([upload, clear]), view]))


def uploaded_files(value: dict | tuple) -> list[tuple[str, bytes]]:
    """The names and contents in `FileUpload.value`, whichever ipywidgets made it.

    Args:
        value: in ipywidgets 7 a dict from names to {"content": bytes, ...}; in 8 a tuple of
            {"name": str, "content": memoryview, ...}.
    """
    named = value.items() if isinstance(value, dict) else ((file["name"], file) for file in value)
    return [(name, bytes(file["content"])) for name, file in named]


def _empty(upload: ipywidgets.FileUpload) -> None:
    """Drops what was uploaded, in ipywidgets 7 and 8."""
    if hasattr(upload, "_counter"):  # 7: the value follows from three others
        upload.data, upload.metadata, upload._counter = [], [], 0
    else:
        upload.value = ()


def download_link(data: bytes, name: str) -> str:
    """HTML of a link that saves these bytes of a PNG file under this name; nothing is sent."""
    link = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    name, look = html.escape(name, quote=True), "padding:6px 12px;border:1px solid"
    return f'<p><a download="{name}" style="{look}" href="{link}">download {name}</a></p>'

"""Live controls over results that an ordinary cell has already drawn."""

import base64
import html
import io
from collections.abc import Callable

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure
from torch import Tensor

from vplib import experiment
from vplib.datasets import folder

MAX_CONTROLS = 4


def explore(render: Callable[..., Figure | str], **controls: ipywidgets.Widget) -> None:
    """Shows what `render` returns, again whenever a control moves.

    Where no front end listens (papermill, nbval, a report) it is drawn once, as plain PNG or
    HTML, with the controls' first values.

    Args:
        render: a pure function from the controls' values to a Figure, its Axes, or HTML; it takes
            less than 0.3 s, so slow work is computed before.
        **controls: one to four ipywidgets by argument name, each with a description.

    Raises:
        ValueError: there are more than four controls or none, or one has no description.
    """
    if not 1 <= len(controls) <= MAX_CONTROLS:
        raise ValueError(f"explore takes 1 to {MAX_CONTROLS} controls, not {len(controls)}")
    for name, control in controls.items():
        if not getattr(control, "description", ""):
            raise ValueError(f"control {name!r} needs a description, with its unit")
    if not experiment.has_front_end():
        shown = _drawn(render, controls)
        display(Image(shown) if isinstance(shown, bytes) else HTML(shown))
        return
    view = ipywidgets.HTML()

    def update(_change=None):
        try:
            shown = _drawn(render, controls)
        except Exception as error:  # a callback's traceback would go nowhere
            shown = f"<pre>{html.escape(f'{type(error).__name__}: {error}')}</pre>"
        if isinstance(shown, bytes):
            data = base64.b64encode(shown).decode()
            state = ", ".join(f"{c.description} {c.value}" for c in controls.values())
            alt = html.escape(f"figure for {state}", quote=True)
            shown = f'<img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{data}">'
        view.value = shown

    for control in controls.values():
        control.style = {"description_width": "initial"}
        control.layout.width = "500px"  # a long description would leave the slider no track
        control.observe(update, "value")
    update()
    display(ipywidgets.VBox([*controls.values(), view]))


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
    clear = ipywidgets.Button(description="Clear", tooltip="before saving the notebook")
    view = ipywidgets.HTML()

    def chosen(_change):
        files = uploaded_files(upload.value)
        if not files:
            return  # it was emptied just below
        view.value = "working"
        try:
            photo = folder.read_photo(files[0][1], image_size, files[0][0])
            shown, made = work(photo)
            view.value = embedded(shown) + download_link(made, name)
        except Exception as error:  # a callback's traceback would go nowhere
            view.value = f"<pre>{html.escape(str(error))}</pre>"
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
    if isinstance(value, dict):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


def _empty(upload: ipywidgets.FileUpload) -> None:
    """Drops what was uploaded, in ipywidgets 7 and 8."""
    if hasattr(upload, "_counter"):  # 7: the value follows from three others
        upload.data, upload.metadata, upload._counter = [], [], 0
    else:
        upload.value = ()


def download_link(data: bytes, name: str) -> str:
    """HTML of a link that saves these bytes of a PNG file under this name; nothing is sent."""
    link = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    name = html.escape(name, quote=True)
    return f'<p><a download="{name}" href="{link}">download {name}</a></p>'


def embedded(shown: Figure | str) -> str:
    """HTML that holds a figure as PNG, or the HTML that was given."""
    if isinstance(shown, str):
        return shown
    data = base64.b64encode(_png(shown)).decode()
    return f'<img alt="the result" style="max-width:100%" src="data:image/png;base64,{data}">'


def _png(result) -> bytes:
    figure = result if isinstance(result, Figure) else result.figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return buffer.getvalue()


def _drawn(render, controls) -> bytes | str:
    result = render(**{name: control.value for name, control in controls.items()})
    if isinstance(result, str):
        return result
    return _png(result)

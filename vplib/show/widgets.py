"""Live controls over results that an ordinary cell has already drawn."""

import base64
import html
import io
from collections.abc import Callable

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure

from vplib import experiment

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

    def drawn():
        return render(**{name: control.value for name, control in controls.items()})

    if not experiment.has_front_end():
        shown = drawn()
        display(HTML(shown) if isinstance(shown, str) else Image(_png(shown)))
        return
    view = ipywidgets.HTML()

    def update(_change=None):
        state = ", ".join(f"{c.description} {c.value}" for c in controls.values())
        show_in(view, lambda: embedded(drawn(), f"figure for {state}"))

    for control in controls.values():
        control.style = {"description_width": "initial"}
        control.layout.width = "500px"  # a long description would leave the slider no track
        control.observe(update, "value")
    update()
    display(ipywidgets.VBox([*controls.values(), view]))


def show_in(view: ipywidgets.HTML, make: Callable[[], str]) -> None:
    """Puts HTML into a view, or the error of making it: a callback's traceback would go nowhere.

    Args:
        view: where.
        make: returns the HTML.
    """
    try:
        view.value = make()
    except Exception as error:
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        view.value = f"<pre>{html.escape(said)}</pre>"


def embedded(shown: Figure | str, alt: str = "the result") -> str:
    """HTML that holds a figure as PNG with a text for who cannot see it, or the HTML given."""
    if isinstance(shown, str):
        return shown
    data, alt = base64.b64encode(_png(shown)).decode(), html.escape(alt, quote=True)
    return f'<img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{data}">'


def _png(result) -> bytes:
    figure = result if isinstance(result, Figure) else result.figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return buffer.getvalue()

"""Values that travel inside an executed notebook, where sweeps and reports read them."""

import math

MIME = "application/vnd.vplib+json"


def record(name: str, value) -> None:
    """Puts a number or a short text into the executed notebook, where sweeps and reports read it.

    Args:
        name: what the value is, with its unit.
        value: a number, a string or a list of them (a 0-d tensor counts as a number).

    Raises:
        TypeError: the value cannot be written as JSON.
    """
    value = plain(value)
    emit({"record": {"name": name, "value": value}}, f"{name}: {value}")


def plain(value):
    """A value as JSON has it: numbers, texts and lists of them."""
    if hasattr(value, "tolist"):  # of numpy or torch
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN and no infinity
    if not isinstance(value, bool | int | float | str | None):
        raise TypeError(f"can record numbers, texts and lists of them, not {type(value).__name__}")
    return value


def display():
    """IPython's display inside a kernel, else None."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return None
    return display if getattr(get_ipython(), "kernel", None) is not None else None


def emit(payload: dict, text: str, html: str | None = None) -> None:
    """Shows text (and HTML) to the reader and the payload to whoever parses the notebook."""
    show = display()
    if show is None:
        print(text)
        return
    bundle = {"text/plain": text, MIME: payload} | ({"text/html": html} if html else {})
    show(bundle, raw=True)

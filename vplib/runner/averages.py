"""The numbers of a sweep's points: their averages over the seeds, and charts of them."""

import base64
import io
import statistics
import textwrap


def groups(points: list[dict]) -> dict[str, list[dict]]:
    """The points that differ in their seed only, by what they have in common, in words.

    Args:
        points: what `report.brief` says of each executed notebook.
    """
    found: dict[str, list[dict]] = {}
    for point in points:
        chosen = [f"{k}={point['parameters'][k]}" for k in point["swept"] if k != "SEED"]
        found.setdefault(", ".join(chosen) or "all points", []).append(point)
    return found


def numbers(points: list[dict]) -> dict[str, list[float]]:
    """The finite numbers of all points by name; the elements of a list have names of their own."""
    found: dict[str, list[float]] = {}
    for name, value in (pair for point in points for pair in point["measured"].items()):
        for place, element in enumerate(value if isinstance(value, list) else [value], 1):
            if isinstance(element, int | float) and abs(element) < 1e150:  # whose square is finite
                label = f"{name} [{place}]" if isinstance(value, list) else name
                found.setdefault(label, []).append(element)
    return found


def mean(values: list[float]) -> str:
    """The mean, and with two values or more its standard error."""
    if len(values) < 2:
        return f"{values[0]:.4g}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.4g} ± {error:.2g}"


def charts(points: list[dict]) -> list[dict]:
    """Each number against the first swept parameter that is one, with bands over the seeds.

    Returns:
        png (base64) and caption of each chart; none if no such parameter was swept, none for a
        number that some point lacks, and none for one that is the same everywhere.
    """
    import matplotlib.pyplot as plt

    from vplib.show import plots

    swept = [name for name in points[0]["swept"] if name != "SEED"]
    places = {name: {point["parameters"][name] for point in points} for name in swept}
    numeric = [k for k, v in places.items() if len(v) > 1 and {*map(type, v)} <= {int, float}]
    lines, found = {}, []  # points by line and place on the axis
    for point in points if numeric else ():
        line = ", ".join(f"{k}={point['parameters'][k]}" for k in swept if k != numeric[0])
        at = lines.setdefault(line, {})
        at.setdefault(point["parameters"][numeric[0]], []).append(point)
    repeats = {len(seeds) for at in lines.values() for seeds in at.values()}
    drawn = numbers(points) if len(repeats) == 1 and len(lines) <= len(plots.COLORS) else {}
    for name, values in drawn.items():
        if len(values) < len(points) or len(set(values)) == 1:
            continue
        figure, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
        for index, (line, at) in enumerate(lines.items()):
            x = sorted(at)
            plots.line_with_band(x, [numbers(at[place])[name] for place in x], line, ax, index)
        what = textwrap.fill(name.removeprefix("claim: "), 40)
        ax.set(xlabel=plots.verbatim(numeric[0]), ylabel=plots.verbatim(what))
        if len(lines) > 1:
            ax.legend()
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        plt.close(figure)
        caption = f"{name} against {numeric[0]}: mean of {max(repeats)} points, two standard errors"
        png = base64.b64encode(file.getvalue()).decode()
        found.append({"png": png, "caption": caption})
    return found

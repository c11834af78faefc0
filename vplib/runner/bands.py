"""What the points of a sweep say together: claims and recorded values, as bands over the seeds."""

import base64
import io
import re
import statistics
from collections import Counter

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
MAX_LINES = 7  # in one chart: as many as there are colors


def band(texts: list[str]) -> str:
    """Texts that differ in their numbers only, as one: each number as median (lowest to highest).

    Args:
        texts: of each point the same sentence, for example "0.61 to 0.83".

    Returns:
        That sentence with the bands; all different sentences if the words differ.
    """
    if len({NUMBER.sub("#", text) for text in texts}) != 1:
        return " | ".join(dict.fromkeys(texts))
    found = iter(zip(*(NUMBER.findall(text) for text in texts), strict=True))

    def together(_):
        written = next(found)
        ordered = sorted(written, key=float)
        if len(set(ordered)) == 1:
            return ordered[0]
        middle = statistics.median(map(float, ordered))
        places = max(len(text.partition(".")[2]) for text in written)
        shown = f"{middle:.{places}f}" if not any("e" in t for t in written) else f"{middle:.2g}"
        return f"{shown} ({ordered[0]} to {ordered[-1]})"

    return NUMBER.sub(together, texts[0])


def groups(points: list[dict]) -> dict[str, list[dict]]:
    """The points that differ in their seed only, by what they have in common, in words.

    Args:
        points: what `report.brief` says of each executed notebook.
    """
    found: dict[str, list[dict]] = {}
    for point in points:
        chosen = [k for k in point["swept"] if k != "SEED"]
        label = ", ".join(f"{k}={point['parameters'][k]}" for k in chosen)
        found.setdefault(label or "all points", []).append(point)
    return found


def claim_rows(points: list[dict]) -> list[tuple[str, ...]]:
    """Each claim in each group: claim, group, paper, ours as a band, and how often it held."""
    rows, sets = [], groups(points)
    every = dict.fromkeys((r["of"], r["claim"]) for point in points for r in point["claims"])
    for key in every:
        for label, members in sets.items():
            said = [r for p in members for r in p["claims"] if (r["of"], r["claim"]) == key]
            if said:
                ours, paper = band([r["ours"] for r in said]), band([r["paper"] for r in said])
                counted = Counter(r["outcome"] for r in said).most_common()
                ends = ", ".join(f"{outcome} in {n} of {len(said)}" for outcome, n in counted)
                rows.append((": ".join(key), label, paper, ours, ends))
    return rows


def values(points: list[dict]) -> dict[str, dict[str, list[float]]]:
    """The recorded numbers by name and group; the elements of a list are names of their own."""
    found: dict[str, dict[str, list[float]]] = {}
    for label, members in groups(points).items():
        for point in members:
            for name, value in point["records"].items():
                single = not isinstance(value, list)
                for i, number in enumerate([value] if single else value, 1):
                    if isinstance(number, int | float):
                        place = name if single else f"{name} [{i}]"
                        found.setdefault(place, {}).setdefault(label, []).append(number)
    return found


def value_rows(points: list[dict]) -> list[tuple[str, ...]]:
    """Each recorded number in each group: name, group, count, mean, its standard error, range."""
    rows = []
    for name, by_group in values(points).items():
        for label, numbers in by_group.items():
            error = "one point only"
            if len(numbers) > 1:
                error = f"{statistics.stdev(numbers) / len(numbers) ** 0.5:.2g}"
            ends = f"{min(numbers):.4g} to {max(numbers):.4g}"
            mean = f"{statistics.fmean(numbers):.4g}"
            rows.append((name, label, str(len(numbers)), mean, error, ends))
    return rows


def charts(points: list[dict]) -> list[dict]:
    """Each recorded number against the swept parameter that is a number, with bands over seeds.

    Returns:
        png (base64), caption and alt of each chart; none if no such parameter was swept, none for a
        value that some point lacks, and none for one that is the same everywhere.
    """
    numeric = [
        name
        for name in points[0]["swept"]
        if name != "SEED"
        and all(type(point["parameters"][name]) in (int, float) for point in points)
        and len({point["parameters"][name] for point in points}) > 1
    ]
    if not numeric:
        return []
    import matplotlib.pyplot as plt

    from vplib.show import plots

    x_name, found = numeric[0], []
    where: dict[str, dict[float, str]] = {}  # line, place on the axis, group
    for label, (first, *_) in groups(points).items():
        rest = [f"{k}={first['parameters'][k]}" for k in first["swept"] if k != "SEED"]
        line = ", ".join(text for text in rest if not text.startswith(f"{x_name}="))
        where.setdefault(line, {})[first["parameters"][x_name]] = label
    for name, by_group in values(points).items():
        counts = {len(by_group.get(label, ())) for p in where.values() for label in p.values()}
        constant = len({number for numbers in by_group.values() for number in numbers}) == 1
        if constant or len(counts) > 1 or len(where) > MAX_LINES:
            continue
        figure, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
        for index, (line, places) in enumerate(where.items()):
            x = sorted(places)
            plots.line_with_band(x, [by_group[places[v]] for v in x], line, ax, index)
        ax.set(xlabel=x_name, ylabel=name)
        if len(where) > 1:
            ax.legend()
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        plt.close(figure)
        caption = f"{name} against {x_name}: mean of {counts.pop()} points and two standard errors"
        alt = f"{caption}; its numbers stand in the table of recorded values"
        png = base64.b64encode(file.getvalue()).decode()
        found.append({"png": png, "caption": caption, "alt": alt})
    return found

"""The numbers of a sweep's points: their averages over the seeds, and charts of them."""

import base64
import io
import statistics
import textwrap
from collections import Counter

MAX_LINES = 7  # in one chart: as many as there are colors


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


def summary(numbers: list[float]) -> tuple[str, ...]:
    """Count, mean, standard error of the mean, and range, as texts."""
    mean, error = f"{statistics.fmean(numbers):.4g}", "one point only"
    if len(numbers) > 1:
        error = f"{statistics.stdev(numbers) / len(numbers) ** 0.5:.2g}"
    return str(len(numbers)), mean, error, f"{min(numbers):.4g} to {max(numbers):.4g}"


def number_rows(points: list[dict]) -> list[tuple[str, ...]]:
    """Each number in each group: name, group, and its `summary`."""
    rows = []
    for name in dict.fromkeys(name for point in points for name in point["numbers"]):
        for label, members in groups(points).items():
            if numbers := [p["numbers"][name] for p in members if name in p["numbers"]]:
                rows.append((name, label, *summary(numbers)))
    return rows


def claim_rows(points: list[dict]) -> list[tuple[str, ...]]:
    """Each claim in each group: claim, group, paper, means, how often its control and it held."""
    rows = []
    for key in dict.fromkeys((r["of"], r["claim"]) for point in points for r in point["claims"]):
        for label, members in groups(points).items():
            said = [r for p in members for r in p["claims"] if (r["of"], r["claim"]) == key]
            if not said:
                continue
            start, means = f"claim: {': '.join(key)}: ", []
            for name, _, _, mean, error, _ in number_rows(members):
                if name.startswith(start):
                    spread = "" if error == "one point only" else f" ± {error}"
                    means.append(f"{name.removeprefix(start)} {mean}{spread}")
            controls = {True: "holds too", False: "does not hold", None: "none"}
            rows.append(
                (
                    ": ".join(key) + " (headline)" * said[0]["headline"],
                    label,
                    said[0]["paper"],
                    "; ".join(means),
                    _counted([controls[r["control"]] for r in said]),
                    _counted([r["outcome"] for r in said]),
                )
            )
    return rows


def _counted(words):
    return ", ".join(f"{word} in {n} of {len(words)}" for word, n in Counter(words).most_common())


def charts(points: list[dict]) -> list[dict]:
    """Each number against the first swept parameter that is one, with bands over the seeds.

    Returns:
        png (base64), caption and alt of each chart; none if no such parameter was swept, none for a
        number that some point lacks, and none for one that is the same everywhere.
    """
    import matplotlib.pyplot as plt

    from vplib.show import plots

    for axis in points[0]["swept"]:
        places = [point["parameters"][axis] for point in points]
        if axis != "SEED" and {*map(type, places)} <= {int, float} and len({*places}) > 1:
            break
    else:
        return []
    lines: dict[str, dict[float, list[dict]]] = {}  # the numbers at each place of each line
    for point, place in zip(points, places, strict=True):
        rest = [k for k in point["swept"] if k not in ("SEED", axis)]
        line = ", ".join(f"{k}={point['parameters'][k]}" for k in rest)
        lines.setdefault(line, {}).setdefault(place, []).append(point["numbers"])
    repeats = {len(seeds) for line in lines.values() for seeds in line.values()}
    if len(repeats) > 1 or len(lines) > MAX_LINES:
        return []
    found = []
    for name in points[0]["numbers"]:
        if len({point["numbers"].get(name) for point in points}) == 1:
            continue
        if any(name not in point["numbers"] for point in points):
            continue
        figure, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
        for index, (line, at) in enumerate(lines.items()):
            values = [[seed[name] for seed in at[x]] for x in sorted(at)]
            plots.line_with_band(sorted(at), values, line, ax, index)
        ax.set(xlabel=axis, ylabel=textwrap.fill(name.removeprefix("claim: "), 40))
        if len(lines) > 1:
            ax.legend()
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        plt.close(figure)
        caption = f"{name} against {axis}: mean of {max(repeats)} points and two standard errors"
        alt = f"{caption}; its numbers stand in the table of numbers"
        png = base64.b64encode(file.getvalue()).decode()
        found.append({"png": png, "caption": caption, "alt": alt})
    return found

"""Figures: each function draws on an Axes, returns it, and leaves showing to the notebook."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from vplib.show import metrics

# Okabe and Ito's palette: told apart with any colour vision; line styles and markers repeat it.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FPRS = (0.01, 0.001)  # marked on ROC curves; the first one is named in the legend
CHANCE = dict(color="0.5", lw=1, ls="-", zorder=1)
FLOOR = dict(color="0.2", lw=1, ls=(0, (1, 2)), zorder=1)


def use_style() -> None:
    """One look for all figures; call it once, in the setup cell."""
    plt.style.use(Path(__file__).with_suffix(".mplstyle"))
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=COLORS, linestyle=STYLES)


def verbatim(text) -> str:
    """A text of the reader's, such as the name of a class, for matplotlib to draw as it is.

    Otherwise a pair of $ is read as a formula, and a legend leaves out what begins with "_".

    Args:
        text: anything with a text.
    """
    text = str(text).encode(errors="backslashreplace").decode().replace("$", r"\$")
    return "\u200b" + text if text.startswith("_") else text  # a space of no width


def roc_curves(attacks: dict[str, tuple[Tensor, Tensor]], ax: Axes | None = None) -> Axes:
    """Membership ROC curves on log-log axes, with the true-positive rate at low ones marked.

    The intervals resample victims where scores are (victims, records), and are Clopper-Pearson's
    for one victim. A false-positive rate that the nonmembers cannot resolve is left out.

    Args:
        attacks: by name, the scores (higher means member) and the members' truth values.
        ax: where to draw; a new figure by default.

    Returns:
        The Axes.
    """
    ax = ax or plt.subplots()[1]
    for i, (name, (scores, members)) in enumerate(attacks.items()):
        look = dict(color=COLORS[i % len(COLORS)])
        fpr, tpr = metrics.roc(scores, members)
        label = f"{verbatim(name)}: AUC {metrics.auc(scores, members):.3f}"
        for j, at in enumerate(FPRS):
            if int((~members).sum()) * at < 10:
                continue
            found = _tpr(scores, members, at)
            if j == 0:
                label += f", TPR {found.value:.1%} at {at * 100:g}% FPR"
            spread = [[max(found.value - found.low, 0)], [max(found.high - found.value, 0)]]
            where = at * 1.04 ** (i - (len(attacks) - 1) / 2)  # side by side, not on top
            marker = MARKERS[i % len(MARKERS)]
            ax.errorbar(where, found.value, spread, marker=marker, capsize=3, ms=5, **look)
        ax.plot(fpr, tpr, label=label, linestyle=STYLES[i % len(STYLES)], **look)
    lowest = 1e-4
    ax.plot([lowest, 1], [lowest, 1], label="chance", **CHANCE)
    ax.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1.05))
    ax.set(xlabel="false-positive rate", ylabel="true-positive rate")
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.14), fontsize="small")
    return ax


def line_with_band(x, values, label: str, ax: Axes | None = None, index: int = 0) -> Axes:
    """The mean over repeats as a line, with a band of two standard errors.

    Args:
        x: (P,) points of the sweep.
        values: (P, R) the value of each repeat at each point.
        label: for the legend.
        ax: where to draw; a new figure by default.
        index: which colour, line style and marker.

    Returns:
        The Axes.
    """
    ax = ax or plt.subplots()[1]
    x = _array(x) if isinstance(x, Tensor) else x
    mean, low, high = np.transpose([_interval(repeats) for repeats in values])
    i = index % len(COLORS)
    look = dict(color=COLORS[i], linestyle=STYLES[i], marker=MARKERS[i], ms=5)
    ax.plot(x, mean, label=verbatim(label), **look)
    ax.fill_between(x, low, high, color=COLORS[i], alpha=0.15, lw=0)
    return ax


def chance(ax: Axes, value: float, label: str = "chance", axis: str = "y") -> Axes:
    """A line where an attack that guesses stands, for the legend.

    Args:
        ax: where to draw.
        value: what guessing attains, on that axis.
        label: for the legend.
        axis: "y" for a horizontal line, "x" for a vertical one.
    """
    (ax.axhline if axis == "y" else ax.axvline)(float(value), label=verbatim(label), **CHANCE)
    return ax


def floor(ax: Axes, value: float, label: str = "best guess without the model", axis: str = "y"):
    """As `chance`, dotted: the best guess without the model, which an attack has to beat."""
    (ax.axhline if axis == "y" else ax.axvline)(float(value), label=verbatim(label), **FLOOR)
    return ax


def bars(values: dict, ax: Axes | None = None) -> Axes:
    """A horizontal bar for each name, with its interval and its number.

    Args:
        values: by name, from top to bottom: an Estimate, a number, or the values of repeats, of
            which the mean and two standard errors are drawn.
        ax: where to draw; a new figure by default.

    Returns:
        The Axes.
    """
    ax = ax or plt.subplots(figsize=(6.4, 0.6 + 0.4 * len(values)))[1]
    mean, low, high = np.transpose([_interval(value) for value in values.values()])
    spread = np.maximum([mean - low, high - mean], 0)
    places = range(len(values))
    ax.barh(places, mean, 0.6, xerr=spread, color=COLORS[5], capsize=3)
    for place, value, end in zip(places, mean, high, strict=True):
        ax.annotate(f"{value:.2f}", (end, place), (4, 0), textcoords="offset points", va="center")
    ax.set_yticks(places, map(verbatim, values))
    ax.invert_yaxis()
    ax.margins(x=0.12)
    return ax


def privacy_utility(
    points: dict[str, tuple[float, float, float]],
    xlabel: str,
    *,
    clean: float,
    guessing: float,
    ax: Axes | None = None,
) -> Axes:
    """What protections leave: the strongest attacker's accuracy against the use of the photos.

    Up is worse for privacy, right is better for use. The naive attacker's accuracy stands hollow
    below: the distance is what an evaluation without a parrot overlooks.

    Args:
        points: by protection, its utility, the strongest attacker's accuracy, and the naive one's.
            Names that begin with the same words, up to a number, are one kind, of which the points
            are joined: "blur 1/8", "blur 1/4".
        xlabel: what utility is measured as.
        clean: the strongest attacker's accuracy on unprotected photos.
        guessing: accuracy of a guess.
        ax: where to draw; a new figure by default.

    Returns:
        The Axes.
    """
    ax = ax or plt.subplots(figsize=(8, 4.8))[1]
    kinds = {}
    for name in points:
        kinds.setdefault(re.sub(r"\b[\d./x]+\b", "", name).strip(), []).append(name)
    for i, (kind, names) in enumerate(kinds.items()):
        look = dict(color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], ms=7)
        x, top, naive = np.transpose([_array(list(points[name])) for name in names])
        ax.vlines(x, naive, top, color=look["color"], lw=0.8, alpha=0.6)
        ax.plot(x, naive, ls="", mfc="white", **look)
        ax.plot(x, top, lw=1, ls="-", label=kind, **look)
        for name, *at in zip(names, x, top, strict=True):
            if name != kind:
                label = name.replace(kind, "").strip() or name
                ax.annotate(label, at, (4, 4), textcoords="offset points", fontsize="x-small")
    ax.axhline(float(clean), color="k", lw=1, ls="--", label="unprotected")
    chance(ax, guessing, "guessing")
    ax.set(xlabel=xlabel, ylabel="photos that get the right name", ylim=(0, 1.05))
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    ax.set_title("full: strongest attacker; hollow: naive attacker", fontsize="medium")
    return ax


def histogram_pair(
    members: Tensor,
    nonmembers: Tensor,
    xlabel: str,
    mark: float | None = None,
    bins: int = 40,
    ax: Axes | None = None,
    names: tuple[str, str, str] = ("members", "nonmembers", "threshold"),
) -> Axes:
    """Two overlaid histograms, members against nonmembers, as shares of each group.

    Args:
        members: (M,) values.
        nonmembers: (N,) values.
        xlabel: what the values are, with their unit.
        mark: a value to mark, such as a decision threshold.
        bins: number of bins.
        ax: where to draw; a new figure by default.
        names: of the two groups and of the mark.

    Returns:
        The Axes.
    """
    ax = ax or plt.subplots()[1]
    groups = [_array(v) for v in (members, nonmembers)]
    names, both = [verbatim(name) for name in names], np.concatenate(groups)
    edges = np.linspace(both.min(), both.max() + 1e-9, bins + 1)
    for i, (group, name) in enumerate(zip(groups, names[:2], strict=True)):
        share = np.full(len(group), 1 / max(len(group), 1))
        hatch = ("//", "\\\\")[i]
        look = dict(color=COLORS[i], alpha=0.45, edgecolor=COLORS[i], hatch=hatch, label=name)
        ax.hist(group, edges, weights=share, histtype="stepfilled", **look)
    if mark is not None:
        ax.axvline(float(mark), color="k", ls="--", lw=1.2, label=f"{names[2]} {float(mark):.3g}")
    ax.set(xlabel=verbatim(xlabel), ylabel="share of group")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(fontsize="small")
    return ax


def matrix(
    values,
    rows,
    columns,
    ax: Axes | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Axes:
    """A table of numbers, coloured by value and with each number written out.

    Several of them share a scale by `vmin` and `vmax`, and one colour bar by
    `figure.colorbar(axes[0].images[0], ax=axes)`.

    Args:
        values: (R, C) numbers.
        rows: R names.
        columns: C names.
        ax: where to draw; a new figure by default.
        vmin: the number at the dark end; the smallest by default.
        vmax: the number at the bright end; the largest by default.

    Returns:
        The Axes.
    """
    ax = ax or plt.subplots()[1]
    values = _array(values)
    drawn = ax.imshow(values, cmap="cividis", aspect="auto", vmin=vmin, vmax=vmax)
    for (i, j), value in np.ndenumerate(values):
        dark = drawn.norm(value) < 0.5
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="w" if dark else "k")
    ax.set_xticks(range(len(columns)), map(verbatim, columns), rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), map(verbatim, rows))
    ax.grid(False)
    return ax


def image_row(images: Tensor, titles=None, axes=None):
    """Images side by side, on one scale from 0 to 1.

    Args:
        images: (N, C, H, W) in [0, 1].
        titles: N short texts, for example a metric each.
        axes: N Axes to draw on; a new figure by default.

    Returns:
        The N Axes.
    """
    n = len(images)
    if axes is None:
        axes = plt.subplots(1, n, figsize=(1.4 * n, 1.8), squeeze=False)[1][0]
    for i, ax in enumerate(axes):
        pixels = images[i].detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
        ax.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, vmin=0, vmax=1)
        ax.set_axis_off()
        if titles is not None:
            ax.set_title(verbatim(titles[i]), fontsize="small")
    return axes


def image_strips(rows: dict[str, Tensor], ax: Axes | None = None, num_images: int = 8) -> Axes:
    """A row of images for each name, all as one picture, on one scale from 0 to 1.

    Args:
        rows: by name, (N, C, H, W) in [0, 1]; the shortest row decides how many are shown.
        ax: where to draw; a new figure by default.
        num_images: at most so many of a row are shown.

    Returns:
        The Axes.
    """
    ax = ax or plt.subplots(figsize=(8, 0.95 * len(rows)))[1]
    shown = min(num_images, *map(len, rows.values()))
    framed = [F.pad(images[:shown].detach().cpu(), (2,) * 4, value=1) for images in rows.values()]
    sheet = torch.cat([torch.cat(list(images), -1) for images in framed], -2).clamp(0, 1)
    pixels = sheet.permute(1, 2, 0).numpy()
    ax.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, vmin=0, vmax=1)
    height = len(pixels) / len(rows)
    ax.set_yticks([height * (i + 0.5) for i in range(len(rows))], map(verbatim, rows))
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def _array(values) -> np.ndarray:
    """Numbers of numpy, from tensors on any device, or lists of such."""
    if isinstance(values, list | tuple):
        return np.array([_array(v) for v in values])
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    return np.asarray(values, dtype=float)


def _interval(value) -> metrics.Estimate:
    """The mean of repeats and two standard errors; an estimate or a number is what it is."""
    if isinstance(value, metrics.Estimate):
        return value
    repeats = _array(value).flatten()
    mean = repeats.mean()
    error = 2 * repeats.std(ddof=1) / np.sqrt(len(repeats)) if len(repeats) > 1 else 0.0
    return metrics.Estimate(mean, mean - error, mean + error)


def _tpr(scores: Tensor, members: Tensor, fpr: float) -> metrics.Estimate:
    if scores.ndim == 2 and len(scores) > 1:
        return metrics.bootstrap(lambda s, m: metrics.tpr_at_fpr(s, m, fpr).value, scores, members)
    return metrics.tpr_at_fpr(scores, members, fpr)

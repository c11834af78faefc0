"""Figures: each function draws on an Axes, returns it, and leaves showing to the notebook."""

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


def use_style() -> None:
    """One look for all figures; call it once, in the setup cell."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 4.0),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=COLORS, linestyle=STYLES),
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
        }
    )


def roc_curves(
    attacks: dict[str, tuple[Tensor, Tensor]],
    ax: Axes | None = None,
    fprs: tuple[float, ...] = (0.01, 0.001),
) -> Axes:
    """Membership ROC curves on log-log axes, with the true-positive rate at low ones marked.

    The intervals resample victims where scores are (victims, records), and are Clopper-Pearson's
    for one victim. A false-positive rate that the nonmembers cannot resolve is left out.

    Args:
        attacks: by name, the scores (higher means member) and the members' truth values.
        ax: where to draw; a new figure by default.
        fprs: the false-positive rates to mark; the first one is named in the legend.

    Returns:
        The Axes.
    """
    ax = ax or plt.subplots()[1]
    for i, (name, (scores, members)) in enumerate(attacks.items()):
        look = dict(color=COLORS[i % len(COLORS)])
        fpr, tpr = metrics.roc(scores, members)
        label = f"{name}: AUC {metrics.auc(scores, members):.3f}"
        for j, at in enumerate(fprs):
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
    floor = 10 ** np.floor(np.log10(max(min(min(fprs), 0.01) / 2, 1e-4)))
    ax.plot([floor, 1], [floor, 1], color="0.6", lw=1, ls="-", label="chance")
    ax.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1.05))
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
    values = np.asarray(values, dtype=float)
    mean = values.mean(1)
    error = 2 * values.std(1, ddof=1) / np.sqrt(values.shape[1]) if values.shape[1] > 1 else 0
    i = index % len(COLORS)
    ax.plot(x, mean, color=COLORS[i], linestyle=STYLES[i], marker=MARKERS[i], ms=5, label=label)
    ax.fill_between(x, mean - error, mean + error, color=COLORS[i], alpha=0.15, lw=0)
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
    groups = [np.asarray(v.detach().cpu(), dtype=float) for v in (members, nonmembers)]
    both = np.concatenate(groups)
    edges = np.linspace(both.min(), both.max() + 1e-9, bins + 1)
    for i, (group, name) in enumerate(zip(groups, names[:2], strict=True)):
        share = np.full(len(group), 1 / max(len(group), 1))
        hatch = ("//", "\\\\")[i]
        look = dict(color=COLORS[i], alpha=0.45, edgecolor=COLORS[i], hatch=hatch, label=name)
        ax.hist(group, edges, weights=share, histtype="stepfilled", **look)
    if mark is not None:
        ax.axvline(mark, color="k", ls="--", lw=1.2, label=f"{names[2]} {mark:.3g}")
    ax.set(xlabel=xlabel, ylabel="share of group")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.legend(fontsize="small")
    return ax


def matrix(values, rows, columns, ax: Axes | None = None) -> Axes:
    """A table of numbers, coloured by value and with each number written out.

    Args:
        values: (R, C) numbers.
        rows: R names.
        columns: C names.
        ax: where to draw; a new figure by default.

    Returns:
        The Axes.
    """
    ax = ax or plt.subplots()[1]
    values = np.asarray(values, dtype=float)
    drawn = ax.imshow(values, cmap="cividis", aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        dark = drawn.norm(value) < 0.5
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="w" if dark else "k")
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
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
            ax.set_title(titles[i], fontsize="small")
    return axes


def image_strips(rows: dict[str, Tensor], ax: Axes | None = None, num_images: int = 8) -> Axes:
    """A row of images for each name, all as one picture, on one scale from 0 to 1.

    Args:
        rows: by name, (N, C, H, W) in [0, 1]; all with equally many images, or more than shown.
        ax: where to draw; a new figure by default.
        num_images: at most so many of a row are shown.

    Returns:
        The Axes.
    """
    ax = ax or plt.subplots(figsize=(8, 0.95 * len(rows)))[1]
    framed = [
        F.pad(images[:num_images].detach().cpu(), (2,) * 4, value=1) for images in rows.values()
    ]
    sheet = torch.cat([torch.cat(list(images), -1) for images in framed], -2).clamp(0, 1)
    pixels = sheet.permute(1, 2, 0).numpy()
    ax.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, vmin=0, vmax=1)
    height = len(pixels) / len(rows)
    ax.set_yticks([height * (i + 0.5) for i in range(len(rows))], rows)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def _tpr(scores: Tensor, members: Tensor, fpr: float) -> metrics.Estimate:
    if scores.ndim == 2 and len(scores) > 1:
        return metrics.bootstrap(lambda s, m: metrics.tpr_at_fpr(s, m, fpr).value, scores, members)
    return metrics.tpr_at_fpr(scores, members, fpr)

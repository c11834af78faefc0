"""Figures are drawn where asked and never shown; widgets move where somebody looks."""

import base64
import re

import ipywidgets
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import papermill
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from nbformat.v4 import new_code_cell, new_notebook

from vplib import experiment, metrics, plots, widgets

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def nothing_is_shown(monkeypatch):
    """Showing is the notebook's: a plot function that shows fails here."""
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("plt.show was called"))
    with plt.rc_context():
        yield
    plt.close("all")


def scores(victims=4, records=400, seed=0):
    rng = torch.Generator().manual_seed(seed)
    members = torch.rand(victims, records, generator=rng) < 0.5
    return torch.randn(victims, records, generator=rng) + members, members


def draw_roc(ax=None):
    return plots.roc_curves({"loss threshold": scores(), "LiRA": scores(seed=1)}, ax=ax)


def draw_line(ax=None):
    return plots.line_with_band([1, 2, 3], torch.rand(3, 5), "measured", ax=ax)


def draw_histograms(ax=None):
    return plots.histogram_pair(torch.randn(50), torch.randn(70), "loss (nats)", 0.5, ax=ax)


def draw_bars(ax=None):
    return plots.bars({"one": metrics.Estimate(0.6, 0.5, 0.7), "two": 0.4}, ax)


def draw_matrix(ax=None):
    return plots.matrix(torch.rand(2, 3), "ab", "xyz", ax, vmin=0, vmax=1)


PROTECTIONS = {"blur 1/8": (0.5, 0.8, 0.2), "blur 1/4": (0.3, 0.4, 0.1), "eye bar": (0.7, 0.9, 0.6)}


def draw_protections(ax=None):
    settings = dict(clean=0.95, guessing=0.025, ax=ax)
    return plots.privacy_utility(PROTECTIONS, "expression read right", **settings)


DRAWINGS = pytest.mark.parametrize(
    "draw", [draw_roc, draw_line, draw_histograms, draw_bars, draw_matrix, draw_protections]
)


@DRAWINGS
def test_a_plot_returns_its_axes(draw):
    ax = draw()
    assert isinstance(ax, Axes) and ax.has_data()
    ax.figure.canvas.draw()


@DRAWINGS
def test_a_plot_draws_where_it_is_asked_to(draw):
    figure, (left, right) = plt.subplots(1, 2)
    assert draw(ax=right) is right
    assert right.has_data() and not left.has_data()
    assert plt.get_fignums() == [figure.number]


# ROC curves


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_roc_curves():
    victims, one = scores(records=800), tuple(x[:1] for x in scores(seed=1))
    ax = plots.roc_curves({"pooled": victims, "one victim": one})
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("false-positive rate", "true-positive rate")
    pooled, single, chance = legend_of(ax)
    tpr = metrics.tpr_at_fpr(*victims, 0.01).value
    assert pooled == f"pooled: AUC {metrics.auc(*victims):.3f}, TPR {tpr:.1%} at 1% FPR"
    # Some 200 nonmembers cannot resolve 1 %, so nothing is said about it.
    assert single == f"one victim: AUC {metrics.auc(*one):.3f}"
    assert chance == "chance"
    curves = {line.get_label(): line for line in ax.lines if "AUC" in str(line.get_label())}
    fpr, found = metrics.roc(*victims)
    assert np.array_equal(curves[pooled].get_xydata(), np.stack([fpr, found], 1))
    assert curves[pooled].get_linestyle() != curves[single].get_linestyle()
    assert curves[pooled].get_color() != curves[single].get_color()
    assert len(ax.containers) == 1  # one marked rate with its interval


def test_roc_curves_of_one_long_victim_have_clopper_pearson_intervals():
    rng = torch.Generator().manual_seed(0)
    members = torch.arange(3000) < 1000
    values = torch.randn(3000, generator=rng) + 2 * members
    ax = plots.roc_curves({"attack": (values, members)})
    (marked,) = ax.containers  # 2,000 nonmembers resolve 1 %, and 0.1 % only with two of them
    low, high = marked[2][0].get_segments()[0][:, 1]
    estimate = metrics.tpr_at_fpr(values, members, 0.01)
    assert (low, high) == pytest.approx((estimate.low, estimate.high))


def test_roc_curves_of_more_attacks_than_there_are_colours():
    many = {f"attack {i}": scores(seed=i) for i in range(len(plots.COLORS) + 1)}
    assert len(legend_of(plots.roc_curves(many))) == len(many) + 1


# Lines, histograms, images


def test_line_with_band_is_the_mean_and_two_standard_errors():
    values = torch.tensor([[1.0, 3.0], [2.0, 6.0]])
    ax = plots.line_with_band([10, 20], values, "measured", index=9)
    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[10, 2], [20, 4]]
    assert line.get_label() == "measured"
    assert to_rgb(line.get_color()) == to_rgb(plots.COLORS[9 % len(plots.COLORS)])
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    # The standard error of (1, 3) is 1, that of (2, 6) is 2.
    assert {tuple(c) for c in corners.round(9).tolist()} >= {(10, 0), (10, 4), (20, 0), (20, 8)}


def test_line_with_one_repeat_has_no_band():
    ax = plots.line_with_band([1, 2], [[1.0], [2.0]], "once")
    corners = ax.collections[0].get_paths()[0].vertices
    assert {tuple(c) for c in corners.tolist()} == {(1, 1), (2, 2)}


def test_line_with_band_takes_rows_of_any_make():
    rows = [torch.tensor([1.0, 3.0]).requires_grad_(), np.array([2.0]), (4.0, 6.0, 8.0), 7]
    ax = plots.line_with_band(torch.tensor([1, 2, 3, 4]), rows, "measured")
    assert ax.lines[0].get_xydata().tolist() == [[1, 2], [2, 2], [3, 6], [4, 7]]


class OnAnotherDevice(torch.Tensor):
    """A tensor that numpy cannot read before it is copied to the CPU, like one on a GPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        found = super().__torch_function__(function, types, args, kwargs or {})
        return found.as_subclass(torch.Tensor) if function.__name__ in ("cpu", "tolist") else found


def away(*shape):
    return torch.rand(shape).as_subclass(OnAnotherDevice)


def test_the_stand_in_for_a_gpu_refuses_numpy():
    for read in (lambda x: x.numpy(), np.asarray, lambda x: np.array([x[0], x[1]])):
        with pytest.raises(TypeError, match="can't convert"):
            read(away(2))
    assert away(2).detach().cpu().numpy().shape == (2,)


def test_plots_take_tensors_of_any_device():
    x, values = away(3), away(3, 4)
    (line,) = plots.line_with_band(x, values, "a").lines
    assert line.get_xdata() == pytest.approx(x.cpu().numpy())
    assert line.get_ydata() == pytest.approx(values.cpu().numpy().mean(1))
    plots.line_with_band([1, 2], [away(4), away(4)], "a")
    plots.histogram_pair(away(5), away(6), "loss", away(1)[0])
    plots.matrix(away(2, 2), "ab", "cd")
    plots.matrix([away(2), away(2)], "ab", "cd")
    point = tuple(away(3))
    plots.privacy_utility({"blur": point}, "use", clean=away(1)[0], guessing=0.1)
    five = away(5)
    (bar, _) = plots.bars({"a": five, "b": away(1)[0]}).containers[1]
    assert bar.get_width() == pytest.approx(five.cpu().numpy().mean())
    plots.chance(plots.floor(plt.gca(), away(1)[0]), away(1)[0])
    plots.image_row(away(2, 1, 4, 4))
    plots.image_strips({"a": away(2, 3, 4, 4)})
    members = torch.arange(40).view(2, 20) % 2 == 0
    plots.roc_curves({"a": (away(2, 20), members.as_subclass(OnAnotherDevice))})


def test_chance_and_floor_are_lines_with_a_name_and_a_look_of_their_own():
    ax = plt.subplots()[1]
    assert plots.chance(ax, 0.5) is ax and plots.floor(ax, 0.7) is ax
    plots.chance(ax, 3, "one in three", axis="x")
    across, best, upright = ax.lines
    assert set(across.get_ydata()) == {0.5} and set(best.get_ydata()) == {0.7}
    assert set(upright.get_xdata()) == {3}
    labels = [line.get_label() for line in ax.lines]
    assert labels == ["chance", "best guess without the model", "one in three"]
    assert across.get_linestyle() != best.get_linestyle()


def test_protections_of_one_kind_are_joined_and_stand_over_the_naive_attacker():
    ax = draw_protections()
    hollow, full, *_ = ax.lines
    assert full.get_label() == "blur" and hollow.get_markerfacecolor() == "white"
    assert full.get_xdata().tolist() == hollow.get_xdata().tolist() == [0.5, 0.3]
    assert full.get_ydata().tolist() == [0.8, 0.4] and hollow.get_ydata().tolist() == [0.2, 0.1]
    assert {t.get_text() for t in ax.texts} == {"1/8", "1/4"}
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["blur", "eye bar", "unprotected", "guessing"]
    assert [line.get_ydata()[0] for line in ax.lines[-2:]] == [0.95, 0.025]


def test_bars_by_hand():
    values = {
        "an estimate": metrics.Estimate(0.6, 0.55, 0.7),
        "two repeats": [1.0, 3.0],  # standard error 1
        "a number": 0.25,
    }
    ax = plots.bars(values)
    bars, errors = ax.containers[1], ax.containers[0].lines[2][0].get_segments()
    assert [bar.get_width() for bar in bars] == pytest.approx([0.6, 2, 0.25])
    ends = [segment[:, 0].tolist() for segment in errors]
    assert ends == [pytest.approx(e) for e in ([0.55, 0.7], [0, 4], [0.25, 0.25])]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(values)
    assert [t.get_text() for t in ax.texts] == ["0.60", "2.00", "0.25"]
    assert ax.yaxis_inverted()  # the first name is on top


def test_matrices_share_a_scale_and_a_colour_bar():
    figure, axes = plt.subplots(1, 2)
    for ax, top in zip(axes, (0.2, 0.9), strict=True):
        plots.matrix([[0.1, top]], ["a"], ["x", "y"], ax, vmin=0, vmax=1)
    assert [ax.images[0].get_clim() for ax in axes] == [(0, 1), (0, 1)]
    figure.colorbar(axes[0].images[0], ax=axes)
    assert len(figure.axes) == 3
    alone = plots.matrix([[0.1, 0.9]], ["a"], ["x", "y"])
    assert alone.images[0].get_clim() == (0.1, 0.9)
    assert [t.get_text() for t in alone.texts] == ["0.10", "0.90"]


def test_histograms_are_shares_of_each_group():
    members, nonmembers = torch.zeros(10), torch.cat([torch.zeros(15), torch.ones(5)])
    ax = plots.histogram_pair(members, nonmembers.requires_grad_(), "loss (nats)", bins=2)
    heights = [patch.get_path().vertices[:, 1].max() for patch in ax.patches]
    assert heights == pytest.approx([1, 0.75])
    assert ax.get_xlabel() == "loss (nats)"
    assert legend_of(ax) == ["members", "nonmembers"]
    marked = plots.histogram_pair(members, nonmembers, "loss (nats)", 0.25)
    assert set(legend_of(marked)) == {"members", "nonmembers", "threshold 0.25"}
    names = ("in", "out", "this record")
    named = plots.histogram_pair(members, nonmembers, "loss (nats)", 0.25, names=names)
    assert set(legend_of(named)) == {"in", "out", "this record 0.25"}


def test_histograms_of_one_value():
    ax = plots.histogram_pair(torch.zeros(3), torch.zeros(2), "loss")
    ax.figure.canvas.draw()
    assert legend_of(ax) == ["members", "nonmembers"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [1, 3])
def test_image_row(channels, n):
    images = torch.rand(n, channels, 5, 6).requires_grad_()
    axes = plots.image_row(images, titles=[f"{i} dB" for i in range(n)])
    assert len(axes) == n
    for i, ax in enumerate(axes):
        (shown,) = ax.get_images()
        assert shown.get_clim() == (0, 1) and ax.get_title() == f"{i} dB"
        pixels = images[i].detach().permute(1, 2, 0).squeeze(-1).numpy()
        assert np.array_equal(np.asarray(shown.get_array()), pixels)


def test_image_row_draws_where_it_is_asked_to():
    figure, axes = plt.subplots(1, 2)
    found = plots.image_row(torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1), axes=axes)
    assert found is axes and plt.get_fignums() == [figure.number]
    values = [float(ax.get_images()[0].get_array().item()) for ax in axes]
    assert values == [0, 1]  # on one scale, whatever an attack made of them


@pytest.mark.parametrize("name", ["$x$ and $\\bad$", "\\$5 {", "_hidden", "caf\udce9"])
@pytest.mark.parametrize(
    ("draw", "times"),
    [
        (lambda name: plots.bars({name: 1.0}), 1),
        (lambda name: plots.matrix(torch.ones(1, 1), [name], [name]), 2),
        (lambda name: plots.image_strips({name: torch.rand(2, 1, 8, 8)}), 1),
        (lambda name: plots.image_row(torch.rand(1, 1, 8, 8), [name])[0], 1),
        (lambda name: plots.roc_curves({name: scores(victims=1)}), 1),
        (lambda name: plots.line_with_band([1, 2], torch.rand(2, 3), name), 1),
        (lambda name: plots.chance(plots.floor(plt.subplots()[1], 0.5, name), 0.5, name), 2),
        (lambda name: plots.histogram_pair(*torch.rand(2, 9), name, 0.5, names=[name] * 3), 4),
    ],
    ids="bars matrix strips row roc line floor histograms".split(),
)
def test_the_readers_text_is_drawn_as_it_is(draw, times, name):
    """Names of classes and attacks: no formula, nothing left out, no character that stops it."""
    ax = draw(name)
    legend = ax.legend().get_texts() if ax.get_legend_handles_labels()[0] else []
    ax.figure.canvas.draw()
    texts = [ax.title, ax.xaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels(), *legend]
    drawn = [text._preprocess_math(text.get_text()) for text in texts]  # and whether a formula
    asked = name.encode(errors="backslashreplace").decode()
    assert sum(asked in shown for shown, formula in drawn if not formula) == times


def test_use_style():
    plots.use_style()
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.COLORS)
    assert len({str(style) for style in plots.STYLES}) == len(plots.STYLES) == len(plots.COLORS)
    assert len(set(plots.MARKERS)) == len(plots.MARKERS) == len(plots.COLORS)
    draw_line().figure.canvas.draw()


# Explore


def slider(**options):
    return ipywidgets.IntSlider(**(dict(description="models", min=1, max=9, value=2) | options))


def text_of(models):
    return f"<b>{models} models</b>"


def test_explore_takes_one_to_four_controls():
    with pytest.raises(ValueError, match="explore takes 1 to 4 controls, not 0"):
        widgets.explore(text_of)
    with pytest.raises(ValueError, match="explore takes 1 to 4 controls, not 5"):
        widgets.explore(text_of, **{f"control{i}": slider() for i in range(5)})


def test_every_control_needs_a_description():
    with pytest.raises(ValueError, match="control 'models' needs a description, with its unit"):
        widgets.explore(text_of, models=slider(description=""))


@pytest.fixture
def shown(monkeypatch):
    """What explore displays."""
    displayed = []
    monkeypatch.setattr(widgets, "display", displayed.append)
    return displayed


@pytest.fixture
def live(monkeypatch, shown):
    monkeypatch.setattr(experiment, "has_front_end", lambda: True)
    return shown


def figure_of(models):
    figure, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, models])
    return figure


def picture(view) -> bytes:
    return base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', view.value)[1])


@pytest.mark.parametrize("render", [figure_of, lambda models: figure_of(models).axes[0]])
def test_a_figure_moves_with_its_control(live, render):
    control = slider()
    widgets.explore(render, models=control)
    (box,) = live
    *controls, view = box.children
    assert controls == [control] and isinstance(view, ipywidgets.HTML)
    first = picture(view)
    assert first.startswith(PNG) and 'alt="figure for models 2"' in view.value
    control.value = 7
    second = picture(view)
    assert second.startswith(PNG) and second != first
    assert 'alt="figure for models 7"' in view.value
    control.value = 2
    assert picture(view) == first
    assert plt.get_fignums() == []  # thirty moves leave no thirty figures


def test_html_moves_with_its_controls(live):
    models = slider()
    attack = ipywidgets.Dropdown(description="attack <a>", options=["LiRA", "loss"])
    widgets.explore(lambda models, attack: f"{attack}: {models}", models=models, attack=attack)
    (box,) = live
    view = box.children[-1]
    assert view.value == "LiRA: 2"
    models.value, attack.value = 5, "loss"
    assert view.value == "loss: 5"


def test_four_controls_are_shown_in_their_order(live):
    controls = {f"control{i}": slider(description=f"d{i}") for i in range(4)}
    widgets.explore(lambda **values: str(sum(values.values())), **controls)
    assert list(live[0].children[:-1]) == list(controls.values())
    assert live[0].children[-1].value == "8"


def test_the_alternative_text_is_escaped(live):
    widgets.explore(figure_of, models=slider(description='a "b" <c>'))
    assert 'alt="figure for a &quot;b&quot; &lt;c&gt; 2"' in live[0].children[-1].value


def test_a_render_that_raises_says_so_and_goes_on(live):
    def render(models):
        if models > 5:
            raise RuntimeError(f"no run with <{models}> models")
        if models == 5:
            raise ValueError("5 models are not there; take 4")
        return text_of(models)

    control = slider()
    widgets.explore(render, models=control)
    view = live[0].children[-1]
    control.value = 6
    assert view.value == "<pre>RuntimeError: no run with &lt;6&gt; models</pre>"
    control.value = 5
    assert view.value == "<pre>5 models are not there; take 4</pre>"
    control.value = 3
    assert view.value == text_of(3)


def test_without_a_front_end_it_is_drawn_once(shown):
    control = slider()
    widgets.explore(figure_of, models=control)
    widgets.explore(text_of, models=control)
    control.value = 5
    drawn, text = shown
    assert drawn.data.startswith(PNG) and text.data == text_of(2)


def test_without_a_front_end_an_error_is_an_error(shown):
    def render(models):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        widgets.explore(render, models=slider())


def test_a_headless_notebook_holds_the_figure(tmp_path):
    code = (
        "import ipywidgets\n"
        "import matplotlib.pyplot as plt\n"
        "from vplib import widgets\n"
        "def render(models):\n"
        "    figure, ax = plt.subplots(figsize=(2, 1))\n"
        "    ax.plot([0, models])\n"
        "    return ax\n"
        "control = ipywidgets.IntSlider(description='models')\n"
    )
    cells = [
        new_code_cell(code + "widgets.explore(render, models=control)"),
        new_code_cell("widgets.explore(lambda models: f'<b>{models}</b>', models=control)"),
    ]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernelspec})
    nbformat.write(notebook, tmp_path / "in.ipynb")
    papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", progress_bar=False)
    out = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    (figure,), (text,) = ([o["data"] for o in cell.outputs] for cell in out.cells)
    assert base64.b64decode(figure["image/png"]).startswith(PNG)
    assert text["text/html"] == "<b>0</b>"
    assert not any("widget" in mime for data in (figure, text) for mime in data)

"""Figures of studies for papers, one column wide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bo_act.activations.expressions import Expression, parse
from bo_act.activations.plots import REACH, sample, windows
from bo_act.errors import SearchError
from bo_act.plot_style import COLOURS, DASHED, FAINT, GREY, SCALE, colour_and_stroke, panels, styled
from bo_act.report.data import ReportData
from bo_act.report.predictions import LEVEL
from bo_act.report.trials import Row, best_so_far, end_of_interest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = {
    "baseline": ("D", COLOURS[4], "baseline"),
    "random": ("s", COLOURS[3], "random"),
    "acquisition": ("o", COLOURS[0], "proposed"),
    "strategy": ("o", COLOURS[0], "proposed"),
    "enqueued": ("*", COLOURS[2], "enqueued"),
}


@styled
def progress(data: ReportData) -> Figure:
    """Draw the value of every trial, the best so far, and ReLU's level.

    Values beyond the axis are at its edge. Crosses are diverged functions, open triangles pruned
    ones at their last value.

    Raises:
        SearchError: no trial has a value that counts.
    """
    values = [row.value for row in data.ranked if row.value is not None]
    if not values:
        raise _nothing(data)
    sign, scale = data.metric.sign, data.metric.scale
    relu = [row.value for row in data.ranked if set(row.functions) == {"relu(x)"}]
    edge = end_of_interest(values, data.metric, [v for v in relu[:1] if v is not None])

    def height(value: float | None) -> float:
        inside = edge if value is None else sign * max(sign * value, sign * edge)
        return scale * inside

    figure, (axes,) = panels(height=2.2)
    for by, (marker, colour, label) in _MARKS.items():
        _points(axes, [r for r in data.rows if r.state == "complete" and r.by == by], height,
                marker=marker, c=colour, label=label, s=12, linewidths=0)  # fmt: skip
    _points(axes, [r for r in data.rows if r.state == "diverged"], lambda _: scale * edge,
            marker="x", c=COLOURS[1], label="diverged", s=14, linewidths=1)  # fmt: skip
    pruned = [r for r in data.rows if r.state == "pruned"]
    if pruned:
        last = [height(r.curve[-1] if r.curve else None) for r in pruned]
        axes.scatter([r.number for r in pruned], last, marker="v", facecolors="none",
                     edgecolors=GREY, s=12, label="pruned")  # fmt: skip
    course = [np.nan if v is None else height(v) for v in
              best_so_far(data.rows, data.metric)]  # fmt: skip
    numbers = [row.number for row in data.rows]
    axes.step(numbers, course, where="post", color="black", label="best so far", linewidth=1)
    if relu and relu[0] is not None:
        axes.axhline(height(relu[0]), color=GREY, linestyle=DASHED, linewidth=0.9, label="ReLU")
    axes.set_xlabel("trial")
    axes.set_ylabel(_label(data))
    figure.legend(loc="outside upper center", ncols=4)
    return figure


def _nothing(data: ReportData) -> SearchError:
    """Return why there is no best function, as an error."""
    return SearchError(f"there is nothing to plot: {data.lacking.rstrip('.')}")


def _label(data: ReportData, what: str = "") -> str:
    """Return the label of an axis, with dollar signs escaped."""
    return f"{what} {data.metric.axis}".strip().replace("$", r"\$")


def _points(axes: Axes, rows: Sequence[Row], height: Any, **style: Any) -> None:
    if rows:
        axes.scatter([r.number for r in rows], [height(r.value) for r in rows], **style)


@styled
def embedding_map(data: ReportData, *, place: int = 0) -> Figure:
    """Draw the first two principal components of the embedding, coloured by the predicted value.

    Evaluated functions are squares, coloured by the measured value.

    Args:
        data: of a study with a sampler.
        place: one of several activations of a study.

    Raises:
        SearchError: there is no embedding.
    """
    land = data.embedding_map
    if land is None:
        raise SearchError(f"there is no embedding to plot: {data.subject.lacking or 'no sampler'}")
    scale, sign = data.metric.scale, data.metric.sign
    colours_of = SCALE if sign > 0 else f"{SCALE}_r"  # good values are bright
    figure, (axes,) = panels(height=2.7)
    x, y = land.points.T
    of_trial = {row.number: row.value for row in data.rows if row.state == "complete"}
    spots = [(i, of_trial[n]) for n, i in land.trials[place] if of_trial.get(n) is not None]
    values = [v for _, v in spots if v is not None]
    edge = end_of_interest([v for v in values if v is not None], data.metric) if values else 0.0
    drawn = None
    if data.predictions:
        colours = scale * sign * np.maximum(data.predictions[place].median[land.shown], sign * edge)
        drawn = axes.scatter(x, y, c=colours, s=3, cmap=colours_of, linewidths=0, rasterized=True)
    else:
        axes.scatter(x, y, c="0.75", s=3, linewidths=0, rasterized=True)
    if spots:
        measured = [scale * sign * max(sign * (v or 0.0), sign * edge) for _, v in spots]
        limits = drawn.get_clim() if drawn is not None else (min(measured), max(measured))
        drawn_spots = axes.scatter(
            x[[i for i, _ in spots]], y[[i for i, _ in spots]], c=measured, s=15, marker="s",
            cmap=colours_of, edgecolors="black", linewidths=0.6, vmin=limits[0], vmax=limits[1],
        )  # fmt: skip
        drawn = drawn or drawn_spots
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes, aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(_label(data, "predicted" if data.predictions else "measured"))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("component 1 of the embedding")
    axes.set_title(f"{100 * land.explained:.0f}% of the variance of the embedding")
    axes.set_ylabel("component 2")
    axes.grid(visible=False)
    return figure


@styled
def gallery(expressions: Sequence[str | Expression], *, titles: Sequence[str] = ()) -> Figure:
    """Draw functions on [-5, 5] as a grid of small graphs, ReLU dashed in each.

    Args:
        expressions: at least one.
        titles: above each graph; default: the expressions.

    Raises:
        SearchError: there is none.
    """
    if not expressions:
        raise SearchError("expected at least one function to plot, got none")
    shown = [parse(e) if isinstance(e, str) else e for e in expressions]
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure, grid = panels(rows, columns, height=1.25 * rows + 0.1)
    values = sample([*shown, parse("relu(x)")])
    low, high = windows(values)
    x = np.linspace(-REACH, REACH, values.shape[1])
    for panel, axes in enumerate(grid):
        if panel >= len(shown):
            axes.set_visible(False)
            continue
        axes.axhline(0, color=FAINT, linewidth=0.5)
        axes.axvline(0, color=FAINT, linewidth=0.5)
        axes.plot(x, values[-1], color=GREY, linestyle=DASHED, linewidth=0.8)
        # A pole is a gap, not a line from one end to the other.
        row = np.where(
            (values[panel] < low[panel]) | (values[panel] > high[panel]), np.nan, values[panel]
        )
        axes.plot(x, row, color=COLOURS[0])
        room = 0.06 * (high[panel] - low[panel])
        axes.set_ylim(low[panel] - room, high[panel] + room)
        axes.set_xlim(-REACH, REACH)
        axes.set_xticks([-4, 0, 4])
        axes.locator_params(axis="y", nbins=3)
        axes.tick_params(labelsize=6, length=2)
        axes.set_title(titles[panel] if titles else _wrapped(str(shown[panel])), fontsize=6.2)
        axes.grid(visible=False)
    return figure


def gallery_of(data: ReportData, top: int = 9) -> Figure:
    """Draw the best functions of a study, each with its best value.

    Raises:
        SearchError: no trial has a value that counts.
    """
    best: dict[str, float | None] = {}
    for row in data.ranked:
        for text in row.functions:
            best.setdefault(text, row.value)
    shown = list(best.items())[:top]
    if not shown:
        raise _nothing(data)
    values = [text.replace("$", r"\$") for text in data.metric.texts([v for _, v in shown])]
    titles = [f"{_wrapped(text)}\n{value}" for (text, _), value in zip(shown, values, strict=True)]
    figure: Figure = gallery([text for text, _ in shown], titles=titles)
    return figure


def _wrapped(text: str) -> str:
    """Break a long expression after a comma near its middle."""
    commas = [index for index, sign in enumerate(text) if sign == ","]
    if len(text) <= 22 or not commas:
        return text
    middle = min(commas, key=lambda index: abs(index - len(text) / 2))
    return f"{text[: middle + 1]}\n{text[middle + 1 :]}"


@styled
def spectra(data: ReportData) -> Figure:
    """Draw the Fisher spectra of the best functions and of ReLU, one panel per layer.

    Raises:
        SearchError: there are none.
    """
    layers, note = data.spectra
    if not layers:
        raise SearchError(f"there are no Fisher spectra to plot: {note}")
    columns = min(len(layers), 2)
    rows = -(-len(layers) // columns)
    figure, grid = panels(rows, columns, height=1.25 * rows + 0.45)
    names = list(dict.fromkeys(text for layer in layers for text in layer.curves))
    for panel, axes in enumerate(grid):
        if panel >= len(layers):
            axes.set_visible(False)
            continue
        for k, text in enumerate(names):
            if text not in layers[panel].curves:
                continue
            x, null = layers[panel].curves[text]
            relu = {"color": GREY, "linestyle": DASHED}
            style = relu if text == "relu(x)" else colour_and_stroke(k)
            axes.plot(x, 100 * np.linspace(null, 1, len(x)), label=text, **style)
        axes.set_title(f"layer {layers[panel].layer}")
        axes.set_ylim(0, 102)
        if panel % columns == 0:
            axes.set_ylabel("eigenvalues (%)")
        if panel + columns >= len(layers):
            axes.set_xlabel(r"$\log_{10}$ eigenvalue")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


@styled
def calibration(data: ReportData) -> Figure:
    """Draw cross-validated predictions of the surrogate against measured values.

    Raises:
        SearchError: there are too few evaluations.
    """
    fitted, note = data.calibration
    if fitted is None:
        raise SearchError(f"there is nothing to plot: {note}")
    scale, sign = data.metric.scale, data.metric.sign
    edge = sign * end_of_interest((sign * fitted.measured).tolist(), data.metric)
    x, y, low, high = (
        np.maximum(column, edge)
        for column in (fitted.measured, fitted.predicted, fitted.low, fitted.high)
    )
    figure, (axes,) = panels(height=2.6)
    ends = scale * sign * np.array([min(x.min(), low.min()), max(x.max(), high.max())])
    axes.plot(ends, ends, color=GREY, linestyle=DASHED, linewidth=0.9)
    # The lower end of a bar is the lower one on the page.
    down, up = (y - low, high - y) if sign > 0 else (high - y, y - low)
    axes.errorbar(
        scale * sign * x, scale * sign * y, yerr=scale * np.stack([down, up]), fmt="o",
        color=COLOURS[0], elinewidth=0.6,
    )  # fmt: skip
    axes.set_xlabel(_label(data, "measured"))
    axes.set_ylabel(_label(data, "predicted"))
    tau = "" if fitted.tau is None else rf", Kendall's $\tau$ = {fitted.tau:.2f}"
    axes.set_title(f"{100 * fitted.inside:.0f}% in their {100 * LEVEL:.0f}% interval{tau}")
    return figure

"""The pictures of the README and of the concepts, all from real values.

Run by ``make pictures``, a minute on one core. Searches are replayed on a measured benchmark.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredText

import bo_act
from bo_act.benchmark.parquet import open_benchmark
from bo_act.features.function_summary import function_summary
from bo_act.plot_style import COLOURS, COLUMN, DASHED, GREY, PANEL, panels, save, styled
from bo_act.search.acquisition.pool import score_pool
from bo_act.search.observations import inverse_warp
from bo_act.search.searcher import Searcher
from bo_act.specs import AcquisitionSpec

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "figures"
TASK = "fashion_mnist_small_cnn"
BLUE, ORANGE, GREEN, PURPLE = COLOURS[:4]
WIDE = 2 * COLUMN
METHODS = {"default": (BLUE, "bo-act"), "published": (GREEN, "published"), "tpe": (ORANGE, "TPE")}
EVALUATIONS, SEEDS = 50, 10


class Example:
    """One search on one measured task, and what its surrogate says at the end."""

    def __init__(self) -> None:
        self.benchmark = open_benchmark(TASK)
        self.space = self.benchmark.space
        self.embedding = bo_act.PcaEmbedder().fit(self.benchmark.features)
        self.values = self.benchmark.values
        self.known = self.embedding.valid & np.isfinite(self.values)

    @cached_property
    def order(self) -> list[int]:
        """The functions of a search of 50 evaluations, in order."""
        catalogue = self.space.catalogue
        baselines = tuple(catalogue.index(one) for one in self.space.baselines)
        searcher = bo_act.Searcher(baselines=baselines, initial=2, seed=0)
        tried: list[int] = []
        while len(tried) < EVALUATIONS:
            told = self.observed(tried)
            tried.append(searcher.propose(self.embedding, told, number=len(tried)).index)
        return tried

    def observed(self, tried: list[int]) -> bo_act.Observations:
        """Return what a search knows after some functions; divergence counts as chance level."""
        values = np.nan_to_num(self.values[tried], nan=self.benchmark.chance)
        return bo_act.Observations(np.array(tried, dtype=np.int64), values)


def space(example: Example) -> Figure:
    """Draw twelve functions, from the best to the worst that trains."""
    figure, grid = panels(2, 6, width=WIDE, height=PANEL)
    alive = np.flatnonzero(example.known & (example.values > 0.3))
    ranked = alive[np.argsort(-example.values[alive], kind="stable")]
    chosen = ranked[np.linspace(0, len(ranked) - 1, 12).astype(int)]
    for axes, index in zip(grid, chosen, strict=True):
        text = example.space.catalogue.text(int(index))
        drawn = function_summary(bo_act.parse(text))
        axes.plot(drawn.x, drawn.value, color=BLUE, lw=1.5)
        axes.axhline(0, color=GREY, lw=0.4)
        axes.set_title(f"{text}\n{example.values[index]:.1%}", fontsize=5)
        axes.tick_params(labelsize=5)
        axes.set_xlim(-4, 4)
    return figure


def features(example: Example) -> Figure:
    """Draw what is known of four functions before training: outputs, and spectra of two layers."""
    figure, (left, *rest) = panels(1, 3, width=WIDE)
    catalogue, table = example.space.catalogue, example.benchmark.features
    layers = len(table.blocks["fim_null"].values[0])
    names = ("relu(x)", "tanh(x)", "sigmoid(x)", "square(x)")
    for name, colour in zip(names, (BLUE, ORANGE, GREEN, PURPLE), strict=True):
        drawn = function_summary(bo_act.parse(name))
        left.plot(drawn.x, drawn.value, color=colour, label=name)
        row = table.blocks["fim"].values[catalogue.index(name)].reshape(layers, -1)
        for axes, layer in zip(rest, (1, layers - 1), strict=True):
            axes.plot(row[layer], (np.arange(row.shape[1]) + 0.5) / row.shape[1], color=colour)
            axes.set_title(f"Fisher spectrum, layer {layer + 1} of {layers}")
            axes.set_xlabel("log eigenvalue")
    left.set(xlim=(-3, 3), ylim=(-1.5, 3))
    left.set_title("output")
    left.set_xlabel("pre-activation x")
    left.legend(loc="lower right")
    rest[0].set_ylabel("share of eigenvalues below")
    return figure


def embedding_map(example: Example, axes: Axes, figure: Figure, *, path: bool) -> None:
    """Draw each function in the leading coordinates of both blocks, by what it achieves."""
    columns = [example.embedding.blocks[name].start for name in ("outputs", "fim")]
    points = example.embedding.points[:, columns]
    known = np.flatnonzero(example.known)
    known = known[np.argsort(example.values[known], kind="stable")]  # the best on top
    drawn = axes.scatter(*points[known].T, c=100 * example.values[known], s=2, rasterized=True)
    bar = figure.colorbar(drawn, ax=axes)
    bar.set_label("validation accuracy, %")
    axes.set_xlabel("outputs, first coordinate")
    axes.set_ylabel("Fisher spectra, first coordinate")
    if path:
        tried = points[example.order]
        axes.scatter(*tried.T, s=12, facecolors="none", edgecolors=ORANGE, lw=0.9)
        best = points[max(example.order, key=lambda index: np.nan_to_num(example.values[index]))]
        axes.scatter(*best, marker="*", s=60, color=ORANGE, edgecolors="white", lw=0.6, zorder=3)


def embedding(example: Example) -> Figure:
    """Draw the map alone."""
    figure, (axes,) = panels()
    embedding_map(example, axes, figure, path=False)
    return figure


def surrogate(example: Example) -> Figure:
    """Draw what is predicted from 50 random functions against what was measured."""
    generator = np.random.default_rng(0)
    seen = generator.choice(np.flatnonzero(example.known), 50, replace=False)
    told = example.observed(seen.tolist())
    fit = Searcher().fit(example.embedding, told)
    model, y = fit.model, fit.y
    others = np.setdiff1d(np.flatnonzero(example.known), seen)
    others = generator.choice(others, 150, replace=False)
    mean, variance = model.mean_and_variance(torch.from_numpy(example.embedding.points[others]))
    away = 1.645 * (variance + float(model.noise)).sqrt()
    low, middle, high = (
        inverse_warp(at.numpy(), y.numpy(), told.values) for at in (mean - away, mean, mean + away)
    )
    figure, (axes,) = panels()
    values = example.values[others]
    bars = [middle - low, high - middle]
    axes.errorbar(values, middle, yerr=bars, fmt="o", ms=2, color=BLUE, ecolor="#9ecae1", lw=0.8)
    ends = [values.min(), values.max()]
    axes.plot(ends, ends, color=GREY, lw=0.8)
    axes.set_xlabel("measured validation accuracy")
    axes.set_ylabel("predicted: median and central 90%")
    inside = float(np.mean((values >= low) & (values <= high)))
    axes.add_artist(
        AnchoredText(f"{inside:.0%} inside their interval", "lower right", frameon=False)
    )
    return figure


def acquisition(example: Example) -> Figure:
    """Draw mean and deviation of all candidates after 20 evaluations, by their score."""
    told = example.observed(example.order[:20])
    fit = Searcher().fit(example.embedding, told)
    model, y = fit.model, fit.y
    free = np.setdiff1d(np.flatnonzero(example.embedding.valid), example.order[:20])
    points = torch.from_numpy(example.embedding.points[free])
    mean, variance = model.mean_and_variance(points)
    score = score_pool(AcquisitionSpec(), model, points, float(y.max()), seed=0).numpy()
    figure, (axes,) = panels()
    rank = np.argsort(np.argsort(score)) / len(score)
    drawn = axes.scatter(mean, variance.sqrt(), c=rank, s=3, rasterized=True)
    figure.colorbar(drawn, ax=axes).set_label("rank of the score (1: tried next)")
    chosen = int(score.argmax())
    axes.scatter(mean[chosen], variance.sqrt()[chosen], marker="*", s=60, color=ORANGE)
    axes.axvline(float(y.max()), color=GREY, lw=0.8, linestyle=DASHED)
    axes.set_xlabel("predicted mean (dashed: best observed)")
    axes.set_ylabel("deviation of the prediction")
    return figure


def readme(example: Example) -> Figure:
    """Draw regret over evaluations beside the map with one search on it."""
    found = bo_act.compare([TASK], [*METHODS, "random"], seeds=SEEDS, evaluations=EVALUATIONS)
    figure, (left, right) = panels(1, 2, width=WIDE)
    for method, (colour, label) in (METHODS | {"random": (GREY, "random")}).items():
        steps = found.steps[found.steps["method"] == method]
        runs = np.stack([run["index"].to_numpy() for _, run in steps.groupby("seed")])
        values = np.nan_to_num(example.values[runs], nan=example.benchmark.chance)
        regret = 100 * (np.nanmax(example.values) - np.maximum.accumulate(values, axis=1))
        left.plot(np.arange(1, EVALUATIONS + 1), regret.mean(axis=0), color=colour, label=label)
    left.set(xlim=(8, EVALUATIONS), ylim=(0, 0.32))
    left.set_xlabel("functions trained")
    left.set_ylabel("points below the best function")
    left.legend()
    left.set_title(f"mean of {SEEDS} searches, {TASK}")
    embedding_map(example, right, figure, path=True)
    return figure


def main() -> None:
    """Draw and write them all."""
    example = Example()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for draw in (space, features, embedding, surrogate, acquisition, readme):
        file = FOLDER / f"{draw.__name__}.png"
        save(styled(draw)(example), file, dpi=150)
        print(f"wrote {file.relative_to(ROOT)} ({file.stat().st_size:,} bytes)", flush=True)


if __name__ == "__main__":
    main()

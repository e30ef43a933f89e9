"""The embedding in two dimensions, and the spectra: features before any training.

N  functions      m  of them, those that are shown      d  dimensions of the embedding
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from bo_act.errors import ExpressionError
from bo_act.features.table import FeatureTable
from bo_act.report.loaded_study import LoadedStudy
from bo_act.report.predictions import Predictions
from bo_act.study.storage.trials import own_trials

MOST = 6_000
"""Functions on a map: what a browser moves smoothly, at about 100 bytes each."""
_TOP = 1_000  # of them the best by prediction
_CELLS = 96  # along each side of a map, over which the others are spread
_LAYERS = 6  # of a network whose spectra are shown

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Functions as points in a plane.

    Attributes:
        shown: (m,) ascending indices in the catalogue.
        texts: of the m functions.
        points: (m, 2) first two principal components of the embedding.
        explained: their share of the embedding's variance.
        total: functions in the embedding.
        trials: place → (number of the trial, position among the m), in the order of the trials.
    """

    shown: NDArray[np.int64]
    texts: tuple[str, ...]
    points: Floats
    explained: float
    total: int
    trials: tuple[tuple[tuple[int, int], ...], ...]


def embedding_map(
    subject: LoadedStudy, predicted: Sequence[Predictions] = (), *, most: int = MOST
) -> EmbeddingMap | None:
    """Project the embedding of a study; None without a sampler.

    Of more than ``most`` functions, it shows all evaluated ones, the best predicted ones, and
    others spread evenly over the plane.
    """
    sampler = subject.sampler
    if sampler is None:
        return None
    tried = [_tried(subject, activation) for activation in range(len(subject.activations))]
    embedding, catalogue = sampler.embedding, sampler.catalogue
    valid = np.flatnonzero(embedding.valid)
    evaluated = {index for _, index in chain(*tried) if embedding.valid[index]}
    plane, explained = project(embedding.points[valid])
    shown = _chosen(valid, plane, evaluated, predicted, most)
    at = np.searchsorted(valid, shown)
    position = {int(index): number for number, index in enumerate(shown)}
    return EmbeddingMap(
        shown,
        tuple(catalogue.text(int(index)) for index in shown),
        plane[at],
        explained,
        len(valid),
        tuple(
            tuple((number, position[index]) for number, index in of_activation if index in position)
            for of_activation in tried
        ),
    )


def _tried(subject: LoadedStudy, activation: int) -> list[tuple[int, int]]:
    """Return (trial, index of its function) for all trials with a function."""
    tried = []
    for trial in own_trials(subject.study):
        texts = subject.functions(trial)
        if not texts or subject.sampler is None:
            continue
        try:
            tried.append((trial.number, subject.sampler.catalogue.index(texts[activation])))
        except ExpressionError:  # enqueued by hand, and outside the space
            continue
    return tried


def _chosen(
    valid: NDArray[np.int64],
    plane: Floats,
    evaluated: Collection[int],
    predicted: Sequence[Predictions],
    most: int,
) -> NDArray[np.int64]:
    if len(valid) <= most:
        return valid
    chosen = set(evaluated)
    if predicted:
        best = valid[np.argsort(-predicted[0].median[valid], kind="stable")]
        chosen |= set(best[: min(_TOP, max(most - len(chosen), 0) // 2)].tolist())
    others = np.flatnonzero(~np.isin(valid, list(chosen)))
    drawn = valid[others[spread(plane[others], max(most - len(chosen), 0))]]
    return np.array(sorted(chosen | set(drawn.tolist())), dtype=np.int64)


def spread(points: Floats, count: int) -> NDArray[np.int64]:
    """Choose points from every part of the plane.

    Takes a random point of each nonempty grid cell in turn, so that sparse regions are complete
    and dense ones thinned.

    Args:
        points: (n, 2).
        count: at most this many.

    Returns: Their numbers, in the order of choice.
    """
    extent = np.ptp(points, axis=0) if len(points) else np.ones(2)
    extent[extent == 0] = 1.0
    places = ((points - points.min(axis=0, initial=np.inf)) / extent * _CELLS).astype(np.int64)
    cells = np.minimum(places, _CELLS - 1) @ [1, _CELLS]
    order = np.random.default_rng(0).permutation(len(points))
    by_cell = order[np.argsort(cells[order], kind="stable")]
    _, first, sizes = np.unique(cells[by_cell], return_index=True, return_counts=True)
    turn = np.arange(len(points)) - np.repeat(first, sizes)
    # Random order within a turn, since the last turn is cut off.
    mixed = np.random.default_rng(1).permutation(len(points))
    return np.asarray(by_cell[mixed[np.argsort(turn[mixed], kind="stable")]][:count])


def project(points: Floats) -> tuple[Floats, float]:
    """Return the first two principal components of (N, d) points and their share of the variance.

    Signs are such that each component's largest loading is positive.
    """
    centred = points - points.mean(axis=0)
    _, strength, axes = np.linalg.svd(centred.T @ centred, hermitian=True)
    first = axes[:2]
    largest = np.abs(first).argmax(axis=1)
    first = first * np.sign(first[np.arange(len(first)), largest])[:, None]
    plane = centred @ first.T
    if plane.shape[1] < 2:
        plane = np.column_stack([plane, np.zeros(len(plane))])
    whole = float(strength.sum())
    return plane, float(strength[:2].sum() / whole) if whole else 1.0


@dataclass(frozen=True, eq=False)
class LayerSpectra:
    """The Fisher spectra of one layer.

    Attributes:
        layer: its name.
        curves: text of each function → (log10 of the eigenvalues' quantiles, null-space mass).
    """

    layer: str
    curves: dict[str, tuple[Floats, float]]


def spectra(
    subject: LoadedStudy, functions: Sequence[str], features: FeatureTable | None = None
) -> tuple[list[LayerSpectra], str]:
    """Return the spectra of some functions by layer, of at most six evenly chosen layers.

    Returns:
        The layers, and ``""`` or a note on omitted ones; or nothing, and the reason.
    """
    features = features or subject.features
    if subject.sampler is None or features is None:
        return [], subject.lacking or "The search used output features only."
    if "fim" not in features.blocks:
        return [], "The search used output features only (features.fim = false)."
    fim, null = features.blocks["fim"], features.blocks["fim_null"]
    count = null.values.shape[1]
    names = features.provenance.get("layers") or tuple(str(k) for k in range(count))
    quantiles = fim.values.reshape(len(features), count, -1)
    rows = {}
    for text in dict.fromkeys(functions):
        try:
            index = subject.sampler.catalogue.index(text)
        except ExpressionError:
            continue
        if fim.present[index]:
            rows[text] = index
    if not rows:
        return [], "None of these functions has a Fisher spectrum."
    chosen = np.unique(np.linspace(0, count - 1, min(count, _LAYERS)).round().astype(int))
    note = f"{len(chosen)} of {count} layers, evenly chosen." if len(chosen) < count else ""
    return [
        LayerSpectra(
            str(names[layer]),
            {
                text: (
                    quantiles[index, layer].astype(np.float64) / np.log(10),
                    float(null.values[index, layer]),
                )
                for text, index in rows.items()
            },
        )
        for layer in chosen
    ], note

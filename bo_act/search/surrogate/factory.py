"""Fitting the surrogate of a spec to points."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bo_act.search.observations import unit, warp_targets, warp_variances
from bo_act.search.surrogate.gaussian_process import fit_gaussian_process
from bo_act.search.surrogate.own import AnySurrogate, OwnSurrogate, fit_own
from bo_act.search.surrogate.surrogate import Surrogate

_MOST_NOISE = 1e6  # in units of the warped target; fitted noise is far below


def fit_points(
    spec: AnySurrogate,
    x: Tensor,
    values: NDArray[np.float64],
    blocks: Mapping[str, slice],
    *,
    variances: NDArray[np.float64] | None = None,
    pending: Tensor | None = None,
    pruned: Tensor | None = None,
    believe: bool = True,
    seed: int,
) -> tuple[Surrogate, Tensor, str]:
    """Fit the surrogate of a spec to points.

    Args:
        spec: the surrogate.
        x: (n, d) float64 points in [0, 1].
        values: (n,) float64, larger is better.
        blocks: columns of each feature block.
        variances: (n,) of the values, if known; they replace ``spec.noise``.
        pending: (p, d) points under evaluation.
        pruned: (r, d) points that were stopped early.
        believe: treat pending points as observed; else they become the model's ``pending``.
        seed: of random choices while fitting.

    Returns:
        The model, the warped targets, and a note on anything unexpected.
    """
    y = torch.from_numpy(warp_targets(values, spec.targets))
    pending, pruned = (x[:0] if points is None else points for points in (pending, pruned))
    waiting, pending = (pending[:0], pending) if believe else (pending, pending[:0])
    # Pruned functions were worse than most: at best the median.
    ceiling = torch.full(
        (len(pending) + len(pruned),), torch.inf, device="cpu", dtype=torch.float64
    )
    ceiling[len(pending) :] = float(y.median())
    believed = torch.cat([pending, pruned])
    least_noise, known = 0.0, None
    if variances is not None:
        warped = warp_variances(variances, values, y.numpy(), spec.targets)
        known = torch.from_numpy(np.minimum(warped, _MOST_NOISE**2))
    elif spec.noise is not None:
        least_noise = min(spec.noise / unit(values, spec.targets), _MOST_NOISE) ** 2
    model: Surrogate
    failure = ""
    if isinstance(spec, OwnSurrogate):
        model = fit_own(
            spec,
            x,
            y,
            blocks,
            believed=believed,
            ceiling=ceiling,
            variances=torch.full_like(y, least_noise) if least_noise and known is None else known,
            seed=seed,
        )
    elif spec.name != "gp":
        # scikit-learn takes a while to import.
        from bo_act.search.surrogate.sklearn_models import RegressorModel

        model = RegressorModel(spec, x, y, believed=believed, ceiling=ceiling, seed=seed)
    else:
        model, failure = fit_gaussian_process(
            x,
            y,
            blocks,
            least_noise=least_noise,
            known_noise=known,
            believed=believed,
            ceiling=ceiling,
            kernel=spec.kernel,
            ard=spec.ard,
        )
    model.observed, model.pending = x, waiting
    return model, y, f"the surrogate kept its priors: {failure}" if failure else ""

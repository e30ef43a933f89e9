"""Knowing when to stop: how much the next evaluation is expected to bring."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import optuna
import torch

from bo_act.search.acquisition.pool import score_pool
from bo_act.search.observations import Observations, count_different, unit
from bo_act.search.searcher import fit_observed
from bo_act.specs import AcquisitionSpec, SurrogateSpec
from bo_act.study.storage.trials import StudyView
from bo_act.torch_state import plain_torch

if TYPE_CHECKING:
    from bo_act.search.embedding.embedding import Embedding
    from bo_act.study.sampling.sampler import ActivationSampler


def improvement_left(study: optuna.Study, sampler: ActivationSampler) -> float:
    """Return the expected improvement of the next evaluation over a study's best value.

    Args:
        study: of the sampler's space.
        sampler: with the embedding that the study uses.

    Returns:
        The largest expected improvement of any remaining function (or configuration; in an
        unenumerated space, of those seen so far), in units of the objective; infinity while there
        are too few observations.

    Examples:
        >>> import optuna, bo_act
        >>> space = bo_act.load_space("classic")
        >>> sampler = bo_act.ActivationSampler(space)
        >>> study = optuna.create_study(direction="maximize", sampler=sampler)
        >>> study.optimize(lambda trial: len(str(space.suggest_expression(trial))), n_trials=8)
        >>> improvement_left(study, sampler) >= 0
        True
    """
    if side := sampler.configurations(study):
        return side.improvement(StudyView.of(study))
    observations = sampler.view(study).observations
    # The embedding after the view: functions are met in reading it.
    return expected_improvement(sampler.embedding, observations)


@plain_torch()
def expected_improvement(embedding: Embedding, observations: Observations) -> float:
    """Return the largest expected improvement of any candidate over the best observed value.

    The surrogate sees winsorized values, which unlike ranks keep their unit.

    Args:
        embedding: of the space.
        observations: n values.
    """
    usable = embedding.valid[observations.indices]
    if count_different(observations.values[usable]) < 3:
        return math.inf
    left = embedding.valid.copy()
    left[list(observations.taken)] = False
    if not left.any():
        return 0.0
    model, y, _ = fit_observed(SurrogateSpec(targets="winsorized"), embedding, observations, seed=0)
    points = torch.from_numpy(embedding.points[left])
    scores = score_pool(AcquisitionSpec(name="log_ei"), model, points, float(y.max()))
    return math.exp(float(scores.max())) * unit(observations.values[usable], "winsorized")

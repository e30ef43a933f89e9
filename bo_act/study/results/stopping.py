"""When to stop: the expected improvement of the next evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna

if TYPE_CHECKING:
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
    view = sampler.view(study)
    # The embedding after the view, whose reading may add functions.
    return view.searcher.expected_improvement(
        sampler.embedding, view.observations, pending=view.pending, number=view.number
    )

"""Checks of a sampler's options for constraints and several objectives."""

from __future__ import annotations

from optuna.study import Study

from bo_act.errors import SearchError
from bo_act.search.acquisition.outcomes import check_outcomes
from bo_act.search.acquisition.own import AnyAcquisition
from bo_act.search.searcher import Searcher
from bo_act.search.strategies import Evolution, Strategy


def check_constrained(
    constraints_func: object, acquisition: AnyAcquisition, strategy: Strategy | None
) -> None:
    """Refuse constraints that cannot guide the choice.

    Raises:
        SearchError: it is not a function, or the acquisition function or a strategy ignores it.
    """
    if not callable(constraints_func):
        raise SearchError(
            "constraints_func: expected a function of a trial that returns numbers, got "
            f"{type(constraints_func).__name__}"
        )
    if strategy is not None:
        raise SearchError(
            "constraints_func guides the acquisition function, and a strategy has none; leave one "
            "of the two out"
        )
    check_outcomes(acquisition, objectives=1, constrained=True)


def check_several(study: Study, searcher: Searcher, *, metric: bool, warm: bool) -> None:
    """Refuse options for a single objective.

    Args:
        study: with several objectives.
        searcher: of the sampler.
        metric: whether the sampler has a metric.
        warm: whether it has a warm start.

    Raises:
        SearchError: the sampler has such an option.
    """
    single = {
        "evolution": (isinstance(searcher.strategy, Evolution), "leave the strategy out"),
        "a warm start": (warm, "leave warm_start out"),
        "a metric": (metric, "name each by study.set_metric_names"),
        "the noise of a measurement": (searcher.surrogate.noise, "leave it out; it is fitted"),
    }
    for option, (is_given, advice) in single.items():
        if is_given:
            raise SearchError(
                f"{option} supports one objective, and the study {study.study_name!r} has "
                f"{len(study.directions)}; {advice}"
            )
    if searcher.strategy is None:
        check_outcomes(searcher.acquisition, objectives=len(study.directions), constrained=False)

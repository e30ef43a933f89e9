"""What a study measures, noted in the study, so that whoever reads it shows values as they are."""

from __future__ import annotations

from optuna.study import Study, StudyDirection

from bo_act.errors import SearchError
from bo_act.metrics import Direction, Metric
from bo_act.optuna_internals import whole_study

METRIC = "bo_act:metric"
"""User attribute of a study: what it measures."""

SPEC = "bo_act:spec"
"""User attribute of a study: the resolved study file."""


def direction_of(study: Study) -> Direction:
    """Return the direction of a study as a metric has it.

    Raises:
        SearchError: it has several.
    """
    if (count := len(study.directions)) > 1:
        names = ", ".join(whole_study(study).metric_names or ())
        raise SearchError(
            f"the study {study.study_name!r} has {count} objectives{names and f' ({names})'}, and "
            "this is of studies with one; bo-act best shows its Pareto front, as "
            "study.best_trials does"
        )
    return _direction(study.directions[0])


def _direction(one: StudyDirection) -> Direction:
    return "maximize" if one == StudyDirection.MAXIMIZE else "minimize"


def metric_of(study: Study) -> Metric:
    """Return what a study measures.

    Where nobody has noted it, it is a value without a unit in the study's own direction, called
    as Optuna's ``study.metric_names`` say.

    Raises:
        SearchError: it has several objectives; see ``metrics_of``.
    """
    direction = direction_of(study)
    study = whole_study(study)  # a bracket of Hyperband has no attributes
    noted = Metric.read(study.user_attrs.get(METRIC))
    if noted is not None and noted.direction == direction:
        return noted
    (name,) = study.metric_names or ("value",)
    return Metric.read({"name": name, "direction": direction}) or Metric("value", direction)


def metrics_of(study: Study) -> tuple[Metric, ...]:
    """Return what a study measures, one metric for each objective."""
    if len(study.directions) == 1:
        return (metric_of(study),)
    names = whole_study(study).metric_names or [f"value {i}" for i in range(len(study.directions))]
    return tuple(
        Metric.read({"name": name, "direction": _direction(one)})
        or Metric(f"value {place}", _direction(one))
        for place, (name, one) in enumerate(zip(names, study.directions, strict=True))
    )


def note_metric(study: Study, metric: Metric) -> None:
    """Note in a study what it measures.

    Raises:
        SearchError: it was created with another direction, or measures something else.
    """
    if metric.direction != (direction := direction_of(study)):
        raise SearchError(
            f"the metric {metric} and the study {study.study_name!r}, created to {direction}, "
            "have different directions; give both the same"
        )
    noted = Metric.read(study.user_attrs.get(METRIC))
    if noted is not None and noted != metric:
        raise SearchError(
            f"the study {study.study_name!r} measures {noted}, not {metric}; values of two "
            "metrics do not compare, so give the new study another name"
        )
    if noted is None:
        study.set_user_attr(METRIC, metric.as_json())

"""A study's metric, recorded in the study, so that every reader shows its values correctly."""

from __future__ import annotations

from optuna.study import Study, StudyDirection

from bo_act.dependencies.optuna_internals import whole_study
from bo_act.errors import SearchError
from bo_act.metrics import Direction, Metric

METRIC = "bo_act:metric"
"""User attribute of a study: its metric."""

SPEC = "bo_act:spec"
"""User attribute of a study: the resolved study file."""


def direction_of(study: Study) -> Direction:
    """Return the direction of a study: ``maximize`` or ``minimize``.

    Raises:
        SearchError: the study has several objectives.
    """
    if (count := len(study.directions)) > 1:
        names = ", ".join(whole_study(study).metric_names or ())
        raise SearchError(
            f"the study {study.study_name!r} has {count} objectives{names and f' ({names})'}; "
            "expected a study with one; bo-act best shows its Pareto front, as "
            "study.best_trials does"
        )
    return _direction(study.directions[0])


def _direction(direction: StudyDirection) -> Direction:
    return "maximize" if direction == StudyDirection.MAXIMIZE else "minimize"


def metric_of(study: Study) -> Metric:
    """Return a study's metric.

    Without a recorded one, it is a value without a unit in the study's direction, with the name in
    Optuna's ``study.metric_names``.

    Raises:
        SearchError: the study has several objectives; see ``metrics_of``.
    """
    direction = direction_of(study)
    study = whole_study(study)  # a bracket of Hyperband has no attributes
    noted = Metric.read(study.user_attrs.get(METRIC))
    if noted is not None and noted.direction == direction:
        return noted
    (name,) = study.metric_names or ("value",)
    return Metric.read({"name": name, "direction": direction}) or Metric("value", direction)


def metrics_of(study: Study) -> tuple[Metric, ...]:
    """Return a study's metrics, one per objective."""
    if len(study.directions) == 1:
        return (metric_of(study),)
    names = whole_study(study).metric_names or [f"value {i}" for i in range(len(study.directions))]
    return tuple(
        Metric.read({"name": name, "direction": _direction(direction)})
        or Metric(f"value {i}", _direction(direction))
        for i, (name, direction) in enumerate(zip(names, study.directions, strict=True))
    )


def note_metric(study: Study, metric: Metric) -> None:
    """Record the metric of a study.

    Raises:
        SearchError: the study has another direction or metric.
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

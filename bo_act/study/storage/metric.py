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
    """Return the direction of a study as a metric has it."""
    return "maximize" if study.direction == StudyDirection.MAXIMIZE else "minimize"


def metric_of(study: Study) -> Metric:
    """Return what a study measures.

    Where nobody has noted it, it is a value without a unit in the study's own direction, called
    as Optuna's ``study.metric_names`` say.
    """
    direction = direction_of(study)
    study = whole_study(study)  # a bracket of Hyperband has no attributes
    noted = Metric.read(study.user_attrs.get(METRIC))
    if noted is not None and noted.direction == direction:
        return noted
    (name,) = study.metric_names or ("value",)
    return Metric.read({"name": name, "direction": direction}) or Metric("value", direction)


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

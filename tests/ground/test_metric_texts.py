"""Values of a metric, as people read them."""

from __future__ import annotations

import math

import pytest

from bo_act.errors import SpecError
from bo_act.metrics import ACCURACY, METRICS, Metric

LOSS = Metric("loss", "minimize", "nats")
ERROR = METRICS["mse"]


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (ACCURACY, 0.9412, "94.12%"),
        (ACCURACY, -0.00001, "0.00%"),
        (LOSS, 2.1033, "2.1033 nats"),
        (LOSS, 2, "2 nats"),
        (ERROR, 0.00291342, "0.0029134"),
        (ERROR, 1.5e-7, "1.5e-07"),
        (ERROR, 123456.7, "123457"),
        (ERROR, 3e12, "3e+12"),
        (ERROR, math.inf, "inf"),
        (ERROR, math.nan, "-"),
        (LOSS, None, "-"),
        (Metric("R²"), -0.25, "-0.25"),
        (Metric("x", unit="plain"), 1.0, "1"),
        (Metric("error rate", "minimize", "%"), 0.031, "3.10%"),
    ],
)
def test_a_value_is_shown_as_what_it_is(metric, value, text):
    assert metric.text(value) == text


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (ACCURACY, 0.0123, "+1.23"),
        (ACCURACY, -0.00001, "+0.00"),
        (LOSS, -0.0004123, "-0.000412"),
        (LOSS, 0.0, "+0"),
        (LOSS, math.nan, "-"),
    ],
)
def test_a_difference_has_its_sign(metric, value, text):
    assert metric.difference(value) == text


def test_values_of_a_column_have_their_points_below_each_other():
    assert LOSS.numbers([2.1033, 2.1, None, 12.0]) == ["2.1033", "2.1000", "-", "12.0000"]
    assert ACCURACY.texts([0.5, 1.0]) == ["50.00%", "100.00%"]
    # Where they are of other sizes, each has the digits that it needs.
    assert ERROR.numbers([0.0029134, 812345.0]) == ["0.0029134", "812345"]
    assert ERROR.numbers([1e-9, 0.5]) == ["1e-09", "0.5"]
    assert ERROR.numbers([]) == []


def test_intervals_say_how_many_digits_mean_anything():
    assert ACCURACY.interval(0.94123, 0.93123, 0.95123) == "94.12% ±1.00"
    assert LOSS.interval(2.10334, 2.0, 2.2) == "2.10 nats ±0.10"
    assert ERROR.interval(0.0012345, 0.0011345, 0.0013345, signed=True) == "+0.00123 ±0.00010"
    assert ERROR.interval(2.0, 2.0, 2.0) == "2.0 ±0.0"
    assert ERROR.interval(0.25, None, None) == "0.25"
    assert ERROR.interval(0.25, None, None, signed=True) == "+0.25"


def test_words_of_axes_and_differences():
    assert (ACCURACY.axis, ACCURACY.differences) == ("accuracy (%)", "points of accuracy")
    assert (LOSS.axis, LOSS.differences) == ("loss (nats)", "nats of loss")
    assert (ERROR.axis, ERROR.differences) == ("mean squared error", "mean squared error")
    assert str(LOSS) == "loss (minimize, nats)"


def test_what_is_better():
    assert ACCURACY.better(0.9, 0.8)
    assert LOSS.better(0.8, 0.9)
    assert not LOSS.better(0.8, 0.8)
    assert LOSS.better(0.8, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"direction": "minimise"}, "'minimize'"),
        ({"direction": None}, "got None"),
        ({"name": ""}, "metric.name: expected a line"),
        ({"name": "a\nb"}, "metric.name"),
        ({"name": 3}, "metric.name"),
        ({"unit": "x" * 61}, "metric.unit"),
        ({"worst": math.nan}, "metric.worst: expected a finite number"),
        ({"worst": "10"}, "metric.worst"),
        ({"worst": True}, "metric.worst"),
    ],
)
def test_what_is_no_metric_is_refused(changes, said):
    with pytest.raises(SpecError, match=said) as caught:
        Metric(**{"name": "loss"} | changes)
    assert "\n" not in str(caught.value)


def test_what_json_holds_is_read_again():
    for metric in (LOSS, *METRICS.values()):
        assert Metric.read(metric.as_json()) == metric
    for other in (None, "loss", {"name": ""}, {"nome": "x"}, {}):
        assert Metric.read(other) is None

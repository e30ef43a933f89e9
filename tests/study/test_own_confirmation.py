"""Confirming the best functions of a loop of one's own, and its report."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from scipy import stats

import bo_act
from bo_act.errors import BoActError, ExpressionError, SearchError

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def space():
    return bo_act.load_space("classic")


def noise(text: str, seed: int) -> float:
    return np.random.default_rng([seed, *text.encode()]).normal() / 100


def quality(text: str) -> float:
    return -abs(len(text) - 12) / 10


def searched(space, direction: str = "maximize", **options) -> optuna.Study:
    sign = 1 if direction == "maximize" else -1
    study = optuna.create_study(direction=direction, **options)
    study.sampler = bo_act.ActivationSampler(space)
    study.optimize(lambda t: sign * quality(str(space.suggest_expression(t))), n_trials=12)
    return study


def train(activation, seed: int) -> float:
    text = str(activation.expression)
    return quality(text) + noise(text, seed)


def test_the_best_are_trained_with_fresh_seeds_and_compared(space):
    study = searched(space)
    found = bo_act.confirm(study, train, space=space, top=2, seeds=6)
    assert [one.role for one in found] == ["found", "found", "baseline"]
    assert found[-1].activation == "relu(x)"
    assert found[0].searched == max(trial.value for trial in study.trials)
    for one in found:
        expected = [quality(one.activation) + noise(one.activation, 10_000 + s) for s in range(6)]
        assert one.values == pytest.approx(expected)
        assert one.mean == pytest.approx(np.mean(expected))
        half = stats.t.ppf(0.975, 5) * np.std(expected, ddof=1) / math.sqrt(6)
        assert one.interval == pytest.approx((one.mean - half, one.mean + half))
    paired = found[0].minus["relu(x)"]
    assert paired.p == pytest.approx(stats.ttest_rel(found[0].values, found[-1].values).pvalue)
    assert found[-1].minus == {}
    assert "minus relu(x) +" in str(found[0])


def test_an_interrupted_confirmation_goes_on(space, tmp_path):
    storage = f"sqlite:///{tmp_path / 's.db'}"
    study = searched(space, storage=storage, study_name="s")
    done = []

    def dying(activation, seed):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(seed)
        return train(activation, seed)

    with pytest.raises(KeyboardInterrupt):
        bo_act.confirm(study, dying, space=space, top=1, seeds=4)
    done.clear()

    def counting(activation, seed):
        done.append(seed)
        return train(activation, seed)

    again = optuna.load_study(study_name="s", storage=storage)
    found = bo_act.confirm(again, counting, space=space, top=1, seeds=4)
    assert len(done) == 4
    undisturbed = bo_act.confirm(searched(space), train, space=space, top=1, seeds=4)
    assert found == undisturbed
    assert bo_act.confirm(again, counting, space=space, top=1, seeds=4) == found
    assert len(done) == 4


def test_a_study_that_minimizes(space):
    study = searched(space, "minimize")
    (best, _) = bo_act.confirm(study, lambda a, s: -train(a, s), space=space, top=1, seeds=2)
    assert best.searched == min(trial.value for trial in study.trials)


@pytest.mark.parametrize("kind", ["raised", "nan", "inf"])
def test_a_training_that_diverges_has_no_mean(space, kind):
    def train_badly(activation, seed):
        if seed == 10_001 and str(activation.expression) == "relu(x)":
            if kind == "raised":
                raise bo_act.Diverged
            return float(kind)
        return train(activation, seed)

    *_, relu = bo_act.confirm(searched(space), train_badly, space=space, top=1, seeds=3)
    assert math.isnan(relu.mean)
    assert relu.interval is None
    assert math.isnan(relu.values[1])


def test_any_sampler_and_trials_without_texts(space):
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.optimize(lambda t: quality(str(space.suggest_expression(t))), n_trials=5)
    found = bo_act.confirm(study, train, space=space, top=5, seeds=1, baselines=())
    assert len(found) == len({one.activation for one in found}) <= 5
    assert all(one.interval is None for one in found)


def test_what_does_not_fit_is_told(space):
    empty = optuna.create_study(direction="maximize")
    with pytest.raises(SearchError, match="no function to confirm"):
        bo_act.confirm(empty, train, space=space)
    study = searched(space)
    with pytest.raises(SearchError, match=r"expected train\(activation, seed\) to return a number"):
        bo_act.confirm(study, lambda activation, seed: None, space=space, seeds=1)
    with pytest.raises(SearchError, match="top"):
        bo_act.confirm(study, train, space=space, top=0)
    with pytest.raises(ExpressionError):
        bo_act.confirm(study, train, space=space, baselines=["no(x"])


def test_the_report_of_a_loop_of_ones_own(space, tmp_path):
    study = searched(space)
    path = bo_act.write_report(study, study.sampler, tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert study.best_trial.user_attrs["activation"] in page
    without = bo_act.write_report(study, None, tmp_path / "without.html")
    assert without.stat().st_size > 10_000
    with pytest.raises(BoActError, match="cannot"):
        bo_act.write_report(study, None, tmp_path / "report.html" / "x.html")

"""EmbeddingSampler: any finite set by coordinates, in real studies and storages."""

from __future__ import annotations

import threading

import numpy as np
import optuna
import pytest
import torch

from bo_act import Embedding, EmbeddingSampler, why
from bo_act.errors import SearchError

optuna.logging.set_verbosity(optuna.logging.WARNING)

POINTS = np.random.default_rng(5).normal(size=(2_000, 3)) * [1.0, 100.0, 1e-3]
"""In units of their own, as coordinates from elsewhere are."""

RANKS = POINTS.argsort(axis=0).argsort(axis=0) / len(POINTS)
VALUES = -((RANKS - 0.3) ** 2).sum(axis=1)


def searched(sampler: EmbeddingSampler, trials: int, **options) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=sampler, **options)
    study.optimize(lambda trial: VALUES[sampler.suggest(trial)], n_trials=trials)
    return study


def items(study: optuna.Study) -> list[int]:
    return [trial.params["item"] for trial in study.trials]


def test_it_finds_the_best_of_two_thousand():
    study = searched(EmbeddingSampler(POINTS), 40)
    assert len(set(items(study))) == 40
    at_random = np.median([np.sort(VALUES)[-50], np.sort(VALUES)[-51]])  # the best of forty
    assert study.best_value > at_random
    assert (study.best_value < VALUES).sum() < 3


def test_a_resumed_study_goes_on_as_an_uninterrupted_one(tmp_path):
    storage = f"sqlite:///{tmp_path / 's.db'}"
    whole = searched(EmbeddingSampler(POINTS, seed=1), 14)
    searched(EmbeddingSampler(POINTS, seed=1), 8, storage=storage, study_name="s")
    sampler = EmbeddingSampler(POINTS, seed=1)
    study = optuna.load_study(study_name="s", storage=storage, sampler=sampler)
    study.optimize(lambda trial: VALUES[sampler.suggest(trial)], n_trials=6)
    assert items(study) == items(whole)
    assert searched(EmbeddingSampler(POINTS, seed=2), 8).trials[5].params != whole.trials[5].params


def test_workers_share_no_item(tmp_path):
    storage = f"sqlite:///{tmp_path / 's.db'}"
    searched(EmbeddingSampler(POINTS), 4, storage=storage, study_name="s")

    def work() -> None:
        sampler = EmbeddingSampler(POINTS)
        study = optuna.load_study(study_name="s", storage=storage, sampler=sampler)
        study.optimize(lambda trial: VALUES[sampler.suggest(trial)], n_trials=5)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = optuna.load_study(study_name="s", storage=storage)
    assert len(set(items(study))) == len(study.trials) == 19


def test_a_small_set_ends_when_all_was_tried():
    sampler = EmbeddingSampler(POINTS[:6])
    study = optuna.create_study(direction="maximize", sampler=sampler)
    with pytest.warns(UserWarning, match="was tried"):
        study.optimize(lambda trial: VALUES[sampler.suggest(trial)], n_trials=20)
    assert sorted(items(study)) == list(range(6))


def test_labels_baselines_why_and_enqueued_items():
    labels = [f"molecule {number}" for number in range(2_000)]
    sampler = EmbeddingSampler(torch.from_numpy(POINTS), labels=labels, baselines=[17, 3])
    study = searched(sampler, 8)
    assert items(study)[:2] == [17, 3]
    assert study.trials[0].user_attrs["item"] == "molecule 17"
    found = why(study, sampler, 7)
    assert found.activation == labels[items(study)[7]]
    assert found.explanation is not None
    study.enqueue_trial({"item": 99})
    study.optimize(lambda trial: VALUES[sampler.suggest(trial)], n_trials=1)
    assert items(study)[-1] == 99
    study.enqueue_trial({"item": 2_000})
    with pytest.raises(SearchError, match=r"one of 2000 items, from 0, got 2000"):
        study.optimize(lambda trial: VALUES[sampler.suggest(trial)], n_trials=1)


def test_other_parameters_and_several_choices_are_searched_together():
    sampler = EmbeddingSampler(POINTS[:300], names=("left", "right"))
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial):
        left, right = sampler.suggest(trial, "left"), sampler.suggest(trial, "right")
        rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
        return VALUES[left] + VALUES[right] - (np.log10(rate) + 2) ** 2 / 10

    study.optimize(objective, n_trials=30)
    assert {"left.item", "right.item", "rate"} == set(study.best_params)
    drawn = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    drawn.optimize(objective, n_trials=30)
    assert study.best_value > drawn.best_value
    with pytest.raises(SearchError, match=r"expected one of the sampler's names .*'left', 'right'"):
        sampler.suggest(study.ask(), "middle")


def test_an_item_that_was_left_open_in_the_queue_is_drawn():
    drawn = []
    for _ in range(2):
        sampler = EmbeddingSampler(POINTS, names=("a", "b"))
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.enqueue_trial({"a.item": 3})
        study.optimize(
            lambda trial, by=sampler: (
                VALUES[by.suggest(trial, "a")] - VALUES[by.suggest(trial, "b")]
            ),
            n_trials=2,
        )
        assert study.trials[0].params["a.item"] == 3
        assert study.trials[0].user_attrs["proposal"] == {"by": "enqueued"}
        drawn.append(study.trials[0].params["b.item"])
    assert drawn[0] == drawn[1]


def test_any_sampler_of_optuna_can_search_the_same_study():
    sampler = EmbeddingSampler(POINTS)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(lambda trial: VALUES[sampler.suggest(trial)], n_trials=6)
    study.sampler = sampler
    study.optimize(lambda trial: VALUES[sampler.suggest(trial)], n_trials=6)
    assert len(set(items(study))) == 12


def test_blocks_and_places():
    valid = np.ones(2_000, dtype=bool)
    valid[::2] = False
    embedding = Embedding(POINTS, {"a": slice(0, 1), "b": slice(1, 3)}, valid)
    study = searched(EmbeddingSampler(embedding), 8)
    assert all(item % 2 for item in items(study))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"points": [1.0, 2.0]}, r"expected an embedding \(N, d\)"),
        ({"points": POINTS[:3], "labels": ["a"]}, r"a label for each of 3 points, got 1"),
        ({"points": POINTS[:3], "baselines": [3]}, r"one of 3 items, from 0, got 3"),
        ({"points": POINTS[:3], "baselines": [True]}, r"one of 3 items, from 0, got True"),
        ({"points": [[np.nan, 1.0], [0.0, 1.0]]}, r"row 0, column 0 of the embedding is nan"),
    ],
)
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(SearchError, match=said):
        EmbeddingSampler(**options)

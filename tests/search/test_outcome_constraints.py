"""Several objectives and constraints: what BoTorch says, what is proposed, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import (
    LogConstrainedExpectedImprovement,
    LogProbabilityOfFeasibility,
)
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.multi_objective import logei
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from botorch.sampling import SobolQMCNormalSampler
from botorch.utils.multi_objective.box_decompositions.dominated import DominatedPartitioning

import bo_act
from bo_act import AcquisitionSpec, Embedding, Observations, Searcher, SurrogateSpec
from bo_act.errors import SearchError
from bo_act.search.acquisition.outcomes import _DRAWS, ScoringOutcomes
from bo_act.search.strategies import Evolution
from bo_act.search.surrogate.outcomes import warp_constraint

POINTS = np.random.default_rng(0).uniform(size=(400, 2))
EMBEDDING = Embedding.of(POINTS)
TARGETS = np.array([[0.2, 0.3], [0.8, 0.6]])


def objectives(rows) -> np.ndarray:
    """Nearness to two places, (n, 2)."""
    return -np.linalg.norm(POINTS[rows][:, None] - TARGETS, axis=2)


def constraint(rows) -> np.ndarray:
    """At most 0 in the left two fifths, (n, 1)."""
    return 100 * (POINTS[rows][:, :1] - 0.4)


def observed(rows, *, several=False, constrained=False, pruned=()) -> Observations:
    values = objectives(rows)
    return Observations(
        np.array(rows),
        values[:, 0],
        pruned,
        others=values[:, 1:] if several else None,
        constraints=constraint(rows) if constrained else None,
    )


START = [3, 50, 120, 200, 260, 333, 14, 390]


def scoring(**kinds) -> ScoringOutcomes:
    fit = Searcher().fit(EMBEDDING, observed(START, **kinds), outcomes=True)
    return ScoringOutcomes(AcquisitionSpec(), fit.outcomes)


def points(count: int = 40) -> torch.Tensor:
    return torch.from_numpy(EMBEDDING.points[:count])


# --- BoTorch's numbers ----------------------------------------------------------------------


@torch.no_grad()
def test_constrained_improvement_is_botorchs():
    ours = scoring(constrained=True)
    assert ours.is_any_feasible
    (limit,) = ours.outcomes.limits
    theirs = LogConstrainedExpectedImprovement(
        ours.outcomes.botorch_model(), ours.best, 0, {1: (limit, None)}
    )
    values, holds = objectives(START)[:, 0], constraint(START)[:, 0] <= 0
    place = int(np.where(holds, values, -np.inf).argmax())
    assert ours.best == float(ours.outcomes.targets[place, 0])
    torch.testing.assert_close(
        ours.scorer(points(), seed=0)(points()), theirs(points().unsqueeze(1)), rtol=0, atol=1e-8
    )


@torch.no_grad()
def test_with_nothing_feasible_the_probability_of_feasibility_is_botorchs():
    some = observed(START, constrained=True)
    away = Observations(some.measured, some.values, constraints=some.constraints + 100)
    outcomes = Searcher().fit(EMBEDDING, away, outcomes=True).outcomes
    ours = ScoringOutcomes(AcquisitionSpec(), outcomes)
    assert not ours.is_any_feasible
    theirs = LogProbabilityOfFeasibility(outcomes.botorch_model(), {1: (outcomes.limits[0], None)})
    torch.testing.assert_close(
        ours.scorer(points(), seed=0)(points()), theirs(points().unsqueeze(1)), rtol=0, atol=1e-8
    )


@torch.no_grad()
@pytest.mark.parametrize("constrained", [False, True])
def test_hypervolume_improvement_is_botorchs(constrained, monkeypatch):
    ours = scoring(several=True, constrained=constrained)
    monkeypatch.setattr(logei, "_load_attempted", False)
    score = ours.scorer(points(), seed=5)
    assert not logei._load_attempted  # nothing is compiled on the way
    outcomes, options = ours.outcomes, {}
    if constrained:
        (limit,) = outcomes.limits
        options = {
            "objective": IdentityMCMultiOutputObjective(outcomes=[0, 1]),
            "constraints": [lambda samples: limit - samples[..., 2]],
        }
    monkeypatch.setattr(logei, "_load_attempted", True)
    torch.manual_seed(5)
    theirs = qLogNoisyExpectedHypervolumeImprovement(
        outcomes.botorch_model(),
        ours.reference,
        outcomes.observed,
        sampler=SobolQMCNormalSampler(torch.Size([_DRAWS]), seed=5),
        prune_baseline=True,
        **options,
    )
    torch.testing.assert_close(score(points()), theirs(points().unsqueeze(1)), rtol=0, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("kinds", [{"several": True}, {"constrained": True}])
def test_screening_keeps_the_best(kinds, monkeypatch):
    ours = scoring(**kinds)
    every = points(400)
    scores = ours.scorer(every, seed=1)(every)
    assert torch.isfinite(scores).all()
    assert int(scores.argmax()) in ours.promising(every, 100).tolist()
    monkeypatch.setattr("bo_act.search.acquisition.outcomes._LOOKED", 100)
    screened = ours.scorer(every, seed=1)(every)
    assert int(screened.argmax()) == int(scores.argmax())


def test_a_constraint_keeps_its_signs_and_has_no_unit():
    values = np.array([-3.0, -0.1, 0.0, 0.2, 1e9])
    warped, limit = warp_constraint(values)
    assert ((warped >= limit - 1e-12) == (values <= 0)).all()
    again, same = warp_constraint(1e-6 * values)
    np.testing.assert_allclose(again, warped)
    assert same == pytest.approx(limit)
    alone, limit = warp_constraint(np.full(4, 2.0))  # all violate it alike
    assert (alone == 0).all()
    assert limit > 0


# --- what is proposed -----------------------------------------------------------------------


def search(count: int, *, seed: int = 0, **kinds) -> list[int]:
    rows = list(START)
    for _ in range(count):
        searcher = Searcher(seed=seed)
        rows.append(searcher.propose(EMBEDDING, observed(rows, **kinds), number=len(rows)).index)
    return rows[len(START) :]


def volume(rows) -> float:
    found = DominatedPartitioning(
        torch.tensor([-1.0, -1.0], dtype=torch.float64), torch.from_numpy(objectives(rows))
    )
    return float(found.compute_hypervolume())


def test_the_front_is_better_than_at_random():
    found = volume(START + search(12, several=True))
    others = np.random.default_rng(0).permuted(np.tile(np.arange(400), (50, 1)), axis=1)[:, :12]
    assert found > max(volume([*START, *some]) for some in others)


def test_the_best_that_satisfies_a_constraint_is_found():
    # The best place of the second objective violates it.
    holds = np.flatnonzero(constraint(range(400))[:, 0] <= 0)
    best = int(holds[objectives(holds)[:, 1].argmax()])
    rows = list(START)
    for _ in range(4):
        some = Observations(np.array(rows), objectives(rows)[:, 1], constraints=constraint(rows))
        rows.append(Searcher().propose(EMBEDDING, some, number=len(rows)).index)
    assert best in rows
    plain = Observations(np.array(START), objectives(START)[:, 1])
    blind = Searcher().propose(EMBEDDING, plain, number=8)
    assert constraint([blind.index])[0, 0] > 0


def test_pending_and_pruned_are_not_proposed_and_change_the_choice():
    some = observed(START, several=True, constrained=True, pruned={7})
    first = Searcher().propose(EMBEDDING, some, number=8)
    second = Searcher().propose(EMBEDDING, some, number=8, pending={first.index})
    assert first.index != second.index
    away = np.linalg.norm(POINTS[first.index] - POINTS[second.index])
    assert away > 0.02  # what is near would bring nothing more
    assert len(first.outcomes) == 2
    assert 0 < first.feasible <= 1


def test_a_constant_objective_or_constraint_is_no_hindrance():
    some = observed(START)
    same = np.zeros((len(START), 1))
    for options in ({"others": same}, {"constraints": same + 1}, {"constraints": same - 1}):
        told = Observations(some.measured, some.values, **options)
        proposal = Searcher().propose(EMBEDDING, told, number=8)
        assert proposal.by == "acquisition"


def test_three_objectives():
    values = np.column_stack([objectives(START), POINTS[START, 0]])
    some = Observations(np.array(START), values[:, 0], others=values[:, 1:])
    assert len(Searcher().propose(EMBEDDING, some, number=8).outcomes) == 3


def test_what_is_not_told_of_a_constraint_is_unknown():
    some = observed(START, constrained=True)
    told = some.constraints.copy()
    told[:3] = np.nan
    partly = Observations(some.measured, some.values, constraints=told)
    assert Searcher().propose(EMBEDDING, partly, number=8).feasible is not None
    told[1:] = np.nan
    told[0] = 1.0  # a single value: nothing can be learnt from it
    hardly = Observations(some.measured, some.values, constraints=told)
    assert Searcher().propose(EMBEDDING, hardly, number=8).by == "acquisition"


@pytest.mark.parametrize("name", ["knn", "forest"])
def test_other_surrogates_know_constraints_but_not_several_objectives(name):
    searcher = Searcher(surrogate=SurrogateSpec(name=name))
    assert searcher.propose(EMBEDDING, observed(START, constrained=True), number=8).feasible
    with pytest.raises(SearchError, match="several objectives need a joint posterior"):
        searcher.propose(EMBEDDING, observed(START, several=True), number=8)


def test_botorchs_functions_of_your_own():
    def with_constraints(model, objective, constraints, X_baseline):
        return qLogNoisyExpectedImprovement(
            model, X_baseline, objective=objective, constraints=constraints
        )

    def noisy(model, ref_point, X_baseline, objective, constraints):
        assert ref_point.shape == (2,)
        return qLogNoisyExpectedHypervolumeImprovement(
            model, ref_point, X_baseline, objective=objective, constraints=constraints
        )

    for make, kinds in (
        (with_constraints, {"constrained": True}),
        (noisy, {"several": True, "constrained": True}),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logei, "_load_attempted", True)
            searcher = Searcher(acquisition=bo_act.OwnAcquisition(make))
            assert searcher.propose(EMBEDDING, observed(START, **kinds), number=8).score is not None
    blind = Searcher(acquisition=bo_act.OwnAcquisition(lambda model, best_f: None, name="blind"))
    with pytest.raises(SearchError, match="'blind' takes no 'constraints'"):
        blind.propose(EMBEDDING, observed(START, constrained=True), number=8)


@pytest.mark.parametrize(
    ("options", "kinds", "said"),
    [
        ({"name": "ucb"}, {"constrained": True}, "'ucb' does not support constraints"),
        ({"name": "log_ei"}, {"several": True}, "'log_ei' supports one objective"),
        ({"name": "hypervolume"}, {"several": True}, "'hypervolume' supports one objective"),
    ],
)
def test_what_cannot_be_had_says_so(options, kinds, said):
    searcher = Searcher(acquisition=AcquisitionSpec(**options), costs=np.ones(400))
    with pytest.raises(SearchError, match=said):
        searcher.propose(EMBEDDING, observed(START, **kinds), number=8)


def test_evolution_and_expected_improvement_are_of_one_value():
    searcher = Searcher(strategy=Evolution(bo_act.load_space("classic")))
    with pytest.raises(SearchError, match="evolution chooses parents by one value"):
        searcher.propose(EMBEDDING, observed(START, several=True), number=8)
    with pytest.raises(SearchError, match="needs a single objective"):
        Searcher().expected_improvement(EMBEDDING, observed(START, several=True))
    assert Searcher().expected_improvement(EMBEDDING, observed(START, constrained=True)) > 0


def test_observations_refuse_what_does_not_fit():
    with pytest.raises(SearchError, match="constraints"):
        Observations(np.arange(3), np.arange(3.0), constraints=np.zeros(3))
    with pytest.raises(SearchError, match="further objectives"):
        Observations(np.arange(3), np.arange(3.0), others=np.full((3, 1), np.nan))

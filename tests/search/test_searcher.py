"""The searcher as a pure function: what it proposes, and what it never does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement, UpperConfidenceBound
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import BLOCKS, CLOUD, smooth
from strategies import embeddings

from bo_act.errors import SearchError
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations, warp_targets
from bo_act.search.searcher import Searcher
from bo_act.search.surrogate.gaussian_process import fit_gaussian_process
from bo_act.specs import AcquisitionSpec, SurrogateSpec

pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.BotorchWarning")

ACQUISITIONS = [
    AcquisitionSpec(name="ucb", beta=1.5),
    AcquisitionSpec(name="ucb", beta=0),
    AcquisitionSpec(name="log_ei"),
]


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    return CLOUD.copy()


def botorchs_own(spec: AcquisitionSpec, model, best: float):
    if spec.name == "log_ei":
        return LogExpectedImprovement(model, best_f=best)
    return UpperConfidenceBound(model, beta=spec.beta**2)


def fit_gp(x: torch.Tensor, y: torch.Tensor):
    return fit_gaussian_process(x, y, BLOCKS)[0]


# --- the searcher ---------------------------------------------------------------------------


def none_yet() -> Observations:
    return Observations(np.array([], dtype=np.int64), np.array([]))


def run(searcher: Searcher, embedding: Embedding, objective: np.ndarray, trials: int):
    """Propose and measure in turn."""
    proposals, indices = [], []
    for number in range(trials):
        taken = np.array(indices, dtype=np.int64)
        observations = Observations(taken, objective[taken])
        proposals.append(searcher.propose(embedding, observations, number=number))
        indices.append(proposals[-1].index)
    return proposals


@pytest.fixture(scope="module")
def cloud_embedding(cloud) -> Embedding:
    valid = np.ones(len(cloud), dtype=bool)
    valid[100:] = False
    points = cloud.copy()
    points[100:] = np.nan
    return Embedding(points, BLOCKS, valid)


def test_baselines_then_random_ones_then_the_acquisition(cloud, cloud_embedding):
    baselines = (7, 110, 3)  # 110 has no place in the embedding, but can be measured
    searcher = Searcher(baselines=baselines, initial=3)
    proposals = run(searcher, cloud_embedding, smooth(cloud), 8)
    assert [p.by for p in proposals] == ["baseline"] * 3 + ["random"] * 3 + ["acquisition"] * 2
    assert tuple(p.index for p in proposals[:3]) == baselines
    assert len({p.index for p in proposals}) == 8
    assert all(p.mean is None and p.deviation is None for p in proposals[:6])
    assert all(p.deviation > 0 and p.note == "" for p in proposals[6:])


def test_a_baseline_that_is_pending_or_closed_is_not_waited_for(cloud_embedding):
    searcher = Searcher(baselines=(7, 8, 9))
    assert searcher.propose(cloud_embedding, none_yet(), pending=[7], number=1).index == 8
    closed = replace(none_yet(), closed=frozenset({7}))
    assert searcher.propose(cloud_embedding, closed, pending=[8], number=2).index == 9


def test_random_ones_depend_on_seed_and_number(cloud_embedding):
    def draw(seed: int, number: int) -> int:
        return Searcher(seed=seed).propose(cloud_embedding, none_yet(), number=number).index

    assert len({draw(seed, number) for seed in range(4) for number in range(4)}) > 10
    assert draw(2, 3) == draw(2, 3)


def test_random_while_values_say_nothing(cloud_embedding):
    flat = Observations(np.array([1, 2, 3, 4]), np.full(4, 0.1))
    assert Searcher().propose(cloud_embedding, flat, number=4).by == "random"
    # Two different values, one of them of a function without a place.
    hidden = Observations(np.array([1, 2, 110]), np.array([0.1, 0.1, 0.9]))
    assert Searcher().propose(cloud_embedding, hidden, number=4).by == "random"


@pytest.mark.parametrize("spec", ACQUISITIONS, ids=str)
def test_the_proposal_is_the_best_of_botorchs_own_scores(cloud, cloud_embedding, spec):
    indices, pending = np.arange(12), [50, 51, 105]
    values = smooth(cloud[:12])
    proposal = Searcher(acquisition=spec, seed=4).propose(
        cloud_embedding, Observations(indices, values), pending=pending, number=9
    )
    y = torch.from_numpy(warp_targets(values, SurrogateSpec().targets))
    model = fit_gp(torch.from_numpy(cloud[:12]), y)
    waiting = torch.from_numpy(cloud[50:52])
    model = model.condition_on_observations(waiting, model.posterior(waiting).mean.detach())
    free = [i for i in range(12, 100) if i not in pending]
    points = torch.from_numpy(cloud[free])
    scores = botorchs_own(spec, model, float(y.max()))(points.unsqueeze(1))
    assert proposal.index == free[int(scores.argmax())]
    posterior = model.posterior(torch.from_numpy(cloud[[proposal.index]]))
    assert proposal.mean == pytest.approx(posterior.mean.item(), abs=1e-6)
    assert proposal.deviation == pytest.approx(posterior.variance.sqrt().item(), abs=1e-6)


def test_what_was_pruned_is_believed_to_be_no_better_than_the_median(cloud, cloud_embedding):
    spec = AcquisitionSpec(name="ucb")
    searcher = Searcher(acquisition=spec)
    values = smooth(cloud[:12])
    best = searcher.propose(cloud_embedding, Observations(np.arange(12), values), number=12)
    observations = Observations(np.arange(12), values, pruned=frozenset({best.index}))
    proposal = searcher.propose(cloud_embedding, observations, number=12)
    y = torch.from_numpy(warp_targets(values, SurrogateSpec().targets))
    model = fit_gp(torch.from_numpy(cloud[:12]), y)
    stopped = torch.from_numpy(cloud[[best.index]])
    assert model.posterior(stopped).mean.item() > y.median()  # so the ceiling makes a difference
    model = model.condition_on_observations(stopped, y.median().reshape(1, 1))
    free = [i for i in range(12, 100) if i != best.index]
    scores = botorchs_own(spec, model, float(y.max()))(torch.from_numpy(cloud[free]).unsqueeze(1))
    assert proposal.index == free[int(scores.argmax())]


@pytest.mark.parametrize("targets", ["rank_normal", "winsorized", "standardized"])
def test_targets_can_be_chosen(cloud, cloud_embedding, targets):
    searcher = Searcher(surrogate=SurrogateSpec(targets=targets))
    observations = Observations(np.arange(10), np.where(np.arange(10) < 5, 0.1, smooth(cloud[:10])))
    proposal = searcher.propose(cloud_embedding, observations, number=10)
    assert proposal.by == "acquisition"
    assert proposal.index in range(10, 100)


@settings(max_examples=30)
@given(st.data())
def test_what_is_taken_is_never_proposed(data):
    embedding = data.draw(embeddings())
    every = range(len(embedding))
    some = st.lists(st.sampled_from(every), unique=True, max_size=len(embedding))
    indices = np.array(data.draw(some), dtype=np.int64)
    values = data.draw(
        st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=len(indices), max_size=len(indices))
    )
    pending = data.draw(some)
    closed = frozenset(data.draw(some))
    baselines = tuple(data.draw(st.lists(st.sampled_from(every), max_size=3)))
    searcher = Searcher(
        baselines=baselines,
        initial=data.draw(st.integers(0, 2)),
        acquisition=AcquisitionSpec(name=data.draw(st.sampled_from(["ucb", "log_ei"]))),
    )
    pruned = frozenset(data.draw(some))
    observations = Observations(indices, np.array(values), pruned, closed)
    gone = set(indices.tolist()) | set(pending) | closed | pruned
    open_baselines = [index for index in baselines if index not in gone]
    free = set(np.flatnonzero(embedding.valid).tolist()) - gone

    def propose():
        return searcher.propose(embedding, observations, pending=pending, number=5)

    if not open_baselines and not free:
        with pytest.raises(SearchError, match="nothing left to propose"):
            propose()
        return
    proposal = propose()
    if open_baselines:
        assert (proposal.index, proposal.by) == (open_baselines[0], "baseline")
    else:
        assert proposal.index in free
        assert proposal.by != "baseline"


@pytest.mark.parametrize("name", ["ucb", "log_ei", "max_value_entropy", "thompson"])
def test_a_batch_is_what_parallel_workers_get(cloud, cloud_embedding, name):
    searcher = Searcher(baselines=(7,), acquisition=AcquisitionSpec(name=name))
    observations = Observations(np.arange(7), smooth(cloud[:7]))
    batch = searcher.propose_batch(cloud_embedding, observations, 5, pending=[50], number=7)
    pending = {50}
    for place, proposal in enumerate(batch):
        assert proposal == searcher.propose(
            cloud_embedding, observations, pending=pending, number=7 + place
        )
        pending.add(proposal.index)
    assert len(pending) == 6
    assert batch[0].index == 7


def test_a_batch_of_what_is_left(cloud, cloud_embedding):
    observations = Observations(np.arange(97), smooth(cloud[:97]))
    batch = Searcher().propose_batch(cloud_embedding, observations, 9, number=97)
    assert sorted(proposal.index for proposal in batch) == [97, 98, 99]
    with pytest.raises(SearchError, match="nothing left"):
        Searcher().propose_batch(cloud_embedding, observations, 2, pending=[97, 98, 99], number=97)
    with pytest.raises(SearchError, match="at least one, got 0"):
        Searcher().propose_batch(cloud_embedding, observations, 0, number=97)


def test_an_exhausted_space(cloud_embedding):
    indices = np.arange(90)
    observations = Observations(indices, np.zeros(90), closed=frozenset(range(90, 97)))
    with pytest.raises(SearchError, match="100 of 120 functions are in the embedding"):
        Searcher().propose(cloud_embedding, observations, pending=[97, 98, 99], number=3)
    left = Searcher().propose(cloud_embedding, observations, pending=[97, 99], number=3)
    assert left.index == 98


CHILD = """
import json, sys
import numpy as np, torch
torch.set_num_threads(1)
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations
from bo_act.search.searcher import Searcher
case = json.load(sys.stdin)
blocks = {name: slice(*ends) for name, ends in case["blocks"].items()}
points = np.array(case["points"])
embedding = Embedding(points, blocks, ~np.isnan(points).any(axis=1))
observations = Observations(np.array(case["indices"]), np.array(case["values"]), frozenset({30}))
p = Searcher(seed=2).propose(embedding, observations, pending={41, 40, 39}, number=6)
print(json.dumps([p.index, p.by, p.mean, p.deviation]))
"""


def test_a_proposal_is_a_function_of_its_arguments(cloud, cloud_embedding):
    values = smooth(cloud[:9])
    observations = Observations(np.arange(9), values, frozenset({30}))
    searcher = Searcher(seed=2)

    def propose(pending=(39, 40, 41)):
        return searcher.propose(cloud_embedding, observations, pending=pending, number=6)

    first = propose()
    assert first.by == "acquisition"
    torch.manual_seed(123)
    np.random.seed(5)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    searcher.propose(cloud_embedding, observations, number=7)  # another one in between
    assert propose() == first
    assert propose((41, 39, 40)) == first
    assert propose({40, 41, 39}) == first
    # … and it leaves the process as it was.
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state

    case = {
        "blocks": {name: [s.start, s.stop] for name, s in BLOCKS.items()},
        "points": cloud_embedding.points.tolist(),
        "indices": list(range(9)),
        "values": values.tolist(),
    }
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD],
        input=json.dumps(case),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    assert json.loads(other.stdout) == [first.index, first.by, first.mean, first.deviation]


@pytest.mark.parametrize(
    ("trials", "share"), [(12, 0.5), pytest.param(25, 0.25, marks=pytest.mark.slow)]
)
def test_it_beats_random_search(trials, share):
    better, gaps = 0, []
    for seed in range(5):
        points = np.random.default_rng(seed).uniform(size=(300, 4))
        objective = smooth(points)
        embedding = Embedding(points, BLOCKS, np.ones(300, dtype=bool))
        start = tuple(int(i) for i in np.random.default_rng([seed, 1]).permutation(300)[:4])
        chosen = [p.index for p in run(Searcher(start, 2, seed=seed), embedding, objective, trials)]
        drawn = [*start, *np.random.default_rng([seed, 2]).choice(300, trials - 4, replace=False)]
        ours, theirs = objective[chosen].max(), objective[drawn].max()
        better += ours > theirs
        gaps.append((objective.max() - ours, objective.max() - theirs))
    regret, random_regret = np.mean(gaps, axis=0)
    assert better >= 4
    assert regret < share * random_regret

"""Fisher spectra on demand: the proposals of spectra that were there, however it is run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from kills import killed_ten_times
from optuna.distributions import FloatDistribution
from sklearn.decomposition import PCA
from test_embedding import left_out, output_table, with_spectra
from test_features import IMAGES, LABELS, Counted
from typer.testing import CliRunner

from bo_act import ActivationSampler
from bo_act.activations.space import Space
from bo_act.cli import app
from bo_act.errors import BoActError, SearchError, SpecError
from bo_act.features import spectra as computing_spectra
from bo_act.features.compute import compute_features
from bo_act.features.table import Block, FeatureTable
from bo_act.search.acquisition import score_pool
from bo_act.search.embedding import Embedding, PcaEmbedder
from bo_act.search.observations import Observations
from bo_act.search.searcher import Searcher, fit_observed
from bo_act.search.strategies import RandomSearch
from bo_act.spec_files import read_study
from bo_act.specs import AcquisitionSpec, FeaturesSpec, SpaceSpec
from bo_act.study.runner import Events, run_study
from bo_act.study.spectra import SPECTRA, look_closer
from bo_act.study.storage import load_study, open_storage
from bo_act.study.task import Task
from bo_act.study.work import look_at_functions

optuna.logging.set_verbosity(optuna.logging.WARNING)

UNARY = ("identity", "tanh", "relu", "sigmoid", "erf", "softplus", "abs", "exp")
BINARY = ("add", "mul", "max")
SPACE = Space(
    SpaceSpec(
        name="t",
        unary=UNARY,
        binary=BINARY,
        schemas=("binary(unary(x),unary(x))", "unary(x)"),
        baselines=("relu(x)", "tanh(x)"),
    )
)
COUNT = 6


class Lookup:
    """Spectra of a whole table, counted; those of some functions cannot be had."""

    def __init__(self, whole: FeatureTable, failing: frozenset[int] = frozenset()) -> None:
        self.count = COUNT
        self.whole, self.failing = whole, failing
        self.asked: list[int] = []

    def __call__(self, indices) -> dict[str, Block]:
        self.asked += indices
        blocks = {}
        for name in ("fim", "fim_null"):
            block = self.whole.blocks[name]
            gone = np.array([index in self.failing for index in indices])
            reasons = ["overflow" if g else block.reasons[i] for i, g in zip(indices, gone)]  # noqa: B905
            values = np.where(gone[:, None], np.nan, block.values[indices]).astype(np.float32)
            blocks[name] = Block(values, tuple(reasons))
        return blocks


@pytest.fixture(scope="module")
def whole() -> FeatureTable:
    return with_spectra(output_table(UNARY, BINARY))


@pytest.fixture(scope="module")
def known(whole) -> np.ndarray:
    """Those with a spectrum from the beginning: every fifth."""
    return np.flatnonzero(whole.blocks["fim"].present)[::5]


def partial(whole: FeatureTable, known: np.ndarray, more: Lookup | None) -> FeatureTable:
    present = np.flatnonzero(whole.blocks["fim"].present)
    return replace(left_out(whole, np.setdiff1d(present, known)), on_demand=more)


def value(whole: FeatureTable, index: int) -> float:
    """What is searched for: a place in the spectra."""
    return -abs(float(whole.blocks["fim_null"].values[index, 0]) - 0.3)


def study_of(sampler, **options) -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=sampler, **options)


def objective(whole: FeatureTable):
    def run(trial: optuna.Trial) -> float:
        return value(whole, SPACE.catalogue.index(str(SPACE.suggest(trial).expression)))

    return run


def searched(whole: FeatureTable, table: FeatureTable, trials: int = 14, **options):
    study = study_of(ActivationSampler(SPACE, features=table, **options))
    study.optimize(objective(whole), n_trials=trials)
    return study


def proposed(study: optuna.Study) -> list[tuple]:
    return [(t.user_attrs["index"], t.system_attrs.get(SPECTRA)) for t in study.trials]


# --- against an oracle ----------------------------------------------------------------------


def places_by_hand(whole: FeatureTable, known: np.ndarray, some: list[int]) -> np.ndarray:
    """Mid-ranks among the known functions of the components learnt from them."""
    values = whole.blocks["fim"].values.astype(np.float64)
    null = whole.blocks["fim_null"].values.astype(np.float64)
    layers = values.shape[1] // null.shape[1]
    curves = np.column_stack([values, null * np.sqrt(layers) * values[known].std()])
    pca = PCA(6, svd_solver="full").fit(curves[known])
    base, new = pca.transform(curves[known]), pca.transform(curves[some])
    base, new = (np.round(part / np.abs(base).max(axis=0), 6) for part in (base, new))
    below = (base[None] < new[:, None]).sum(axis=1)
    upto = (base[None] <= new[:, None]).sum(axis=1)
    return (below + upto) / (2 * len(known))


def test_places_are_those_of_spectra_that_the_embedding_was_not_fitted_on(whole, known):
    table = partial(whole, known, Lookup(whole))
    embedding = PcaEmbedder().fit(table)
    some = embedding.imputed[:7].tolist()
    places = embedding.on_demand.places(some)
    found = np.array([places[index] for index in some])
    expected = places_by_hand(whole, known, some)
    for column, wanted in zip(found.T, expected.T, strict=True):
        assert min(np.abs(column - wanted).max(), np.abs(1 - column - wanted).max()) < 1e-6
    # The known ones are where they were, by the same rule.
    again = embedding.on_demand.frame.place(whole.blocks, known)
    np.testing.assert_array_equal(again, embedding.points[known][:, embedding.blocks["fim"]])


def test_only_those_functions_move(whole, known):
    embedding = PcaEmbedder().fit(partial(whole, known, Lookup(whole)))
    first, second, third = embedding.imputed[:3].tolist()
    moved = embedding.with_spectra({first: (0.5,) * 6, second: None})
    changed = np.flatnonzero((moved.points != embedding.points).any(axis=1) & moved.valid)
    assert changed.tolist() == [first]
    assert moved.points[first][moved.blocks["fim"]].tolist() == [0.5] * 6
    columns = embedding.blocks["outputs"]
    np.testing.assert_array_equal(moved.points[:, columns], embedding.points[:, columns])
    assert set(embedding.imputed) - set(moved.imputed) == {first}
    assert embedding.with_spectra({third: None}) is embedding
    only = embedding.restricted(np.arange(len(embedding)) != first)
    assert only.with_spectra({first: (0.5,) * 6}) is only
    wider = embedding.with_block("more", np.zeros((len(embedding), 1)))
    assert wider.with_spectra({first: (0.5,) * 6}).points[first, wider.blocks["fim"]].sum() == 3


@pytest.mark.parametrize("acquisition", ["max_value_entropy", "log_ei"])
def test_proposals_are_those_with_spectra_from_the_beginning(whole, known, acquisition):
    """Each trial again, in an embedding that had all spectra which the study knew by then."""
    spec = AcquisitionSpec(name=acquisition)
    study = searched(whole, partial(whole, known, Lookup(whole)), acquisition=spec)
    plain = PcaEmbedder().fit(partial(whole, known, None))
    signs = signs_of(plain, whole, known)
    baselines = tuple(SPACE.catalogue.index(f) for f in SPACE.baselines)
    searcher = Searcher(baselines=baselines, acquisition=spec)
    had: list[int] = []
    looked = 0
    for trial in study.trials:
        before = study.trials[: trial.number]
        seen = Observations(
            np.array([t.user_attrs["index"] for t in before], dtype=np.int64),
            np.array([t.value for t in before]),
        )
        by = trial.user_attrs["proposal"]["by"]
        now = [index for index, _ in trial.system_attrs[SPECTRA]]
        there = with_places(plain, whole, known, had, signs)
        if by == "acquisition":
            assert not set(now) & set(had)
            scores = ranking(searcher, there, seen, trial.number)
            assert now == [i for i in scores[:COUNT] if i in there.imputed]
            assert trial.user_attrs["proposal"].get("spectra", 0) == len(now)
            looked += len(now) > 0
        else:
            assert now == []
            assert "spectra" not in trial.user_attrs["proposal"]
        had += now
        there = with_places(plain, whole, known, had, signs)
        expected = searcher.propose(there, seen, number=trial.number)
        assert (trial.user_attrs["index"], by) == (expected.index, expected.by)
    assert looked > 3


def signs_of(embedding: Embedding, whole: FeatureTable, known: np.ndarray) -> np.ndarray:
    """Which components scikit-learn turned round."""
    ours = embedding.points[known][:, embedding.blocks["fim"]]
    return np.abs(ours - places_by_hand(whole, known, known.tolist())).max(axis=0) < 1e-6


def with_places(embedding, whole, known, some, signs) -> Embedding:
    if not some:
        return embedding
    places = places_by_hand(whole, known, some)
    points = embedding.points.copy()
    points[some, embedding.blocks["fim"]] = np.round(np.where(signs, places, 1 - places), 6)
    return replace(embedding, points=points, imputed=np.setdiff1d(embedding.imputed, some))


def ranking(searcher, embedding, seen, number) -> list[int]:
    """Candidates by falling score, one after another taken away from a fixed list of scores."""
    candidates = np.setdiff1d(np.flatnonzero(embedding.valid), list(seen.taken))
    model, y, _ = fit_observed(searcher.surrogate, embedding, seen, seed=searcher.seed + number)
    seed = int(np.random.SeedSequence([searcher.seed, number, 1]).generate_state(1)[0])
    points = torch.from_numpy(embedding.points[candidates])
    scores = score_pool(searcher.acquisition, model, points, float(y.max()), seed=seed)
    left = dict(zip(candidates.tolist(), scores.tolist(), strict=True))
    order = []
    while left:
        best = max(left.values())
        order.append(min(index for index, score in left.items() if score == best))
        del left[order[-1]]
    return order


def test_the_most_promising_one_is_what_would_be_proposed(whole):
    embedding = PcaEmbedder().fit(whole)
    valid = np.flatnonzero(embedding.valid)
    for count in (4, 9, 20):
        seen = Observations(valid[:count], np.sin(np.arange(count)))
        for number in (3, 8):
            found = Searcher().promising(embedding, seen, 5, number=number)
            assert len(set(found.tolist())) == 5
            assert found[0] == Searcher().propose(embedding, seen, number=number).index
    nothing = Observations(valid[:0], np.empty(0))
    assert Searcher().promising(embedding, nothing, 5, number=0).size == 0
    few = Observations(valid[:-2], np.sin(np.arange(len(valid) - 2)))
    assert set(Searcher().promising(embedding, few, 5, number=1)) == set(valid[-2:])


# --- whichever process runs it --------------------------------------------------------------


@pytest.mark.parametrize("samplers", ["anew", "by turns"])
def test_a_study_goes_on_alike_and_nobody_computes_again(whole, known, tmp_path, samplers):
    once = searched(whole, partial(whole, known, Lookup(whole)), seed=3)
    lookups = [Lookup(whole) for _ in range(14 if samplers == "anew" else 2)]
    made = [
        ActivationSampler(SPACE, features=partial(whole, known, more), seed=3) for more in lookups
    ]
    for number in range(14):
        study = study_of(
            made[number % len(made)],
            study_name="s",
            storage=open_storage(str(tmp_path / "s.log")),
            load_if_exists=True,
        )
        study.optimize(objective(whole), n_trials=1)
    assert proposed(study) == proposed(once)
    asked = [index for more in lookups for index in more.asked]
    assert len(asked) == len(set(asked)) == sum(len(s) for _, s in proposed(once))
    assert asked


def test_what_cannot_be_computed_stays_and_is_not_asked_for_again(whole, known):
    first = Lookup(whole)
    searched(whole, partial(whole, known, first))
    failing = frozenset(first.asked[::2])
    more = Lookup(whole, failing)
    table = partial(whole, known, more)
    study = searched(whole, table, trials=18)
    assert len(more.asked) == len(set(more.asked))
    places = dict(pair for _, found in proposed(study) for pair in found)
    assert {index for index, place in places.items() if place is None} == failing & set(places)
    assert failing & set(places)
    sampler = study.sampler
    view = sampler.view(study)
    assert failing & set(places) <= set(view.embedding.imputed.tolist())
    where = sorted(failing & set(places))
    np.testing.assert_array_equal(view.embedding.points[where], sampler.embedding.points[where])
    assert view.looked_at == set(places)


def test_a_repetition_of_a_failed_trial_looks_at_the_same(whole, known):
    once = searched(whole, partial(whole, known, Lookup(whole)))
    study = study_of(ActivationSampler(SPACE, features=partial(whole, known, Lookup(whole))))

    def failing(trial: optuna.Trial) -> float:
        found = objective(whole)(trial)
        if trial.number in {6, 7, 10}:
            raise RuntimeError("out of memory")
        return found

    study.optimize(failing, n_trials=17, catch=(RuntimeError,))
    finished = [
        p for p, t in zip(proposed(study), study.trials, strict=True) if t.value is not None
    ]
    assert finished == proposed(once)
    assert proposed(study)[6] == proposed(study)[7] == proposed(study)[8]


def test_a_contested_function_is_looked_at_anew(whole, known, monkeypatch):
    """Another worker claims the same function between our look and our claim."""
    more = Lookup(whole)
    study = study_of(ActivationSampler(SPACE, features=partial(whole, known, more)))
    study.optimize(objective(whole), n_trials=5)
    sampler = study.sampler
    more.asked.clear()
    real, rival, first = sampler.searcher.propose, [], []

    def overtaken(self, *arguments, **options):
        found = real(*arguments, **options)
        if not rival:
            rival.append(found.index)
            first.extend(more.asked)
            params = SPACE.catalogue.params(found.index)
            distributions = {name: SPACE.distributions[name] for name in params}
            trial = optuna.trial.create_trial(value=0.0, params=params, distributions=distributions)
            study.add_trial(trial)
        return found

    monkeypatch.setattr(Searcher, "propose", overtaken)
    trial = study.ask()
    index = SPACE.catalogue.index(str(SPACE.suggest(trial).expression))
    assert index != rival[0]
    # What is kept is what the second look found, by the other's trial as well.
    found = study.trials[trial.number].system_attrs[SPECTRA]
    again = look_closer(sampler.searcher, sampler.view(study, trial._cached_frozen_trial), ())
    assert found == [[index, list(place)] for index, place in again.places.items()]
    assert found
    assert [index for index, _ in found] != first


# --- what goes together ---------------------------------------------------------------------


class OutputsAlone:
    """An embedder that has no place for a spectrum."""

    def fit(self, table: FeatureTable) -> Embedding:
        return PcaEmbedder().fit(table.without("fim", "fim_null"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": RandomSearch()}, "features.on_demand .* the strategy has none"),
        ({"embedding": OutputsAlone()}, "OutputsAlone.* places no function"),
        ({"candidates": "trees"}, "features cannot be had"),
    ],
)
def test_what_it_does_not_go_with(whole, known, options, message):
    table = partial(whole, known, Lookup(whole))
    with pytest.raises(SearchError, match=message):
        ActivationSampler(SPACE, features=table, **options)


def test_one_function_at_a_time(whole, known):
    table = partial(whole, known, Lookup(whole))
    rate = {"lr": FloatDistribution(0.1, 1.0)}
    for options, named in (({"parameters": rate}, "lr"), ({"activations": ("a", "b")}, "a, b")):
        study = study_of(ActivationSampler(SPACE, features=table, **options))
        with pytest.raises(SearchError, match=f"one function at a time, and {named} are"):
            study.ask(fixed_distributions=SPACE.distributions)
    delegate = optuna.samplers.RandomSampler(seed=0)
    study = study_of(ActivationSampler(SPACE, features=table, parameters=rate, delegate=delegate))
    study.optimize(lambda t: objective(whole)(t) - t.suggest_float("lr", 0.1, 1.0), n_trials=8)
    assert any(found for _, found in proposed(study))


def test_a_table_without_the_block_has_no_demand(whole, known):
    table = partial(whole, known, Lookup(whole))
    assert table.without("fim", "fim_null").on_demand is None
    assert table.without("moments").on_demand is table.on_demand


# --- computing ------------------------------------------------------------------------------

SPEC = FeaturesSpec(quantiles=8, subset=6, on_demand=3)


def tiny_features(space, network, **changes) -> FeatureTable:
    options = {"images": IMAGES, "labels": LABELS, "spec": SPEC, "key": {"network": "tiny"}}
    return compute_features(space, network=network, **(options | changes))


@pytest.mark.parametrize("key", [{"network": "tiny"}, None])
def test_they_are_those_of_the_whole_table_and_are_kept(tiny, key, tmp_path):
    everything = tiny_features(
        tiny, Counted(), spec=FeaturesSpec(quantiles=8), cache=tmp_path / "a", key=key
    )
    options = {"cache": tmp_path / "b", "key": key}
    network = Counted()
    table = tiny_features(tiny, network, **options)
    assert table.on_demand.count == 3
    left = np.flatnonzero(table.blocks["fim"].left_out)
    some = [int(left[5]), int(left[2]), int(np.flatnonzero(table.blocks["fim"].present)[0])]
    before = network.calls
    blocks = table.on_demand(some)
    for name, block in blocks.items():
        np.testing.assert_array_equal(block.values, everything.blocks[name].values[some])
        assert block.reasons == tuple(everything.blocks[name].reasons[i] for i in some)
    computed = network.calls - before
    assert computed == (2 if key else 3)  # the third one was kept
    # Nothing that was computed changes the table that a study begins with.
    again = Counted()
    same = tiny_features(tiny, again, **options)
    assert same.hash == table.hash
    assert same.on_demand(some)["fim"].values.tobytes() == blocks["fim"].values.tobytes()
    if key:
        assert again.calls == 2  # the probe
        larger = Counted()
        spec = FeaturesSpec(quantiles=8)
        assert tiny_features(tiny, larger, spec=spec, **options).hash == everything.hash
        assert larger.calls == 2 + everything.blocks["fim"].present.sum() - 6 - 2


def test_damaged_ones_are_computed_again_with_a_warning(tiny, tmp_path):
    table = tiny_features(tiny, Counted(), cache=tmp_path)
    some = np.flatnonzero(table.blocks["fim"].left_out)[:2].tolist()
    first = table.on_demand(some)
    folder = Path(table.provenance["store"]["folder"])
    newest = max(folder.glob("fim-*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-10])
    with pytest.warns(UserWarning, match=re.escape(newest.name) + r".* 2 functions are computed"):
        again = table.on_demand(some)
    np.testing.assert_array_equal(again["fim"].values, first["fim"].values)
    # Damage to other shards is not looked for.
    for path in folder.glob("fim-*.parquet"):
        if path != newest:
            path.unlink()
    np.testing.assert_array_equal(table.on_demand(some)["fim"].values, first["fim"].values)


def test_a_spectrum_that_fails_has_a_reason(tiny, monkeypatch):
    table = tiny_features(tiny, Counted(), key=None)
    some = np.flatnonzero(table.blocks["fim"].left_out)[:2].tolist()
    real, calls = computing_spectra.fim_spectra, []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise computing_spectra.FeatureError("overflow at layer 1")
        return real(*arguments, **options)

    monkeypatch.setattr(computing_spectra, "fim_spectra", failing)
    assert table.on_demand(some)["fim"].reasons == ("", "overflow at layer 1")
    embedding = PcaEmbedder().fit(table)
    calls.clear()
    places = embedding.on_demand.places(some)
    assert places[some[0]] is not None
    assert places[some[1]] is None


# --- study files ----------------------------------------------------------------------------

STUDY = """
name = "demand"
space = "few.toml"
trials = 12
model = { name = "mlp", options = { widths = [16, 16] } }
data = { name = "digits", train = 256, validation = 200 }
training = { epochs = 2, batch_size = 64, threads = 1, device = "cpu" }
features = { batch_size = 32, quantiles = 16, subset = 20, on_demand = 4 }
confirm = { seeds = 0 }
"""
FEW = """
name = "few"
schemas = ["binary(unary(x),unary(x))"]
unary = ["identity", "tanh", "relu", "exp", "erf", "reciprocal", "sinh"]
binary = ["add", "mul", "max"]
baselines = ["relu(x)", "tanh(x)"]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(FEW)
    Path("study.toml").write_text(STUDY)
    return tmp_path


def kept(changes: dict[str, str]) -> list[tuple]:
    trials = load_study(read_study("study.toml", changes)).trials
    return [(t.user_attrs["activation"], t.value, t.system_attrs.get(SPECTRA)) for t in trials]


def test_a_study_from_a_file_killed_and_resumed(folder):
    run_study(read_study("study.toml"))
    whole = kept({})
    looks = [found for *_, found in whole if found]
    assert looks
    assert {len(place) for found in looks for _, place in found if place} == {6}

    def another() -> None:
        torch.set_num_threads(1)
        run_study(read_study("study.toml", {"name": "killed"}))

    rng = np.random.default_rng(0)
    killed_ten_times(another, lambda: float(rng.uniform(0.05, 0.25)))
    assert kept({"name": "killed"}) == whole

    # What the search looked at is kept with the rest: a larger subset finds it there.
    spec = read_study("study.toml")
    table = look_at_functions(Task.load(spec), Events())
    asked = [index for found in looks for index, _ in found]
    assert table.blocks["fim"].left_out[asked].all()
    lines = Path(table.provenance["store"]["folder"], "manifest.jsonl").read_text().splitlines()
    functions = [index for line in lines for index in json.loads(line)["functions"]]
    assert set(asked) <= set(functions)
    assert len(functions) == len(set(functions))


def test_why_says_what_was_looked_at(folder):
    run_study(read_study("study.toml"))
    trial = next(t for t in load_study(read_study("study.toml")).trials if t.system_attrs[SPECTRA])
    how = trial.user_attrs["proposal"]
    assert how["spectra"] == len(trial.system_attrs[SPECTRA])
    assert how["spectra_seconds"] > 0
    told = CliRunner().invoke(app, ["why", "study.toml", str(trial.number)])
    assert told.exit_code == 0, told.output
    noun = "spectrum" if how["spectra"] == 1 else "spectra"
    assert f"{how['spectra']} Fisher {noun} computed in" in told.output
    found = json.loads(
        CliRunner().invoke(app, ["why", "study.toml", str(trial.number), "--json"]).stdout
    )
    assert found["spectra"] == how["spectra"]
    # It was expected in the embedding that it was chosen in.
    assert sum(found["explanation"]["contributions"].values()) == pytest.approx(
        how["mean"], abs=2e-3
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features.subset": None}, "give subset, with fim = true"),
        ({"features.fim": "false"}, "give subset, with fim = true"),
        ({"features.on_demand": "-1"}, "greater than or equal to 0"),
        ({"candidates": '"trees"'}, 'go with candidates = "trees"'),
        ({"strategy.name": '"random"'}, "go with strategy.name = 'random'"),
        ({"embedding.name": '"umap"'}, "go with embedding.name = 'umap'"),
        ({"activations": '["one", "two"]'}, "go with activations"),
        (
            {"parameters": '{"training.learning_rate" = {low = 0.001, high = 1.0}}'},
            "go with parameters",
        ),
    ],
)
def test_study_files_that_ask_for_what_there_is_not(folder, changes, message):
    text = STUDY
    if "features.subset" in changes:
        text, changes = text.replace("subset = 20, ", ""), {}
    Path("study.toml").write_text(text)
    with pytest.raises(SpecError, match=re.escape(message)):
        read_study("study.toml", changes)


def test_a_space_that_cannot_be_listed(folder):
    spec = read_study("study.toml", {"space": '"six_operators"'})
    with pytest.raises(BoActError, match=r"features.on_demand .* 'six_operators' .* tree to tree"):
        Task.load(spec)

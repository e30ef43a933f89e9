"""Parts of a search method of your own in study files: run, resumed, explained, refused."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from small_studies import SPACE, STORAGE, make

from bo_act.errors import SearchError, SpecError, StorageError
from bo_act.report.loaded_study import load_for_report
from bo_act.report.study import study_report
from bo_act.search.method import MethodSpec
from bo_act.specs import SurrogateSpec
from bo_act.study.running.runner import run_study
from bo_act.study.sampling.methods import make_method_sampler
from bo_act.study.storage.opening import load_study

optuna.logging.set_verbosity(optuna.logging.WARNING)

pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.BotorchWarning")

MINE = """
import numpy as np
from botorch.acquisition import LogExpectedImprovement
from botorch.models import SingleTaskGP


def make_model(train_X, train_Y):
    return SingleTaskGP(train_X, train_Y)


def points(table):
    return table.blocks["moments"].values


class Last:
    def __init__(self, space):
        self.space = space

    def choose(self, candidates):
        return candidates[-1]


def nothing():
    return 3
"""

OPTIONS = {"trials": 7, "confirm": {"seeds": 0}, "features": {"fim": False}}
MODEL = {
    "surrogate": {"name": "mine.py:make_model"},
    "acquisition": {"name": "mine.py:LogExpectedImprovement"},
    "embedding": {"name": "mine.py:points"},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)
    Path("mine.py").write_text(MINE)


def ways(spec) -> list[str]:
    return [t.user_attrs["proposal"]["by"] for t in load_study(spec).trials]


def test_a_model_of_your_own_searches_and_a_changed_file_is_refused():
    spec = make(**OPTIONS, **MODEL)
    run_study(spec.model_copy(update={"trials": 5}))
    result = run_study(spec)
    assert result.trials.complete == 7
    assert ways(spec)[-1] == "acquisition"
    once = make(name="once", **OPTIONS, **MODEL)
    run_study(once)
    assert [t.params for t in load_study(once).trials] == [
        t.params for t in load_study(spec).trials
    ]
    assert "make_model" in study_report(load_for_report(spec))

    Path("mine.py").write_text(MINE.replace("SingleTaskGP(train_X, train_Y)", "None"))
    with pytest.raises(StorageError, match="the embedding's file and the surrogate's file and the"):
        run_study(spec.model_copy(update={"trials": 8}))
    other = make(name="other", **OPTIONS, **MODEL)
    with pytest.raises(SearchError, match=r"'mine.py:make_model': expected a botorch.models"):
        run_study(other)


def test_a_strategy_of_your_own_searches():
    spec = make(**OPTIONS, strategy={"name": "mine.py:Last"})
    run_study(spec)
    assert ways(spec)[-3:] == ["strategy"] * 3


@pytest.mark.slow
def test_workers_and_why(bo_act):
    tables = {key: f'[{key}]\nname = "{part["name"]}"\n' for key, part in MODEL.items()}
    Path("s.toml").write_text(
        'name = "s"\nspace = "few.toml"\ntrials = 6\n[model]\nname = "mlp"\n'
        "options = { widths = [8] }\n"
        '[data]\nname = "digits"\ntrain = 200\nvalidation = 100\n[confirm]\nseeds = 0\n'
        "[features]\nfim = false\n[training]\nepochs = 1\nthreads = 1\n" + "".join(tables.values())
    )
    code, out, err = bo_act("run", "s.toml", "--workers", "2", "--json")
    assert code == 0, err
    assert json.loads(out)["trials"]["complete"] == 6
    code, out, err = bo_act("why", "s.toml", "5")
    assert code == 0, err
    assert "5" in out


@pytest.mark.parametrize(
    ("part", "name", "said"),
    [
        ("surrogate", "mine.py:make_mdel", r"surrogate.name: .*no function 'make_mdel' .*make_mod"),
        ("acquisition", "gone.py:x", r"acquisition.name: .*gone.py"),
        ("strategy", "mine.py:nothing", r"expected a class with a method choose.*, got 3"),
        ("embedding", "mine.py:nothing", r"the embedding 'nothing' fails: TypeError"),
    ],
)
def test_what_is_not_there_is_told_before_the_first_trial(part, name, said):
    spec = make(**OPTIONS, **{part: {"name": name}})
    with pytest.raises((SpecError, SearchError), match=said):
        run_study(spec)
    assert not load_study(spec).trials if Path(STORAGE).exists() else True


def test_names_that_are_none_name_the_nearest():
    with pytest.raises(ValueError, match=r"gp, knn, forest, or FILE.py:FUNCTION .* mean 'forest'"):
        make(surrogate={"name": "forrest"})


def test_a_comparison_says_where_files_of_methods_go():
    method = MethodSpec(surrogate=SurrogateSpec(name="mine.py:make_model"))
    with pytest.raises(SearchError, match="from Python, give the function"):
        make_method_sampler(method, *sampler_arguments(), seed=0)


def sampler_arguments():
    from bo_act import load_space
    from bo_act.features.compute import compute_features
    from bo_act.search.embedding.embedding import PcaEmbedder

    space = load_space("few.toml")
    return space, PcaEmbedder().fit(compute_features(space))

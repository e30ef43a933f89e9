"""Reports and figures: what they say is so, for every kind of study."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from sklearn.decomposition import PCA
from studies_of_tests import STUDY, only, searched

from bo_act import load_space
from bo_act.activations.operators import OPERATORS
from bo_act.errors import BoActError, SearchError
from bo_act.metrics import ACCURACY, Metric
from bo_act.plot_style import COLUMN, save
from bo_act.report import figures
from bo_act.report.data import ReportData
from bo_act.report.embedding_map import embedding_map, project, spread
from bo_act.report.loaded_study import LoadedStudy, load_for_report
from bo_act.report.page import as_script, packed, write
from bo_act.report.predictions import Seen, calibration, predictions, seen
from bo_act.report.study import study_report
from bo_act.report.trials import best_so_far, end_of_interest, importances, rows
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations, inverse_warp, warp_targets
from bo_act.search.searcher import Searcher
from bo_act.specs.files import read_study
from bo_act.study.running.runner import run_study
from bo_act.study.storage.provenance import environments, keep_environment

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def _known_times(monkeypatch):
    # Timing the operators takes seconds, and says nothing here.
    times = dict.fromkeys(OPERATORS, 2.0) | {"relu": 1.0}
    monkeypatch.setattr("bo_act.report.data.operator_times", lambda **_: times)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A study that was run, in a folder of its own: (folder, what its report is about)."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BO_ACT_CACHE_DIR", str(folder / "cache"))
        Path("small.toml").write_text(STUDY)
        spec = read_study("small.toml")
        run_study(spec)
        yield folder, load_for_report(spec)


@pytest.fixture(scope="module")
def own():
    return searched(load_space("classic"))


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


def outside_of_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


# --- the report of a real study ---------------------------------------------------------------


def test_the_report_says_what_the_study_found(small, monkeypatch):
    folder, subject = small
    monkeypatch.chdir(folder)
    page = study_report(subject)
    found = ReportData(subject)
    text = outside_of_scripts(page)
    assert found.verdict.winner.activation in text
    assert f"{100 * found.verdict.winner.test.mean:.2f}%" in text
    assert "digits &amp; &lt;small&gt; things" in text
    for row in found.rows:
        assert f"<code>{row.functions[0]}</code>" in text
    shown = data_of(page)
    assert shown["progress"]["value"] == [t.value for t in subject.study.trials]
    assert shown["map"]["text"] == [
        subject.sampler.catalogue.text(i) for i in np.flatnonzero(subject.sampler.embedding.valid)
    ]
    assert len(shown["spectra"]) == 2
    assert set(shown["importances"]) == set(subject.sampler.space.distributions)
    assert "relu(x)" in [curve["text"] for curve in shown["spectra"][0]["curves"]]
    assert "&#34;epochs&#34;: 2" in text  # the resolved study file
    made = environments(subject.study)
    assert len(made) == 1
    assert all(value in text.replace("&#39;", "'") for value in made[0].values())
    assert found.result.storage in text
    assert len(page) < 6_000_000


def test_a_report_asks_for_nothing_from_elsewhere(small, monkeypatch):
    monkeypatch.chdir(small[0])
    text = outside_of_scripts(study_report(small[1]))
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'\s>)]+)', text)
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "default-src 'none'" in text


def test_differences_from_all_baselines_are_paired_by_seed(small, monkeypatch):
    folder, subject = small
    monkeypatch.chdir(folder)
    kept = [v for k, v in subject.study.user_attrs.items() if "confirmed" in k]
    winner = ReportData(subject).verdict.winner.activation
    text = outside_of_scripts(study_report(subject))
    line = next(part for part in text.split("<tr")[1:] if f"<code>{winner}</code>" in part)
    tests = {row["activation"]: {} for row in kept}
    for row in kept:
        tests[row["activation"]][row["seed"]] = row["test"]
    for other in ("relu(x)", "gelu(x)", "swish(x)"):
        if other != winner:
            gap = np.mean([tests[winner][s] - tests[other][s] for s in (0, 1)])
            assert f"{100 * gap:+.2f}" in line


def test_the_commands_write_report_and_figures(small, monkeypatch, bo_act):
    folder, _ = small
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BO_ACT_CACHE_DIR", str(folder / "cache"))
    code, out, _ = bo_act("report", "small.toml", "-q")
    assert (code, out.strip()) == (0, "runs/small/report.html")
    assert "</html>" in Path("runs/small/report.html").read_text()
    for kind in ("progress", "map", "gallery", "spectra", "calibration"):
        code, out, _ = bo_act("plot", kind, "small.toml", "-o", f"out/{kind}.pdf", "-q")
        assert (code, out.strip()) == (0, f"out/{kind}.pdf")
        assert Path(f"out/{kind}.pdf").read_bytes().startswith(b"%PDF")
    code, _, err = bo_act("plot", "regret", "small.toml", "-o", "a.pdf")
    assert code == 2
    assert "needs a comparison's folder" in err
    code, _, err = bo_act("plot", "gallery", "small.toml", "-o", "a.txt", "-q")
    assert code == 2
    assert "ends in .pdf, .png or .svg" in err
    code, _, err = bo_act("report", "small.toml", "--set", "name=never")
    assert code == 2
    assert "`bo-act run` creates it" in err


def test_what_cannot_be_loaded_is_left_out_and_named(small, monkeypatch):
    folder, subject = small
    monkeypatch.chdir(folder)
    spec = subject.spec.model_copy(
        update={"model": subject.spec.model.model_copy(update={"name": "gone.py"})}
    )
    page = study_report(load_for_report(spec))
    assert "There is no map: no model file &#39;gone.py&#39;" in page
    assert "There is no surrogate." in page
    assert data_of(page)["progress"]["value"]


# --- studies of all kinds ---------------------------------------------------------------------


def test_a_study_of_ones_own(own):
    page = study_report(own)
    shown = data_of(page)
    assert shown["metric"] == Metric("value").as_json() | {"axis": "value"}
    assert "The search used output features only" in page
    assert "Not confirmed yet." in page
    assert shown["progress"]["state"][11] == "pruned"
    assert "did not record its environment" in page


def test_a_study_that_minimizes():
    subject = searched(load_space("classic"), direction="minimize", trials=15)
    found = ReportData(subject)
    values = [t.value for t in subject.study.trials if t.value is not None]
    assert found.ranked[0].value == min(values)
    assert best_so_far(found.rows, found.metric)[-1] == min(values)
    shown = data_of(study_report(subject))
    median = [v for v in shown["map"]["median"][0] if v is not None]
    assert min(values) - 1e-4 <= min(median) <= max(median) <= max(values) + 1e-4
    assert all(a <= b for a, b in zip(*map(shown["calibration"].get, ("low", "high")), strict=True))


def test_several_activations_and_other_parameters():
    subject = searched(
        load_space("classic"),
        activations=("early", "late"),
        parameters={"rate": FloatDistribution(0.001, 1.0, log=True)},
    )
    shown = data_of(page := study_report(subject))
    assert len(shown["map"]["trials"]) == len(shown["map"]["median"]) == 2
    assert '<option value="1">late</option>' in page
    for place, name in enumerate(("early", "late")):
        texts = {t.number: t.user_attrs[f"{name}.activation"] for t in subject.study.trials}
        for number, position, *_ in shown["map"]["trials"][place]:
            assert shown["map"]["text"][position] == texts[number]
    assert any("rate" in text for text in shown["progress"]["text"])
    assert len(ReportData(subject).rows[0].functions) == 2


def test_a_study_from_tree_to_tree():
    subject = searched(load_space("classic"), candidates="trees", trials=13)
    shown = data_of(study_report(subject))
    assert {n for n, *_ in shown["map"]["trials"][0]} == set(range(13))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (TrialState.PRUNED, "All 3 functions were pruned, so there is no result"),
        (TrialState.RUNNING, "No function has been evaluated yet. 3 are in training."),
        (TrialState.FAIL, "All 3 trials failed, so there is no result"),
    ],
)
def test_studies_without_any_result(state, says):
    study = only(state)
    page = study_report(LoadedStudy(study))
    assert says in page
    assert data_of(page)["progress"]["from"] is None
    with_sampler = LoadedStudy(study, sampler=searched(load_space("classic"), trials=1).sampler)
    page = study_report(with_sampler)
    assert "There are too few evaluations for a prediction" in page
    for draw in (figures.progress, figures.calibration, figures.spectra, figures.gallery_of):
        with pytest.raises(SearchError):
            draw(ReportData(with_sampler))
    assert figures.embedding_map(ReportData(with_sampler)) is not None


def test_an_empty_study():
    page = study_report(LoadedStudy(optuna.create_study(study_name="empty")))
    assert "no trials" in page
    assert "There are no trials yet." in page
    assert data_of(page)["progress"] is None


def test_what_trials_hold_is_escaped():
    bad = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    study = optuna.create_study(study_name=bad, direction="maximize")
    study.add_trial(
        optuna.trial.create_trial(value=0.5, user_attrs={"activation": bad, "failure": bad})
    )
    page = study_report(LoadedStudy(study))
    assert bad not in page
    assert "<img" not in page.replace("plotly", "").split("<script>")[0]
    assert data_of(page)["progress"]["text"] == [bad]


# --- numbers ----------------------------------------------------------------------------------


def test_a_prediction_does_not_know_its_own_value(own):
    told = seen(own)
    found, note = calibration(told)
    assert (note, len(found.measured)) == ("", 15)
    changed = told.observations.values.copy()
    changed[4] = changed.min() + 0.001
    was = told.observations
    now = Observations(was.measured, changed, was.pruned)
    other, _ = calibration(replace(told, observations=now))
    assert other.predicted[4] == found.predicted[4]
    assert other.low[4] == found.low[4]
    assert (other.predicted != found.predicted).any()


def test_calibration_counts_what_lies_inside():
    generator = np.random.default_rng(1)
    points = torch.from_numpy(generator.uniform(size=(60, 2)))
    smooth = np.sin(3 * points[:, 0].numpy()) + points[:, 1].numpy()
    embedding = Embedding.of(points)

    def told(values: np.ndarray) -> Seen:
        return Seen(Searcher(), embedding, Observations(np.arange(len(values)), values))

    found, _ = calibration(told(smooth))
    assert found.tau > 0.9
    assert found.inside > 0.8
    assert abs(calibration(told(generator.normal(size=60)))[0].tau) < 0.35
    assert calibration(told(smooth[:3]))[0] is None
    assert calibration(told(np.ones(60)))[0] is None
    assert calibration(None) == (None, "There is no surrogate.")


@pytest.mark.parametrize("targets", ["winsorized", "rank_normal", "standardized"])
def test_warped_targets_are_read_back_as_values(targets):
    values = np.array([0.1, 0.1, 0.8, 0.85, 0.9, 0.91, 0.95])
    y = warp_targets(values, targets)
    back = inverse_warp(y[2:], y, values)
    np.testing.assert_allclose(back, values[2:])
    assert inverse_warp(np.array([9.0, -9.0]), y, values).tolist() == [0.95, 0.1]


def test_predictions_at_observed_functions_are_near_what_was_observed(own):
    (found,) = predictions(own, seen(own))
    index = [own.sampler.catalogue.index(t.user_attrs["activation"]) for t in own.study.trials]
    values = [t.value for t in own.study.trials]
    far = [
        abs(found.median[i] - v)
        for i, v in zip(index, values, strict=True)
        if v is not None and v > np.median([w for w in values if w is not None])
    ]
    assert np.median(far) < 0.1
    assert found.unit == "objective"
    elsewhere = np.delete(found.deviation, index)
    assert np.nanmedian(found.deviation[index]) < np.nanmedian(elsewhere)


def test_the_projection_is_that_of_principal_components():
    points = np.random.default_rng(0).uniform(size=(200, 5)) * [3, 1, 2, 0.5, 0.1]
    plane, explained = project(points)
    oracle = PCA(2).fit(points)
    np.testing.assert_allclose(np.abs(plane), np.abs(oracle.transform(points)), atol=1e-9)
    assert explained == pytest.approx(oracle.explained_variance_ratio_.sum())
    assert project(points[:, :1])[0].shape == (200, 2)


def test_of_many_functions_those_that_matter_are_shown(own):
    predicted = predictions(own, seen(own))
    land = embedding_map(own, predicted, most=20)
    assert len(land.shown) == 20
    assert land.total == int(own.sampler.embedding.valid.sum()) > 20
    assert len(land.trials[0]) == 16
    whole = embedding_map(own, predicted)
    place = {text: tuple(point) for text, point in zip(whole.texts, whole.points, strict=True)}
    for text, point in zip(land.texts, land.points, strict=True):
        assert place[text] == tuple(point)


def test_chosen_points_leave_no_corner_empty():
    generator = np.random.default_rng(0)
    crowd = generator.normal(0.5, 0.01, size=(5_000, 2))
    apart = generator.uniform(-3, 4, size=(40, 2))
    points = np.concatenate([crowd, apart])
    chosen = spread(points, 300)
    assert len(set(chosen.tolist())) == 300
    assert set(range(5_000, 5_040)) <= set(chosen.tolist())
    assert chosen.tolist() == spread(points, 300).tolist()
    assert spread(points, 10**6).tolist() != list(range(5_040))
    assert set(spread(points, 10**6).tolist()) == set(range(5_040))
    assert spread(points[:1], 3).tolist() == [0]
    assert spread(points[:0], 3).tolist() == spread(points, 0).tolist() == []


def test_the_map_of_a_large_space_says_how_much_of_it_is_shown(act_bench, monkeypatch):
    subject = searched(act_bench, trials=14)
    monkeypatch.setattr("bo_act.report.data.embedding_map", partial(embedding_map, most=400))
    found = ReportData(subject)
    page = study_report(subject)
    shown, total = data_of(page)["map"], int(subject.sampler.embedding.valid.sum())
    assert total > 2_000
    assert len(shown["text"]) == len(shown["x"]) == 400
    assert shown["total"] == total
    assert f"Of {total:,} functions 400 are shown" in page
    evaluated = {text for row in found.rows for text in row.functions}
    assert evaluated <= set(shown["text"])
    (predicted,) = found.predictions
    best = np.argsort(-np.nan_to_num(predicted.median, nan=-np.inf), kind="stable")[:100]
    assert {subject.sampler.catalogue.text(int(i)) for i in best} <= set(shown["text"])


def test_curves_are_packed_a_byte_a_point():
    values = np.array([[0.0, 1.0, 2.0, np.nan, 9.0, -9.0, np.inf, -np.inf]])
    codes = list(base64.b64decode(packed(values, np.array([0.0]), np.array([2.0]))))
    assert codes == [0, 125, 250, 255, 252, 251, 252, 251]


def test_an_axis_begins_where_values_matter():
    values = [0.1] * 5 + [0.90, 0.91, 0.92, 0.93, 0.94]
    assert end_of_interest(values, ACCURACY) > 0.8
    assert end_of_interest(values, ACCURACY, [0.2]) == 0.2
    assert end_of_interest([0.5], ACCURACY) == 0.5
    loss = Metric("loss", "minimize")
    losses = [1 - value for value in values]
    assert end_of_interest(losses, loss) < 0.2
    assert end_of_interest(losses, loss, [0.7]) == 0.7


def test_importances_find_what_matters_and_say_what_they_cannot():
    study = optuna.create_study(direction="minimize")
    generator = np.random.default_rng(0)
    for _ in range(40):
        a, b = generator.uniform(size=2)
        study.add_trial(
            optuna.trial.create_trial(
                value=a + 0.01 * b,
                params={"a": a, "b": b},
                distributions={n: FloatDistribution(0, 1) for n in "ab"},
            )
        )
    found, note = importances(LoadedStudy(study))
    assert note == ""
    assert list(found) == ["a", "b"]
    assert found["a"] > 0.9
    assert (
        "At least 5 complete trials are needed; there are 3"
        in importances(LoadedStudy(only(TrialState.COMPLETE)))[1]
    )


def test_rows_tell_how_trials_ended(own):
    assert [row.state for row in rows(own)] == ["complete"] * 11 + ["pruned"] + ["complete"] * 4
    assert rows(own)[0].by == "baseline"
    assert rows(own)[15].by == "acquisition"
    assert {row.state for row in rows(LoadedStudy(only(TrialState.FAIL)))} == {"failed"}


# --- files ------------------------------------------------------------------------------------


def test_an_environment_is_noted_once_and_without_passwords(monkeypatch):
    study = optuna.create_study()
    monkeypatch.setattr(
        "sys.argv", ["/x/bo-act", "run", "q", "--storage", "postgresql://me:pw@h/d"]
    )
    keep_environment(study)
    keep_environment(study)
    (found,) = environments(study)
    assert found["command"] == "bo-act run q --storage postgresql://me@h/d"
    assert found["torch"] == torch.__version__


def test_data_cannot_end_its_script():
    text = as_script({"a": "</script>\u2028"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script> "}


def test_a_report_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BoActError, match="cannot write"):
        write("page", tmp_path / "file" / "report.html")


# --- figures ----------------------------------------------------------------------------------


def test_figures_are_a_column_wide_and_labelled(small, monkeypatch):
    monkeypatch.chdir(small[0])
    found = ReportData(small[1])
    for draw in (figures.progress, figures.embedding_map, figures.spectra, figures.calibration):
        drawn = draw(found)
        assert drawn.get_figwidth() == COLUMN
        labels = [axes.get_xlabel() + axes.get_ylabel() for axes in drawn.axes]
        assert any(labels)
    assert "%" in figures.progress(found).axes[0].get_ylabel()


def test_a_gallery_has_a_graph_for_each_function():
    drawn = figures.gallery(["tanh(x)", "exp(x)", "reciprocal(x)", "zero(x)"])
    shown = [axes for axes in drawn.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["tanh(x)", "exp(x)", "reciprocal(x)", "zero(x)"]
    x, y = shown[0].lines[-1].get_data()
    np.testing.assert_allclose(y, np.tanh(x), atol=1e-12)
    with pytest.raises(SearchError, match="at least one function"):
        figures.gallery([])


@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_the_same_figure_gives_the_same_file(tmp_path, kind):
    files = [
        save(figures.gallery(["tanh(x)"]), tmp_path / str(n) / f"a.{kind}").read_bytes()
        for n in range(2)
    ]
    assert files[0] == files[1]


def test_figures_leave_matplotlibs_own_style_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figures.gallery(["tanh(x)"])
    assert dict(mpl.rcParams) == before

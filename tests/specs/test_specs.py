"""Files that users write: found by name or path, checked, and explained when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from bo_act import content, errors
from bo_act.errors import BoActError, ContentNotFoundError, SpecError
from bo_act.spaces.space import load_space
from bo_act.specs import StudySpec
from bo_act.specs.files import read_space, read_study

SPACE = 'name = "mine"\nexpressions = ["relu(x)"]\n'
STUDY = """
name = "mine"
space = "classic"
trials = 7

[model]
name = "mlp"
options = {hidden = [8, 8]}

[data]
name = "digits"

[training]
epochs = 3
"""


@pytest.fixture
def study(tmp_path) -> str:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return str(path)


def shipped(kind: content.Kind) -> list[str]:
    return sorted(
        path.stem
        for path in content.shipped_folder(kind).glob("*" + content.SUFFIX[kind])
        if not path.stem.startswith("_")
    )


# --- what is shipped ------------------------------------------------------------------------


def test_something_is_shipped():
    assert {"act_bench", "classic"} <= set(shipped("spaces"))
    assert "quickstart" in shipped("studies")
    assert "mlp" in shipped("models")


@pytest.mark.parametrize("name", shipped("spaces"))
def test_shipped_spaces_are_good(name):
    space = load_space(name)
    assert space.name == name
    assert len(space) > 1
    assert space.baselines


@pytest.mark.parametrize("name", shipped("studies"))
def test_shipped_studies_are_good(name):
    spec = read_study(name)
    assert spec.name == name
    space = load_space(spec.space)
    in_library = spec.model.name.startswith(("timm:", "torchvision:"))
    assert in_library or content.find("models", spec.model.name).is_file()
    assert spec.trials > len(space.baselines) + spec.initial


# --- finding --------------------------------------------------------------------------------


def test_the_working_directorys_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert content.find("spaces", "classic") == content.shipped_folder("spaces") / "classic.toml"
    assert "mine" not in content.names("spaces")
    (tmp_path / "spaces").mkdir()
    for name in ("classic", "mine", "_hidden"):
        (tmp_path / "spaces" / f"{name}.toml").write_text(SPACE)
    assert content.find("spaces", "classic") == (tmp_path / "spaces" / "classic.toml").resolve()
    assert read_space("classic").name == "mine"
    names = content.names("spaces")
    assert names == sorted(set(names))
    assert {"mine", "act_bench"} <= set(names)
    assert "_hidden" not in names


@pytest.mark.parametrize("name", ["sub/other.toml", "./here.toml", "here.toml"])
def test_a_path_is_taken_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(SPACE)
    assert content.find("spaces", name) == path.resolve()
    assert content.find("spaces", str(path)) == path.resolve()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert content.find("spaces", f"~/{name}") == path.resolve()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "spaces",
            "clasic",
            r"no space named 'clasic' \(did you mean 'classic'\?\); known names: ",
        ),
        ("studies", "qickstart", r"no study named 'qickstart' \(did you mean 'quickstart'\?\)"),
        ("models", "zzzzzz", r"no model named 'zzzzzz'; known names: .*mlp.*path of a \.py file"),
        (
            "spaces",
            "classic.toml",
            r"no space file 'classic.toml' \(looked in .*act_bench, classic",
        ),
        ("models", "nets/a", r"no model file 'nets/a'"),
        ("spaces", "", "no space named ''"),
    ],
)
def test_what_is_not_there(tmp_path, monkeypatch, kind, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ContentNotFoundError, match=message) as caught:
        content.find(kind, name)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.toml").mkdir()
    with pytest.raises(ContentNotFoundError):
        read_study(str(tmp_path / "a.toml"))


def test_the_cache_folder_can_be_moved(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("BO_ACT_CACHE_DIR", "~/elsewhere")
    assert content.cache_dir() == Path("/home/someone/elsewhere")
    monkeypatch.delenv("BO_ACT_CACHE_DIR")
    assert content.cache_dir().name == "bo-act"


# --- overrides ------------------------------------------------------------------------------


def test_overrides_replace_values_by_dotted_key(study):
    spec = read_study(
        study,
        {
            "training.epochs": "5",
            "training.learning_rate": "1e-3",
            "training.nesterov": "false",
            "name": "other-name",  # no TOML, so a plain string
            "description": '"12"',
            "model.options.hidden": "[4]",
            "model.options.deep.er": "{a = 1}",
            "confirm.baselines": '["relu(x)"]',
            "data.root": "/tmp/data = here",
            "acquisition.name": "log_ei",
            "storage": "sqlite:///a.db",
        },
    )
    assert (spec.training.epochs, spec.training.learning_rate) == (5, 1e-3)
    assert spec.training.nesterov is False
    assert (spec.name, spec.description) == ("other-name", "12")
    assert spec.model.options == {"hidden": [4], "deep": {"er": {"a": 1}}}
    assert spec.confirm.baselines == ("relu(x)",)
    assert spec.data.root == Path("/tmp/data = here")
    assert spec.acquisition.name == "log_ei"
    assert spec.storage == "sqlite:///a.db"
    assert spec.trials == 7


def test_an_override_writes_one_value_only(study):
    spec = read_study(study, {"trials": "9\nname = 'smuggled'"})
    assert (spec.trials, spec.name) == (9, "mine")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("training.epoch", "3", r"unknown key 'training.epoch' \(did you mean 'epochs'\?\)"),
        ("trainin.epochs", "3", r"unknown key 'trainin' \(did you mean 'training'\?\)"),
        ("embedding.zzz", "3", "unknown key 'embedding.zzz'; known keys: fim, name, outputs"),
        ("training.epochs", "many", "training.epochs: .*valid integer.*got 'many'"),
        ("training.epochs", "0", "training.epochs: .*greater than 0, got 0"),
        ("training.epochs", "2.5", "training.epochs: .*got 2.5"),
        ("training.learning_rate", "nan", "training.learning_rate: .*finite"),
        ("training.momentum", "1", "training.momentum: .*less than 1, got 1"),
        ("training.device", "gpu", "training.device: .*got 'gpu'"),
        ("training.optimizer", "adam", "training.optimizer: .*'sgd' or 'adamw', got 'adam'"),
        ("training", "3", "training: .*TrainingSpec, got 3"),
        ("trials.more", "3", "--set trials.more=3: 'trials' is a value, not a table"),
        ("name", "a/b", "name: .*got 'a/b'"),
        ("name", "3", "name: .*valid string, got 3"),
        ("model.name", '""', "model.name: .*at least 1 character"),
        ("confirm.baselines", "relu(x)", "confirm.baselines: .*valid tuple, got 'relu"),
        ("features.quantiles", "7", "features.quantiles: .*got 7"),
        ("data.name", "x" * 200, r"data.name: .*got 'x{50,60}\.\.\."),
    ],
)
def test_wrong_values_are_explained_on_one_line(study, key, text, message):
    with pytest.raises(SpecError, match=message) as caught:
        read_study(study, {key: text})
    assert "\n" not in str(caught.value)


def test_all_problems_are_told_at_once(study):
    with pytest.raises(SpecError) as caught:
        read_study(study, {"trials": "0", "data.nam": "1", "seed": '"a"'})
    for part in ("trials:", "unknown key 'data.nam' (did you mean 'name'?)", "seed:", study):
        assert part in str(caught.value)


def test_missing_tables(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('name = "mine"\n[model]\n')
    with pytest.raises(SpecError, match=r"missing key 'model.name'; missing key 'data'"):
        read_study(str(path))


def test_specs_are_frozen(study):
    spec = read_study(study)
    with pytest.raises(ValidationError, match="frozen"):
        spec.trials = 3
    assert StudySpec.model_validate(spec.model_dump()) == spec


# --- errors ---------------------------------------------------------------------------------


def test_all_errors_are_of_one_tree():
    classes = [getattr(errors, name) for name in errors.__all__ if name != "nearest"]
    assert all(issubclass(c, BoActError) for c in classes)
    for c in classes:
        assert c.__name__ in errors.__doc__
    defined = {
        k
        for k, v in vars(errors).items()
        if isinstance(v, type) and v.__module__ == errors.__name__
    }
    assert defined | {"nearest"} == set(errors.__all__)


def test_nearest():
    assert errors.nearest("sigmiod", ["sigmoid", "tanh"]) == " (did you mean 'sigmoid'?)"
    assert errors.nearest("qqq", ["sigmoid", "tanh"]) == ""
    assert errors.nearest("qqq", []) == ""

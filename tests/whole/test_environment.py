"""bo-act schema and bo-act doctor."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import jsonschema
import pytest

from bo_act import content
from bo_act.specs import StudySpec
from bo_act.specs.schema import schema
from bo_act.study.storage.opening import location, open_storage

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = {"name": "a", "model": {"name": "mlp"}, "data": {"name": "digits"}}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("kind", "folder"), [("study", "studies"), ("space", "spaces")])
def test_what_is_shipped_has_the_schema(kind, folder):
    found = schema(kind)
    jsonschema.Draft202012Validator.check_schema(found)
    checker = jsonschema.Draft202012Validator(found)
    paths = list((ROOT / folder).glob("*.toml"))
    assert paths
    for path in paths:
        checker.validate(json.loads(json.dumps(tomllib.loads(path.read_text()))))


@pytest.mark.parametrize(
    "wrong",
    [{"trails": 3}, {"trials": 0}, {"training": {"epoch": 3}}, {"surrogate": {"name": "gpp"}}],
)
def test_what_is_wrong_has_it_not(wrong):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(MINIMAL | wrong, schema("study"))
    jsonschema.validate(MINIMAL, schema("study"))


def test_descriptions_are_those_of_the_docstrings():
    found = schema("study")
    described = found["properties"]["callbacks"]["description"]
    assert described.startswith("callbacks to run after each trial")
    parts = found["$defs"]
    described = parts["SurrogateSpec"]["properties"]["targets"]["description"]
    assert described.startswith("transformation of the values: lower tail winsorized")
    assert parts["DataSpec"]["description"].startswith("A data set and its split.")
    assert set(found["properties"]) == set(StudySpec.model_fields)


def test_the_default_storage_is_the_one_that_is_stated(bo_act):
    said = schema("study")["properties"]["storage"]["description"]
    stated = re.search(r"default: `(.+?)`", said)[1]
    assert stated.replace("<name>", "a") == location(StudySpec.model_validate(MINIMAL))
    for ending, kind in ((".log", "journal file"), (".db", "SQLite")):
        path = Path(f"study{ending}")
        open_storage(str(path))
        assert path.read_bytes()[:6] == (b"SQLite" if kind == "SQLite" else b"")
    assert "`.log` is a journal file, other endings SQLite" in said


def test_schema_as_a_command(bo_act):
    code, out, _ = bo_act("schema", "space")
    assert code == 0
    assert json.loads(out) == schema("space")
    code, out, err = bo_act("schema", "study", "-o", "study.json")
    assert (code, out, err) == (0, "", "wrote study.json\n")
    assert json.loads(Path("study.json").read_text()) == schema("study")
    assert bo_act("schema", "study", "-o", "no/where.json")[0] == 2
    code, out, err = bo_act("schema", "spase")
    assert (code, out) == (2, "")
    assert "did you mean 'space'?" in err


def findings(out: str) -> dict[str, dict]:
    return {one["what"]: one for one in json.loads(out)["findings"]}


def test_doctor_finds_what_is_there(bo_act):
    cache = content.cache_dir() / "features"
    cache.mkdir(parents=True)
    (cache / "part").write_bytes(b"0" * 2_000_000)
    code, out, _ = bo_act("doctor", "quickstart", "--json")
    found = findings(out)
    assert code == 0
    assert found["cache of features"]["found"].startswith("2 MB")
    assert found["Python"]["level"] == found["torch"]["level"] == "ok"
    assert found["storage"]["level"] == "ok"
    assert found["data, space and network"]["found"] == "digits, mlp load"
    code, out, _ = bo_act("doctor")
    assert code == 0
    assert "extra postgres" in out


def test_doctor_names_problems_and_exits_with_1(bo_act, monkeypatch):
    Path("bad.toml").write_text(
        'name = "bad"\nstorage = "postgresql://me:secret@127.0.0.1:1/db"\n'
        '[model]\nname = "nothing"\n[data]\nname = "digits"\n'
    )
    usage = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10**6))
    monkeypatch.setenv("BO_ACT_CACHE_DIR", str(Path("bad.toml").resolve()))
    code, out, _ = bo_act("doctor", "bad.toml", "--json")
    found = findings(out)
    assert code == 1
    assert found["storage"]["level"] == found["data, space and network"]["level"] == "problem"
    assert "secret" not in out
    assert found["cache"]["level"] == "problem"
    assert "BO_ACT_CACHE_DIR" in found["cache"]["advice"]
    assert found["working folder (runs/)"]["level"] == "warning"


def test_doctor_downloads_nothing(bo_act):
    Path("far.toml").write_text(
        'name = "far"\n[model]\nname = "mlp"\n[data]\nname = "fashion_mnist"\n'
        'root = "none"\ndownload = true\n'
    )
    code, out, _ = bo_act("doctor", "far.toml", "--json")
    found = findings(out)["data, space and network"]
    assert (code, found["level"]) == (0, "warning")
    assert not Path("none").exists()

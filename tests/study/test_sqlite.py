"""SQLite files: paths of any characters, files that are gone, damaged or something else."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import optuna
import pytest
from small_studies import SPACE, make

from bo_act.errors import StorageError
from bo_act.study.results.status import read_status
from bo_act.study.results.summary import read_result
from bo_act.study.running.runner import run_study
from bo_act.study.storage.backends.locks import study_lock
from bo_act.study.storage.opening import load_study, open_storage, open_study

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)


def a_study(where: str) -> optuna.Study:
    study = optuna.create_study(study_name="one", storage=open_storage(where))
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 0.5)
    return study


# --- paths ------------------------------------------------------------------------------------

NAMES = [
    "wh?t is#this? 100%25 %41%2F ünï-数 a+b&c=d a:b@c 'q\" {x} {SCHEMA_VERSION} [a];\\ mode=memory",
    "file:a?mode=memory",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", [".db", ".log", ""])
def test_a_path_names_exactly_that_file(name, ending, tmp_path):
    for where in (f"./folder/{name}{ending}", str(tmp_path / name / f"{name}{ending}")):
        study = a_study(where)
        assert Path(where).is_file()
        with study_lock(study):
            assert Path(f"{where}.turn").is_file()
        del study
        assert len(optuna.load_study(study_name="one", storage=open_storage(where)).trials) == 1
        files = sorted(path.name for path in Path(where).parent.iterdir())
        assert files == [f"{name}{ending}", f"{name}{ending}.turn"]


def test_a_path_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home?"))
    for name in ("study.db", "study.log"):
        a_study(f"~/runs/{name}")
        assert (tmp_path / "home?" / "runs" / name).is_file()
    with pytest.raises(StorageError, match="write the folder instead of ~"):
        open_storage("~nobody-of-this-name/study.db")


@pytest.mark.parametrize("url", ["sqlite:///a.db", "sqlite:////FOLDER/a.db", "sqlite:///a%3Fb.db"])
def test_a_url_of_a_file(url, tmp_path):
    url = url.replace("/FOLDER", str(tmp_path))
    a_study(url)
    plain = optuna.load_study(study_name="one", storage=url)  # as Optuna itself reads the URL
    assert len(plain.trials) == 1
    assert len(optuna.load_study(study_name="one", storage=open_storage(url)).trials) == 1


def test_in_memory():
    assert len(a_study("sqlite:///:memory:").trials) == 1
    assert len(a_study("sqlite://").trials) == 1
    assert list(Path().glob("*memory*")) == []


def test_reading_makes_no_file():
    for where in ("no/study.db", "no/study.log"):
        with pytest.raises(StorageError, match=r"there is no study storage at .*`bo-act run`"):
            read_result(make(storage=where))
    with pytest.raises(StorageError):
        read_result(make(storage="sqlite:///study.db"))
    assert [path.name for path in Path().iterdir()] == ["few.toml"]
    Path("empty.db").touch()
    with pytest.raises(StorageError, match=r"no such table.*; it has no study yet"):
        read_result(make(storage="empty.db"))
    assert Path("empty.db").read_bytes() == b""


# --- gone, and something else -----------------------------------------------------------------


def test_a_file_that_is_gone_is_missed_and_not_made_anew():
    study = a_study("study.db")
    Path("study.db").rename("moved.db")
    for call in (study.ask, lambda: study.trials, lambda: study.set_user_attr("a", 1)):
        with pytest.raises(StorageError, match=r"it was deleted or moved: put it back"):
            call()
    assert not Path("study.db").exists()
    Path("moved.db").rename("study.db")
    assert study.ask().number == 1
    Path("study.db").rename("moved.db")
    Path("study.db").write_bytes(Path("moved.db").read_bytes())
    with pytest.raises(StorageError, match="was replaced by another file while in use"):
        study.ask()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"epoch 1: loss 0.5\n" * 100, "file is not a database"),
        (b"\0" * 5000, "file is not a database"),
    ],
)
def test_another_file_is_left_as_it_is(content, says, bo_act):
    Path("notes.txt").write_bytes(content)
    Path("study.toml").write_text(
        'name = "one"\nstorage = "notes.txt"\n[model]\nname = "mlp"\n[data]\nname = "digits"\n'
    )
    for command in ("best", "status", "run", "report"):
        code, out, err = bo_act(command, "study.toml")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"notes.txt is damaged ({says}): restore a copy" in err
    assert Path("notes.txt").read_bytes() == content


def test_another_database_is_no_study():
    with sqlite3.connect("other.db") as connection:
        connection.execute("CREATE TABLE things (name TEXT)")
    with pytest.raises(StorageError, match="no such table"):
        read_result(make(storage="other.db"))


def test_a_folder_is_no_database():
    Path("folder.db").mkdir()
    with pytest.raises(StorageError, match=r"folder\.db is a folder; give the path of a file"):
        open_storage("folder.db")


# --- damaged ----------------------------------------------------------------------------------


def test_damaged_files_are_read_or_said_to_be_damaged(bo_act, caplog):
    spec = make(storage="study.db", trials=2, confirm={"seeds": 0}, features={"fim": False})
    run_study(spec)
    whole = Path("study.db").read_bytes()
    randomness = random.Random(0)
    said: list[str] = []
    for number in range(40):
        content = bytearray(whole)
        page = 4096 * randomness.randrange(len(whole) // 4096)
        if number % 4 == 0:
            del content[randomness.randrange(len(whole)) :]
        elif number % 4 == 1:
            content[page : page + 4096] = randomness.randbytes(4096)
        else:
            for _ in range(randomness.choice([1, 10])):
                content[randomness.randrange(len(whole))] = randomness.randrange(256)
        for reads in (read_result, read_status) if number % 4 < 2 else (read_result,):
            Path("study.db").write_bytes(content)
            try:
                reads(spec)
            except StorageError as error:
                said.append(str(error))
    assert len(said) > 20
    assert "\n" not in "".join(said)
    assert caplog.text == ""
    Path("study.toml").write_text('name = "tiny"\n[model]\nname = "mlp"\n[data]\nname = "digits"\n')
    Path("study.db").write_bytes(whole[:20_000])
    for command in ("best", "status", "run", "report", "why"):
        arguments = ["study.toml", "--storage", "study.db", *["0"] * (command == "why")]
        code, out, err = bo_act(command, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "is damaged (database disk image is malformed): restore a copy" in err


def test_a_study_of_a_database_whose_content_is_no_json():
    spec = make(storage="study.db", name="json")
    open_study(spec, optuna.samplers.RandomSampler())
    with sqlite3.connect("study.db") as connection:
        connection.execute("UPDATE study_user_attributes SET value_json = '{'")
    with pytest.raises(StorageError, match=r"study\.db is damaged \(Expecting property name"):
        load_study(spec).user_attrs  # noqa: B018

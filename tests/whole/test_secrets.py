"""Nothing that the program says, writes or keeps has a storage's password in it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import threading
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from processes import descendants
from servers import PostgreSQL
from small_studies import SPACE, make
from sqlalchemy import MetaData, create_engine, select, text

from bo_act.errors import StorageError
from bo_act.study.results.summary import read_result
from bo_act.study.storage.backends import database
from bo_act.study.storage.opening import load_study, open_storage, open_study
from bo_act.study.storage.provenance import MADE_BY, environments, keep_environment
from bo_act.study.storage.recorded_settings import SPEC
from bo_act.user_code.failures import one_line

PW = "M4rk3r"
PASSWORD = f"a@:/?#&=%+ '{PW}"

STUDY = """
name = "secret"
space = "few.toml"
trials = 3
model = { name = "mlp", options = { widths = [16] } }
data = { name = "digits", train = 256, validation = 200 }
training = { epochs = 1, batch_size = 64, threads = 1, device = "cpu" }
features = { fim = false }
confirm = { top = 1, seeds = 1, baselines = [] }
"""


@pytest.fixture(scope="module")
def server():
    """A server that asks ``guarded`` for its password, and others for none."""
    server = PostgreSQL()
    try:
        with create_engine(server.url.replace(":", "+psycopg:", 1)).begin() as connection:
            escaped = PASSWORD.replace("'", "''").replace(":", r"\:")
            connection.execute(text(f"CREATE ROLE guarded SUPERUSER LOGIN PASSWORD '{escaped}'"))
            hba = Path(connection.execute(text("SHOW hba_file")).scalar_one())
            hba.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")
            connection.execute(text("SELECT pg_reload_conf()"))
        yield server
    finally:
        server.close()


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)
    Path("secret.toml").write_text(STUDY)


def rows(server: PostgreSQL) -> str:
    """All that stands in the database."""
    engine = create_engine(server.url.replace(":", "+psycopg:", 1))
    tables = MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        return repr([connection.execute(select(t)).all() for t in tables.sorted_tables])


def test_a_study_in_a_database_with_a_password(server, bo_act):
    url = f"postgresql://guarded:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/postgres"
    said = []

    def run(*arguments: str) -> str:
        code, out, err = bo_act(*arguments, "--storage", url)
        said.extend([out, err])
        assert code == 0, err
        return out

    run("run", "secret.toml")
    shown = f"postgresql://guarded@127.0.0.1:{server.port}/postgres"
    for command in ("run", "best", "status"):
        run(command, "secret.toml")
        assert json.loads(run(command, "secret.toml", "--json"))["storage"] == shown
    run("why", "secret.toml", "2", "--json")
    run("worker", "secret.toml")
    run("report", "secret.toml", "-o", "report.html")
    run("run", "secret.toml", "--set", f"storage={url}", "--json")
    said += [path.read_text() for path in Path().rglob("*") if path.suffix in (".json", ".html")]
    assert len(said) > 18
    kept = rows(server)
    assert "bo_act:spec" in kept
    assert shown in kept
    for one in (*said, kept):
        assert PW not in one


@pytest.mark.slow
def test_workers_get_the_password(server, bo_act):
    url = f"postgresql://guarded:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/postgres"
    arguments = ["--workers", "2", "--storage", url, "--set", "name=crew", "-q"]
    shown, over = set(), threading.Event()

    def look() -> None:
        """What any user of the machine sees of the workers."""
        while not over.wait(0.05):
            for pid in descendants(os.getpid()) - {os.getpid()}:
                with contextlib.suppress(OSError):
                    shown.add(Path(f"/proc/{pid}/cmdline").read_text())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        code, out, err = bo_act("run", "secret.toml", *arguments)
    finally:
        over.set()
        looking.join()
    assert code == 0, err
    assert any("\0worker\0" in one for one in shown)
    assert PW not in out + err + rows(server) + "".join(shown)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://guarded:{quote(PASSWORD, safe='')}@127.0.0.1:PORT/postgres",
        f"postgres://guarded:{quote(PASSWORD, safe=':/ ')}@127.0.0.1:PORT/postgres",
        f"postgresql://127.0.0.1:PORT/postgres?user=guarded&password={quote(PASSWORD, safe='')}",
        f"postgresql://guarded@127.0.0.1:PORT/postgres?pass%77ord={quote(PASSWORD, safe='')}",
        f"postgresql://:{quote(PASSWORD, safe='')}@127.0.0.1:PORT/postgres",
        "postgresql://guarded@127.0.0.1:PORT/postgres",
    ],
    ids=["driver", "raw", "query", "encoded", "no user", "environment"],
)
def test_a_password_in_whatever_place(server, bo_act, monkeypatch, url):
    monkeypatch.setenv("PGUSER", "guarded")
    if PW not in url:
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
    url = url.replace("PORT", str(server.port))
    study = open_study(make(name="forms", storage=url), optuna.samplers.RandomSampler())
    monkeypatch.setattr("sys.argv", ["bo-act", "run", "--storage", url, f"--set=storage={url}"])
    keep_environment(study)
    assert PW not in rows(server)
    Path("forms.toml").write_text(STUDY.replace("secret", "forms") + f"[x]\n{url} = 3")
    for arguments in (["--json"], ["--set", f"storage={url}"]):
        code, out, err = bo_act("status", "secret.toml", "--set", "name=forms", "--storage", url)
        assert code == 0, err
        assert PW not in out + err
        assert PW not in "".join(bo_act("status", "forms.toml", *arguments)[1:])


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"postgresql://guarded:{PW}@127.0.0.1:PORT/postgres", "password authentication failed"),
        (f"postgresql://guarded:{PW}@127.0.0.1:1/postgres", "Connection refused"),
        (f"postgresql://guarded:{PW}@host.invalid/postgres", "host.invalid"),
        (f"postgresql://guarded:a@{PW}@127.0.0.1:PORT/postgres", "%40"),
        (f"postgresql://guarded:a@{PW}/b@127.0.0.1:PORT/postgres", "cannot be reached"),
        (f"postgresql://guarded:{{{PW}}}@127.0.0.1:PORT/postgres", "authentication failed"),
        (f"postgresql://guarded:{PW}@127.0.0.1:PORT/nothing?foo=1&token={PW}", "cannot be reached"),
        (f"postgresql://guarded:{PW}", "expected a URL"),
        (f"postgresql://guarded:{PW}@127.0.0.1:x{PW}/db", "expected a URL"),
        (f"nonsense://guarded:{PW}@127.0.0.1/db", "cannot be reached"),
        (f"mysql://guarded:{PW}@127.0.0.1:1/db", "cannot be reached"),
        (f"sqlite://guarded:{PW}@127.0.0.1/study.db", "cannot be reached"),
    ],
)
def test_what_is_said_of_a_database_that_cannot_be_reached(server, bo_act, url, says):
    url = url.replace("PORT", str(server.port))
    for command in ("best", "run", "doctor"):
        if command == "doctor":
            Path("secret.toml").write_text(f"storage = {json.dumps(url)}\n{STUDY}")
            code, out, err = bo_act("doctor", "secret.toml", "--json")
            assert code == 1
        else:
            code, out, err = bo_act(
                command, "secret.toml", "--storage", url, "-q"[: 2 * (command == "run")] or "--json"
            )
            assert (code, out) == (2, "")
            assert says in err
            assert err.count("\n") == 1
        assert PW not in out + err


def test_a_wrong_password_is_not_waited_for(server, monkeypatch):
    waits = []
    monkeypatch.setattr("bo_act.study.storage.backends.database.time.sleep", waits.append)
    for login in ("guarded:wrong", "guarded"):
        url = f"postgresql://{login}@127.0.0.1:{server.port}/postgres"
        with pytest.raises(StorageError, match=r"give it in ~/\.pgpass or PGPASSWORD"):
            open_storage(url, patience=300.0)
    assert waits == []


def test_what_is_said_while_a_database_is_away(server, monkeypatch, caplog):
    password = quote(PASSWORD, safe="")
    url = f"postgresql://127.0.0.1:{server.port}/postgres?user=guarded&password={password}"
    study = open_study(make(name="away", storage=url), optuna.samplers.RandomSampler())
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    monkeypatch.setattr(database, "_FIRST_PAUSE", 0.1)
    server.stop()
    try:
        with pytest.raises(StorageError, match="has been unreachable") as caught:
            study.set_user_attr("a", 1)
    finally:
        server.start()
    assert "is unreachable" in caplog.text
    assert "user=guarded" in caplog.text
    assert PW not in caplog.text + str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["best", "secret.toml", "URL"],
        ["URL"],
        ["best", "secret.toml", "--storageURL"],
        ["best", "secret.toml", "--workers", "URL"],
        ["best", "URL"],
        ["best", "secret.toml", "--set", "URL"],
        ["best", "secret.toml", "--set", "storage.x=URL"],
        ["best", "secret.toml", "--set", "storage=['URL']"],
        ["best", "secret.toml", "--set", "training=URL"],
        ["best", "secret.toml", "--set", "trials=URL", "--set", "stop=['URL']"],
        ["bench", "show", "URL"],
        ["bench", "fetch", "URL"],
        ["bench", "fetch", f"https://me:{PW}@127.0.0.1:1/file.gz?token={PW}"],
    ],
)
def test_arguments_that_are_wrong_are_said_without_their_passwords(bo_act, arguments):
    url = (
        f"postgresql://me:{PW}@server:5432/studies/of-a-department-with-a-long-name?sslmode=require"
    )
    code, out, err = bo_act(*[one.replace("URL", url) for one in arguments])
    assert (code, out) == (2, "")
    assert PW not in err


def test_a_defect_says_no_password(bo_act, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError(f"cannot read postgresql://me:{PW}@server/db")

    monkeypatch.setattr("bo_act.study.storage.opening.load_study", broken)
    code, out, err = bo_act("best", "secret.toml")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert "RuntimeError: cannot read postgresql://me@server/db" in err


def test_a_form_has_no_password_on_its_way_out():
    url = f"postgresql://me:{PW}@server/studies"
    spec = make(storage=url)
    for form in (spec, spec.model_copy(update={"storage": url})):
        assert pickle.loads(pickle.dumps(form)).storage == url  # as workers get it
        shown = [
            repr(form),
            str(form),
            form.model_dump(),
            form.model_dump_json(),
            dict(form.model_dump()),
        ]
        assert PW not in repr(shown)
        assert form.model_dump()["storage"] == "postgresql://me@server/studies"
    for wrong in ({"trials": 0}, {"activations": ["a", "a"]}, {"storage": [url]}, {"x": url}):
        with pytest.raises(ValueError, match="validation error") as caught:
            type(spec).model_validate(
                {**json.loads(make().model_dump_json()), "storage": url, **wrong}
            )
        assert PW not in str(caught.value)


def test_what_an_earlier_version_kept_is_mended():
    spec = make(name="old", trials=1, storage="old.db")
    url = f"postgresql://me:{PW}@server/studies"
    study = open_study(spec, optuna.samplers.RandomSampler())
    study.set_user_attr(SPEC, {**study.user_attrs[SPEC], "storage": url})
    study.set_user_attr(f"{MADE_BY}0", {"command": f"bo-act run old --storage '{url}'"})
    trial = study.ask()
    trial.set_user_attr("activation", "relu(x)")
    study.tell(trial, 0.5)
    study.set_user_attr("of a program of one's own", url)
    assert read_result(spec).trials.complete == 1  # reading is enough
    kept = open_storage("old.db").get_all_studies()[0].user_attrs
    assert kept.pop("of a program of one's own") == url
    assert PW not in repr(kept)
    assert kept[SPEC]["storage"] == "postgresql://me@server/studies"
    assert environments(load_study(spec))[-1]["command"] == (
        "bo-act run old --storage 'postgresql://me@server/studies'"
    )
    open_study(spec, optuna.samplers.RandomSampler())  # the same study


def test_what_fails_in_a_training_is_kept_without_passwords():
    error = RuntimeError(f"cannot reach https://{PW}@server/x " + "x" * 1000)
    assert one_line(error).startswith("RuntimeError: cannot reach https://server/x xxx")

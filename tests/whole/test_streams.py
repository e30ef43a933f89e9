"""stdout and stderr that are not UTF-8, full, closed, or not read to their end."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from benchmarks_of_tests import random_benchmark
from made_up import TASK
from typer.main import get_command

from bo_act import cli
from bo_act.benchmark.parquet import save
from bo_act.spaces.space import load_space

ENCODINGS = ("ascii", "cp1252", "latin-1")
FOLDER = "größe ± ∑ 猫"
STUDY = f"""
name = "tiny"
description = "größe ± ∑ 猫"
space = "classic"
trials = 4
initial = 1
{TASK}device = "cpu"
[features]
batch_size = 32
quantiles = 16
[confirm]
top = 1
seeds = 2
"""

COMMANDS = {
    "space": ["classic"],
    "features": ["tiny.toml"],
    "show": ["mul(sigmoid(x),erf(x))"],
    "run": ["tiny.toml"],
    "worker": ["tiny.toml"],
    "recommend": ["quickstart", "--top", "1"],
    "best": ["tiny.toml"],
    "why": ["tiny.toml", "3"],
    "status": ["tiny.toml"],
    "doctor": ["tiny.toml"],
    "schema": ["study"],
    "export": ["relu(x)"],
    "report": ["tiny.toml", "-o", "größe.html"],
    "plot": ["gallery", "tiny.toml", "-o", "größe.png"],
    "dashboard": ["tiny.toml"],
    "release": ["tiny.toml", "4", "--storage", "sqlite:///left.db"],
    "compare": ["-b", "größe.parquet", "-m", "random", "-m", "evolution",
                "--evaluations", "20", "--seeds", "2"],
    "bench build": ["tiny.toml", "--seeds", "1", "--folder", "größe", "--set", "space='./s.toml'"],
    "bench show": ["größe.parquet"],
    "bench fetch": ["http://127.0.0.1:9/größe ∑.json"],
}  # fmt: skip
SPACE = 'name = "s"\nunary = ["relu", "tanh"]\nschemas = ["unary(x)"]\nbaselines = ["relu(x)"]\n'


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory) -> Iterator[None]:
    """A folder with a study that has run; its name is no text in any of the encodings."""
    folder = tmp_path_factory.mktemp("streams") / FOLDER
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BO_ACT_CACHE_DIR", str(folder / "cache"))
        Path("tiny.toml").write_text(STUDY, encoding="utf-8")
        Path("s.toml").write_text(SPACE, encoding="utf-8")
        save(random_benchmark(load_space("classic"), seed=1), Path("größe.parquet"))
        assert said("utf-8", "run", "tiny.toml")[0] == 0
        yield


@pytest.fixture(autouse=True)
def _own_cache():
    """Not the one of each test: it lies in the folder."""


def prepare(command: str) -> None:
    """Leave a trial that runs, if it is to be released, in a copy of the study."""
    if command == "release":
        shutil.copy("runs/tiny/study.db", "left.db")
        optuna.load_study(study_name="tiny", storage="sqlite:///left.db").ask()


def said(encoding: str, *arguments: str) -> tuple[int, str, str]:
    """Run a command with streams of an encoding: (exit code, stdout, stderr)."""
    streams = [
        io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="")
        for _ in range(2)
    ]
    code: object = 0
    prepare(arguments[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bo-act", *arguments])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        assert (sys.stdout, sys.stderr) == tuple(streams)
    out, err = (stream.buffer.getvalue().decode(encoding, "surrogateescape") for stream in streams)
    return int(code or 0), out, err


def every_command() -> list[str]:
    """The names of all commands, those of groups as ``group command``."""
    group = get_command(cli.app)
    nested = {
        f"{name} {inner}"
        for name, command in group.commands.items()
        for inner in getattr(command, "commands", ())
    }
    plain = {name for name, one in group.commands.items() if not hasattr(one, "commands")}
    return sorted(plain | nested)


def test_every_command_is_tried():
    assert sorted(COMMANDS) == every_command()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_speaks_plainly(monkeypatch, command):
    """The same lines in all encodings, with plain characters where there are no others."""
    monkeypatch.setattr("optuna_dashboard.run_server", lambda *_, **__: None)
    expected = None
    every = command in ("show", "best", "run")
    for encoding in ("utf-8", *(ENCODINGS if every else ENCODINGS[:1])):
        code, out, err = said(encoding, *command.split(), *COMMANDS[command])
        assert code == (2 if command == "bench fetch" else 0), err
        assert "Traceback" not in err
        marks = (out + err).count("?")
        if expected is None:
            expected = out, err, marks
        assert marks == expected[2]
        if command not in ("features", "bench build", "compare", "doctor"):  # these tell times
            assert len(out.splitlines()) == len(expected[0].splitlines())
            assert len(err.splitlines()) == len(expected[1].splitlines())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_help_of_every_command(encoding):
    for command in ["", "bench", *every_command()]:
        code, out, err = said(encoding, *command.split(), "--help")
        assert (code, err) == (0, "")
        assert "Usage: " in out


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "größe ∑.toml"],
        ["run", "tiny.toml", "--set", "größe=∑"],
        ["show", "größe(∑)"],
        ["show", "größe", "∑"],
        ["bench", "show", "∑.json"],
        ["run", os.fsdecode(b"\xff\xfe.toml")],
        ["report", os.fsdecode(b"\xff\xfe.toml")],
    ],
)
def test_errors_name_what_came(encoding, arguments):
    code, out, err = said(encoding, *arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert any(part in err for part in ("größe", r"gr\xf6\xdfe", r"\u2211", r"\udcff", "ÿþ"))


@pytest.mark.parametrize("encoding", ["utf-8", *ENCODINGS])
def test_names_of_files_that_are_no_text_come_out_as_they_are(encoding):
    name = os.fsdecode(b"caf\xe9.py")
    shown = name if encoding in ("utf-8", "ascii") else "café.py"
    assert said(encoding, "export", "relu(x)", "-o", name) == (0, "", f"wrote {shown}\n")
    assert os.path.getsize(b"caf\xe9.py") > 100


def test_tables_and_curves_stay_readable():
    code, out, _ = said("ascii", "show", "mul(sigmoid(x),erf(x))")
    assert code == 0
    assert "** value" in out
    assert "oo slope" in out
    assert "+--------" in out
    code, out, _ = said("ascii", "bench", "show", "größe.parquet")
    assert " | ####" in out
    code, out, _ = said("ascii", "compare", *COMMANDS["compare"])
    assert "+/-" in out


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_users_print_ends_no_trial(encoding):
    """In this process, and in those that are started from it."""
    Path("prints.py").write_text(
        "import subprocess, sys\n"
        "def train(trial, activation):\n"
        "    print('größe ± ∑ 猫')\n"
        '    script = "print(chr(8721))"\n'
        "    return 0.5 - subprocess.run([sys.executable, '-c', script]).returncode\n",
        encoding="utf-8",
    )
    Path("own.toml").write_text(
        f'name = "own-{encoding}"\nspace = "classic"\ntrials = 1\nobjective = "prints.py:train"\n'
    )
    code, out, err = said(encoding, "run", "own.toml")
    assert (code, err.count("Traceback")) == (0, 0)
    assert r"\u2211" in out
    assert "1 complete" in out


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_the_same_whatever_the_encoding(encoding):
    assert json.loads(said(encoding, "best", "tiny.toml", "--json")[1]) == json.loads(
        said("utf-8", "best", "tiny.toml", "--json")[1]
    )


# --- streams that take nothing --------------------------------------------------------------


class Broken(io.RawIOBase):
    """Takes nothing, as a full disk or a pipe that nobody reads."""

    def __init__(self, number: int) -> None:
        self.number = number

    def write(self, _) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def writable(self) -> bool:
        return True


def with_broken(monkeypatch, name: str, number: int, *arguments: str) -> tuple[int, str]:
    """Run a command with a stream that is broken: its exit code, and what stands on the other."""
    other = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    broken = io.TextIOWrapper(io.BufferedWriter(Broken(number)), encoding="utf-8")
    prepare(arguments[0])
    monkeypatch.setattr(sys, "argv", ["bo-act", *arguments])
    monkeypatch.setattr(sys, name, broken)
    monkeypatch.setattr(sys, "stderr" if name == "stdout" else "stdout", other)
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0), other.buffer.getvalue().decode()


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("bench fetch", "dashboard")]
)
def test_a_full_stdout_is_one_line(monkeypatch, command):
    code, err = with_broken(
        monkeypatch, "stdout", errno.ENOSPC, *command.split(), *COMMANDS[command]
    )
    assert code == 2
    assert err.splitlines()[-1] == (
        "error: the results cannot be printed to stdout: No space left on device; make room "
        "there, or print them elsewhere; everything saved is safe"
    )
    assert "Traceback" not in err


def test_a_stdout_that_is_not_read_to_its_end(monkeypatch):
    assert with_broken(monkeypatch, "stdout", errno.EPIPE, "best", "tiny.toml") == (141, "")
    assert with_broken(monkeypatch, "stdout", errno.EPIPE, "show", "relu(x)") == (141, "")
    assert with_broken(monkeypatch, "stdout", errno.EPIPE, "--help") == (141, "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE, errno.EIO])
def test_a_broken_stderr_stops_nothing(monkeypatch, number):
    """Progress is for whoever looks; a study goes on without."""
    changes = ["--set", f"name='without{number}'", "--set", "confirm.seeds=0"]
    changes += ["--set", "trials=2", "--storage", "without.log"]
    code, out = with_broken(monkeypatch, "stderr", number, "run", "tiny.toml", *changes)
    assert code == 0
    assert "2 complete" in out
    assert with_broken(monkeypatch, "stderr", number, "run", "nothing") == (2, "")


@pytest.mark.slow
def test_real_processes(tmp_path):
    """Streams as a shell gives them, at the end of the process too."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    bo_act = f"{sys.executable} -m bo_act.cli"
    show = f"{bo_act} show 'relu(x)'"
    for line, codes, err in (
        (f"{show} --json >/dev/full", "2", "error: the results cannot be printed"),
        (f"{show} 2>/dev/full >/dev/full", "2", ""),
        (f"{bo_act} space act_bench --functions | head -n 1 >/dev/null", "141 0", ""),
        (f"{show} >&- 2>&- <&-", "0", ""),
    ):
        script = f"{line}; echo ${{PIPESTATUS[@]}}"
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.stdout == f"{codes}\n", (line, done)
        assert done.stderr.startswith(err)
        assert done.stderr.count("\n") == bool(err)


@pytest.mark.slow
def test_no_file_takes_the_place_of_a_closed_stream():
    """What was printed went into the database that was opened next."""
    command = f"{sys.executable} -m bo_act.cli run tiny.toml --set name=\"'closed'\""
    done = subprocess.run(
        ["bash", "-c", f"{command} --set trials=2 --set confirm.seeds=0 0<&- >&- 2>&-"], check=False
    )
    assert done.returncode == 0
    with sqlite3.connect("runs/closed/study.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)

"""Users without a home, disks that are full or cannot be written to, folders that go away.

Permissions do not bind root, and only root can become somebody else, so these tests need root.
"""

from __future__ import annotations

import encodings.ascii  # noqa: F401  (nobody else may be able to read root's Python)
import importlib.readers  # noqa: F401
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_up import TASK
from surroundings import Ended, become_someone, mount, mounts_of_its_own, run_apart

from bo_act import cli
from bo_act.spaces import catalogue_cache
from bo_act.specs import StudySpec
from bo_act.study.storage.opening import load_study

pytestmark = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become somebody else"
)

STUDY = f"""
name = "tiny"
space = "classic"
trials = 3
initial = 1
{TASK}device = "cpu"
[features]
batch_size = 32
quantiles = 16
[confirm]
seeds = 0
"""
COMPARE = ["compare", "-b", "digits_mlp", "-m", "random", "--evaluations", "5", "--seeds", "1"]


@pytest.fixture(scope="module", autouse=True)
def _everything_is_imported(tmp_path_factory) -> None:
    """So that the forks need to read nothing more of Python's."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BO_ACT_CACHE_DIR", str(folder / "cache"))
        Path("tiny.toml").write_text(STUDY)
        for arguments in (
            ["run", "tiny.toml", "--quiet"],
            ["doctor", "tiny.toml"],
            ["show", "relu(x)", "--png", "a.png"],
            [*COMPARE, "--out", "out"],
        ):
            patch.setattr(sys, "argv", ["bo-act", *arguments])
            with pytest.raises(SystemExit) as end:
                cli.main()
            assert not end.value.code


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may write to, with a study file; others may not see pytest's."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o777)
    (place / "tiny.toml").write_text(STUDY)
    yield place
    shutil.rmtree(place)


def someone_in(folder: Path, home: str | None = None, **environment: str) -> Callable[[], None]:
    """Let a command run in a folder, by somebody who owns nothing."""

    def set_up() -> None:
        os.chdir(folder)
        become_someone(home)
        os.environ.update(environment)

    return set_up


def one_line(ended: Ended, *says: str) -> None:
    """Check that a command ended with one line that says what to do, and no more."""
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err
    assert [line[:7] for line in ended.err.splitlines()].count("error: ") == 1
    assert ended.last.startswith("error: ")
    for text in says:
        assert text in ended.last


def warnings_of(ended: Ended) -> list[str]:
    return [line for line in ended.err.splitlines() if line.startswith("warning: ")]


# --- users ----------------------------------------------------------------------------------


def test_a_user_without_a_home(folder, tmp_path):
    """As in ``docker run -u 12345``, without HOME and without an entry in /etc/passwd."""
    temporary = folder / "temporary"
    temporary.mkdir()
    temporary.chmod(0o777)
    someone = someone_in(folder, TMPDIR=str(temporary))
    ended = run_apart(tmp_path, someone, "run", "tiny.toml")
    assert (ended.code, warnings_of(ended)) == (0, [])
    (cache,) = temporary.iterdir()
    assert cache.name == "bo-act-12345"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert (cache / "features").is_dir()
    ended = run_apart(tmp_path, someone, "doctor", "tiny.toml")
    assert ended.code == 0
    assert "home folder" in ended.out
    assert "set BO_ACT_CACHE_DIR" in ended.out
    # Which shell this is depends on who started the tests.
    named = someone_in(
        folder, TMPDIR=str(temporary), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    one_line(run_apart(tmp_path, named, "--install-completion", "bash"), "set HOME")
    # What others have put there is not used.
    shutil.rmtree(cache)
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    one_line(run_apart(tmp_path, someone, "features", "tiny.toml"), "set BO_ACT_CACHE_DIR")


def test_a_home_that_cannot_be_written_to(folder, tmp_path, monkeypatch):
    """As in ``docker run -u 12345``, where HOME is the root of the file system."""
    ended = run_apart(tmp_path, someone_in(folder, home="/"), "run", "tiny.toml")
    assert ended.code == 0
    (said,) = warnings_of(ended)
    assert "features cannot be kept in /.cache/bo-act" in said
    assert "set BO_ACT_CACHE_DIR" in said
    assert "3 complete" in ended.out
    monkeypatch.setattr(catalogue_cache, "KEPT_FROM", 1)
    ended = run_apart(tmp_path, someone_in(folder, home="/"), "space", "classic")
    assert ended.code == 0
    assert "the catalogue cannot be saved" in warnings_of(ended)[0]
    ended = run_apart(tmp_path, someone_in(folder, home="/"), "doctor")
    assert ended.code == 1
    assert "Traceback" not in ended.err + ended.out
    assert "set BO_ACT_CACHE_DIR" in ended.out


# --- folders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "tiny.toml"],
        ["run", "tiny.toml", "--storage", "here.log"],
        ["run", "tiny.toml", "--storage", "here.db"],
        [*COMPARE, "--out", "out"],
        ["show", "relu(x)", "--png", "a.png"],
        ["export", "relu(x)", "-o", "a.py"],
        ["schema", "study", "-o", "a.json"],
        ["bench", "build", "tiny.toml"],
        ["bench", "fetch", "http://127.0.0.1:9/a.json"],
    ],
)
def test_a_working_folder_that_cannot_be_written_to(folder, tmp_path, arguments):
    folder.chmod(0o755)
    one_line(run_apart(tmp_path, someone_in(folder, home="/"), *arguments))
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


def test_what_is_optional_does_not_stop_a_run(folder, tmp_path):
    """The storage elsewhere is all that a run needs."""
    folder.chmod(0o755)
    storage = folder / "storage"
    storage.mkdir()
    storage.chmod(0o777)
    arguments = ["run", "tiny.toml", "--storage", f"{storage}/study.db"]
    ended = run_apart(tmp_path, someone_in(folder, home="/"), *arguments)
    assert ended.code == 0
    assert "3 complete" in ended.out
    said = warnings_of(ended)
    assert len(said) == len(set(said)) <= 3
    assert any("study.json cannot be written" in line for line in said)


def test_a_file_in_the_place_of_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "runs").touch()
    for arguments in (["run", "tiny.toml"], ["best", "tiny.toml"], ["bench", "build", "tiny.toml"]):
        one_line(run_apart(tmp_path, lambda: None, *arguments), "runs")
    ended = run_apart(tmp_path, lambda: None, "doctor", "tiny.toml")
    assert ended.code == 1
    assert "runs is not a folder" in " ".join(ended.out.replace("│", " ").split())


def test_a_working_folder_that_was_removed(folder, tmp_path):
    def gone() -> None:
        (folder / "gone").mkdir()
        os.chdir(folder / "gone")
        (folder / "gone").rmdir()

    for arguments in (["run", "quickstart"], ["run", "tiny.toml"]):
        one_line(run_apart(tmp_path, gone, *arguments))
    for arguments in (["show", "relu(x)"], ["space", "classic"], COMPARE):
        assert run_apart(tmp_path, gone, *arguments).code == 0
    ended = run_apart(tmp_path, gone, "doctor")
    assert ended.code == 1
    assert "was removed" in ended.out


def test_no_place_for_temporary_files(folder, tmp_path):
    if Path(__file__).is_relative_to("/tmp") or Path(__file__).is_relative_to("/var/tmp"):
        pytest.skip("the checkout itself is among temporary files")

    def set_up() -> None:
        mounts_of_its_own()
        os.chdir(folder.parent)
        for place in {"/tmp", "/var/tmp", "/usr/tmp", str(folder.parent)}:
            if os.path.isdir(place):
                mount("-t", "tmpfs", "-o", "ro", "tmpfs", place)
        os.chdir("/")
        become_someone("/")

    try:
        ended = run_apart(tmp_path, set_up, *COMPARE)
    except OSError as error:
        pytest.skip(f"needs mounts of its own: {error}")
    if "no mounts of its own" in ended.err:
        pytest.skip("needs mounts of its own")
    one_line(ended, "set TMPDIR")


# --- disks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["study.db", "study.log"])
@pytest.mark.parametrize("size", [8, 24, 140])
def test_a_full_disk_ends_a_run_with_one_line(small_disk, tmp_path, monkeypatch, storage, size):
    """With more room, the same command resumes."""
    monkeypatch.chdir(small_disk)
    subprocess.run(["mount", "-o", f"remount,size={size}k", small_disk], check=True)
    Path("tiny.toml").write_text(STUDY)
    arguments = ["run", "tiny.toml", "--storage", storage]
    ended = run_apart(tmp_path, lambda: None, *arguments)
    if ended.code:
        one_line(ended)
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    ended = run_apart(tmp_path, lambda: None, *arguments)
    assert (ended.code, warnings_of(ended)) == (0, [])
    assert "3 complete" in ended.out
    spec = StudySpec.model_validate(tomllib.loads(STUDY) | {"storage": storage})
    assert len(load_study(spec).trials) == 3


@pytest.mark.parametrize("what", ["cache", "report", "figure", "export", "comparison", "benchmark"])
def test_a_full_disk_elsewhere(small_disk, folder, tmp_path, monkeypatch, what):
    """Caches are done without, and results end the command with one line."""
    monkeypatch.chdir(folder)
    (small_disk / "full").write_bytes(bytes(290_000))
    if what == "cache":
        monkeypatch.setenv("BO_ACT_CACHE_DIR", str(small_disk))
        (small_disk / "more").write_bytes(bytes(small_disk_free(small_disk)))
        ended = run_apart(tmp_path, lambda: None, "run", "tiny.toml")
        assert ended.code == 0
        (said,) = warnings_of(ended)
        assert "No space left on device; make room there, or set BO_ACT_CACHE_DIR" in said
        return
    (small_disk / "more").write_bytes(bytes(small_disk_free(small_disk)))
    if what in ("report", "figure"):
        assert run_apart(tmp_path, lambda: None, "run", "tiny.toml").code == 0
    one_line(
        run_apart(
            tmp_path,
            lambda: None,
            *{
                "report": ["report", "tiny.toml", "-o", f"{small_disk}/a.html"],
                "figure": ["plot", "gallery", "tiny.toml", "-o", f"{small_disk}/a.svg"],
                "export": ["export", "relu(x)", "-o", f"{small_disk}/a.py"],
                "comparison": [*COMPARE, "--out", str(small_disk)],
                "benchmark": ["bench", "build", "tiny.toml", "--folder", str(small_disk)],
            }[what],
        ),
        "No space left on device; make room there",
    )
    assert {path.name for path in small_disk.iterdir()} <= {
        "full", "more", "runs.jsonl", "runs.lock",
    }  # fmt: skip


def small_disk_free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_a_disk_that_is_read_only(small_disk, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BO_ACT_CACHE_DIR", str(small_disk / "cache"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    arguments = ["run", "tiny.toml", "--storage", f"{small_disk}/study.db"]
    assert run_apart(tmp_path, lambda: None, *arguments, "--set", "trials=2").code == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    # All spectra are there, and can be read.
    elsewhere = ["run", "tiny.toml", "--storage", "here.db"]
    ended = run_apart(tmp_path, lambda: None, *elsewhere)
    assert (ended.code, warnings_of(ended)) == (0, [])
    one_line(run_apart(tmp_path, lambda: None, *arguments))
    ended = run_apart(tmp_path, lambda: None, "best", *arguments[1:])
    assert ended.code == 0 or ended.last.startswith("error: ")
    assert "Traceback" not in ended.err


def test_run_folders_that_are_deleted_meanwhile(folder, tmp_path, monkeypatch):
    """What is for people and for going on is made again; nothing is said of it."""
    monkeypatch.chdir(folder)

    def deleted() -> None:
        def later() -> None:
            while not Path("runs/tiny/study.json").exists():
                time.sleep(0.01)
            shutil.rmtree("runs")

        threading.Thread(target=later, daemon=True).start()

    ended = run_apart(
        tmp_path, deleted, "run", "tiny.toml", "--storage", "here.db", "--set", "training.epochs=30"
    )
    assert (ended.code, warnings_of(ended)) == (0, [])
    assert "3 complete" in ended.out

"""Journal files: full disks, half lines, and lines that are no records."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import resource
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from small_disks import small_disk
from small_studies import SPACE, history, make

from bo_act.errors import StorageError
from bo_act.events import Events
from bo_act.study.results.summary import read_result
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study, open_storage

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPEC = {"storage": "study.log", "confirm": {"seeds": 0}, "features": {"fim": False}}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)


def a_journal(path: str = "study.log") -> optuna.Study:
    """A study of three finished trials and one that runs."""
    study = optuna.create_study(study_name="one", storage=open_storage(path))
    for value in (0.1, 0.2, 0.3):
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        trial.set_user_attr("näme", f"ü{value}")
        trial.report(value, 0)
        study.tell(trial, value)
    study.ask()
    return study


def read(path: str = "study.log") -> list[tuple]:
    """All trials, as a reader sees them that has seen nothing before."""
    return told(optuna.load_study(study_name="one", storage=open_storage(path)))


def told(study: optuna.Study) -> list[tuple]:
    return [(t.number, t.state, t.values, t.params, t.user_attrs) for t in study.trials]


# --- a full disk ----------------------------------------------------------------------------


def write_until_full(path: Path, acknowledged: Path, name: str) -> None:
    """Write attributes until the disk is full, and note those that were written."""
    study = optuna.load_study(study_name="one", storage=open_storage(str(path)))
    with acknowledged.open("a") as file:
        for number in range(1000):
            key = f"{name}-{number}"
            try:
                study.set_user_attr(key, "x" * random.Random(key).randrange(50, 3000))
            except StorageError as error:
                said = f"the study storage {path} cannot be written: No space left on device; make"
                os._exit(28 if str(error).startswith(said) else 1)
            file.write(f"{key}\n")
            file.flush()
            if name.startswith("after") and number == 20:
                os._exit(0)


def test_two_writers_on_a_full_disk(tmp_path):
    context = multiprocessing.get_context("fork")
    with small_disk(tmp_path / "disk", "300k") as disk:
        path, acknowledged = disk.folder / "study.log", tmp_path / "acknowledged"
        (disk.folder / "filler").write_bytes(b"0" * 200_000)
        a_journal(str(path))
        for names, code in ((("a", "b"), 28), (("c", "d"), 28), (("after-a", "after-b"), 0)):
            if code == 0:
                disk.make_room()
            writers = [
                context.Process(target=write_until_full, args=(path, acknowledged, name))
                for name in names
            ]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
            assert [writer.exitcode for writer in writers] == [code] * 2
        kept = optuna.load_study(study_name="one", storage=open_storage(str(path))).user_attrs
        assert set(kept) == set(acknowledged.read_text().split())
        assert len(kept) > 50
        for line in path.read_bytes().splitlines(keepends=True):
            assert line.endswith(b"\n")
            json.loads(line)
        # Other programs read it, too.
        plain = JournalStorage(JournalFileBackend(str(path)))
        assert optuna.load_study(study_name="one", storage=plain).user_attrs == kept


@pytest.mark.parametrize("name", ["study.log", "study.db"])
def test_a_study_goes_on_once_there_is_room(tmp_path, name):
    undisturbed = make(name="undisturbed", **(SPEC | {"storage": None, "trials": 5}))
    run_study(undisturbed)

    class Fills(Events):
        def search(self, done, total, trial, best):
            if done == 3:
                disk.fill()

    with small_disk(tmp_path / "disk", "2m") as disk:
        spec = make(**(SPEC | {"storage": str(disk.folder / name), "trials": 5}))
        with pytest.raises(StorageError, match="make room on the disk") as caught:
            run_study(spec, events=Fills())
        assert "\n" not in str(caught.value)
        assert len(history_of_finished(spec)) >= 3  # it can be read
        with pytest.raises(StorageError, match="make room on the disk"):
            run_study(spec)
        disk.make_room()
        run_study(spec)
        assert history(spec) == history(undisturbed)


def history_of_finished(spec) -> list:
    return [t for t in load_study(spec).trials if t.state == TrialState.COMPLETE]


@pytest.mark.parametrize("name", ["study.log", "study.db"])
def test_a_disk_that_is_read_only_is_read(tmp_path, name):
    with small_disk(tmp_path / "disk", "2m") as disk:
        spec = make(**(SPEC | {"storage": str(disk.folder / name), "trials": 2}))
        run_study(spec)
        gc.collect()  # a file that is open keeps the disk from it
        disk.remount("ro")
        assert read_result(spec).trials.complete == 2
        with pytest.raises(StorageError, match=r"[Rr]ead-?only.*; make the file and its folder"):
            run_study(spec.model_copy(update={"trials": 3}))
        disk.remount("rw")
        assert run_study(spec.model_copy(update={"trials": 3})).trials.complete == 3


def test_what_was_written_of_a_record_is_taken_back():
    study = a_journal()
    before = Path("study.log").read_bytes()
    child = os.fork()
    if not child:
        # The kernel writes a part of the record, and refuses the rest.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40,) * 2)
        try:
            study.set_user_attr("long", "x" * 100)
        except StorageError as error:
            os._exit(17 if "File too large; make room on the disk" in str(error) else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 17
    assert Path("study.log").read_bytes() == before


# --- half lines -----------------------------------------------------------------------------


def test_half_lines_that_appear_while_a_study_runs():
    undisturbed = make(name="undisturbed", **(SPEC | {"storage": None}))
    run_study(undisturbed)
    torn = [b'{"op_code": 5, "wor', b"x", '{"a":"ü'.encode()[:-1], b"\0" * 70_000, b"[" * 9]

    class Dies(Events):
        def search(self, done, total, trial, best):
            with Path("study.log").open("ab") as file:
                file.write(torn[done % len(torn)])

    spec = make(**SPEC)
    run_study(spec, events=Dies())
    assert history(spec) == history(undisturbed)
    plain = optuna.load_study(
        study_name="tiny", storage=JournalStorage(JournalFileBackend("study.log"))
    )
    assert len(plain.trials) == 8


def test_a_record_behind_half_a_line_is_read():
    """As earlier versions, and Optuna itself, leave it."""
    study = a_journal()
    with Path("study.log").open("ab") as file:
        file.write(b'{"op_code":5,"worker_id":"x","tri')
    plain = JournalFileBackend("study.log")
    plain.append_logs(
        [{"op_code": 6, "worker_id": "x", "trial_id": 3, "state": 1, "values": [0.4],
          "datetime_complete": "2026-01-01T00:00:00+00:00"}]
    )  # fmt: skip
    assert study.trials[3].values == [0.4]
    study.set_user_attr("told", 1)
    assert read() == told(study)
    assert study.trials[3].state == TrialState.COMPLETE


# --- lines that are no records --------------------------------------------------------------

FOREIGN = [
    "[]", "null", "7", '"text"', "{}", "", "   ", "nonsense", "[" * 100_000, "1" * 5_000,
    '{"op_code": 99, "worker_id": "x"}',
    '{"op_code": true, "worker_id": "x", "study_id": 0}',
    '{"op_code": "4", "worker_id": "x", "study_id": 0}',
    '{"op_code": 4}',
    '{"op_code": 4, "worker_id": "x", "study_id": [0], "datetime_start": null}',
    '{"op_code": 4, "worker_id": "x", "study_id": 0, "datetime_start": 5}',
    '{"op_code": 6, "worker_id": "x", "trial_id": 3, "state": 9, "values": null}',
    '{"op_code": 6, "worker_id": "x", "trial_id": 3, "state": 1, "values": [1]}',
    '{"op_code": 8, "worker_id": "x", "trial_id": 3, "user_attr": 4}',
    '{"op_code": 0, "worker_id": "x", "study_name": "other", "directions": [9]}',
    '{"op_code": 5, "worker_id": "x", "trial_id": 3, "param_name": "x", "distribution": "["}',
    b"\xff\xfe\xfd", "{\"op_code\": 8, \"x\": \"ü\"}".encode()[:-3], b"\0\0\0",
]  # fmt: skip


@pytest.mark.parametrize("line", FOREIGN, ids=lambda line: repr(line[:30]))
def test_a_line_that_is_no_record_is_left_out(line, caplog):
    follows = a_journal()
    before = told(follows)
    with Path("study.log").open("ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
    assert told(follows) == read() == before
    trial = follows.ask()
    trial.set_user_attr("after", 1)
    follows.tell(trial, 0.5)
    assert told(follows) == read()
    assert len(read()) == 5
    for one in caplog.records:
        assert "1 lines are not study records" in one.getMessage()


def test_flipped_bytes_in_a_journal():
    a_journal()
    whole = Path("study.log").read_bytes()
    randomness = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(randomness.choice([1, 1, 5])):
            damaged[randomness.randrange(len(whole))] = randomness.randrange(256)
        Path("study.log").write_bytes(damaged)
        try:
            read()
        except StorageError:
            continue
        except KeyError:  # its line of the study itself
            assert "one" not in optuna.get_all_study_names(open_storage("study.log"))


# --- other files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "epoch 1: loss 0.3\nepoch 2: loss",
        "half a line",
        '{"loss": 0.3}\n',
        "\0" * 100,
        "[]\n",
        "\n",
    ],
)
def test_another_file_is_left_as_it_is(content, bo_act):
    Path("train.log").write_text(content)
    with pytest.raises(StorageError, match="is another file, not a study journal") as caught:
        open_storage("train.log")
    assert "\n" not in str(caught.value)
    Path("study.toml").write_text(
        'name = "one"\nstorage = "train.log"\n[model]\nname = "mlp"\n[data]\nname = "digits"\n'
    )
    for command in ("best", "status", "run"):
        code, out, err = bo_act(command, "study.toml")
        assert (code, out, err.count("\n")) == (2, "", 1)
    assert Path("train.log").read_text() == content


def test_a_folder_is_no_journal():
    Path("folder.log").mkdir()
    with pytest.raises(StorageError, match=r"folder\.log cannot be opened: Is a directory"):
        open_storage("folder.log")


def test_a_journal_that_is_gone_is_missed_and_not_made_anew():
    study = a_journal()
    Path("study.log").rename("moved.log")
    with pytest.raises(StorageError, match=r"it was deleted or moved: put it back"):
        study.ask()
    with pytest.raises(StorageError, match=r"it was deleted or moved: put it back"):
        study.trials  # noqa: B018
    assert not Path("study.log").exists()
    Path("moved.log").rename("study.log")
    assert study.ask().number == 4


def test_a_journal_in_whose_place_another_was_put():
    study = a_journal()
    whole = Path("study.log").read_bytes()
    Path("study.log").write_bytes(whole[:300])
    with pytest.raises(StorageError, match="was replaced by another file while in use"):
        study.trials  # noqa: B018
    study = optuna.load_study(study_name="one", storage=open_storage("study.log"))
    Path("copy.log").write_bytes(whole * 2)
    Path("copy.log").rename("study.log")
    with pytest.raises(StorageError, match="was replaced by another file while in use"):
        study.trials  # noqa: B018

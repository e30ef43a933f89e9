"""Files that appear whole or not at all, and errors on one line."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import pytest

from bo_act import io
from bo_act.io import atomic_write, digest, one_line, reason, replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    atomic_write(path, "größe\n")
    assert path.read_bytes() == "größe\n".encode()
    atomic_write(path, b"\0\r\n")
    assert path.read_bytes() == b"\0\r\n"
    assert names(path.parent) == ["a.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_many_writers_of_one_file_all_succeed(tmp_path):
    path = tmp_path / "a.txt"
    content = [bytes([65 + n]) * 200_000 for n in range(6)]
    failed = []

    def write(own: bytes) -> None:
        try:
            for _ in range(10):
                atomic_write(path, own)
                assert path.read_bytes() in content
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(own,)) for own in content]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert names(tmp_path) == ["a.txt"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    atomic_write(tmp_path / "a.txt", "old")
    with suppress(RuntimeError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["a.txt"]


def half_written(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_removed_by_the_next_writer(tmp_path):
    for _ in range(3):
        killed = get_context("fork").Process(target=half_written, args=(tmp_path / "a.txt",))
        killed.start()
        killed.join()
        assert len(names(tmp_path)) == 1  # that of the one before is gone
    (tmp_path / ".mine.bo-act-tmp").touch()
    with replacing(tmp_path / "one.txt") as temporary:
        temporary.write_text("one", encoding="utf-8")
        atomic_write(tmp_path / "other.txt", "other")  # the first one is in use
    assert names(tmp_path) == [".mine.bo-act-tmp", "one.txt", "other.txt"]


def test_without_locks_it_is_removed_a_day_later(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "fcntl", None)
    for age in (0, 3600, 100_000):
        with suppress(RuntimeError), replacing(tmp_path / f"{age}.txt") as temporary:
            raise RuntimeError
        temporary.write_text("half", encoding="utf-8")
        os.utime(temporary, (time.time() - age,) * 2)
    atomic_write(tmp_path / "other.txt", "")
    assert [name[:6] for name in names(tmp_path)] == [".0.txt", ".3600.", "other."]


def test_a_link_is_followed_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "a.txt")
    for text in ("one", "two"):
        atomic_write(tmp_path / "link", text)
        assert (tmp_path / "elsewhere" / "a.txt").read_text(encoding="utf-8") == text
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    atomic_write(tmp_path / "pipe", "through it")
    reader.join()
    assert read == [b"through it"]
    atomic_write(Path("/dev/null"), "nothing")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "a\n\tb"])
def test_any_name_that_a_file_may_have(tmp_path, name):
    atomic_write(tmp_path / name, "x")
    assert names(tmp_path) == [name]


def test_a_folder_or_a_file_in_the_way(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError) as error:
        atomic_write(tmp_path / "folder", "")
    assert reason(error.value) == (
        "Is a directory; move the folder that is in the file's place, or give another place"
    )
    with pytest.raises((NotADirectoryError, FileExistsError)) as error:
        atomic_write(tmp_path / "file" / "a", "")
    assert "move the file that is in the folder's place" in reason(error.value)
    assert names(tmp_path) == ["file", "folder"]


def test_errors_are_one_line():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 1000))) == 300
    full = OSError(errno.ENOSPC, "No space left on device")
    assert reason(full, "wait") == "No space left on device; make room there, or wait"
    assert reason(OSError("8 requested and 4 written")) == "OSError: 8 requested and 4 written"


def test_equal_content_has_one_digest():
    assert digest("é") == digest("é".encode())
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})

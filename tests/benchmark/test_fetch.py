"""Downloads from a real server on loopback: resumed, checked, whole or not there."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import pytest

from bo_act.benchmark import fetch as fetching
from bo_act.benchmark.fetch import fetch
from bo_act.errors import BenchmarkError

CONTENT = bytes(range(256)) * 4000  # about 1 MB
OTHER = bytes(reversed(range(256))) * 4000  # as many bytes


@dataclass
class Server:
    """What it does, and what was asked of it."""

    address: str = ""
    content: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    conditions: bool = True
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    breaks: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    hold: threading.Event | None = None


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if self.path.startswith("/none"):
                self.send_error(404)
                return
            content = state.content.get(self.path, CONTENT)
            start = 0
            condition = self.headers.get("If-Range")
            same = condition is None or condition in state.headers.values()
            if asked and state.ranges and (same or not state.conditions):
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                whole = len(content)
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            else:
                self.send_response(200)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = state.breaks.pop(0) if state.breaks else len(content)
            self.wfile.write(content[start : max(start, end // 2)])
            if state.hold is not None:
                self.wfile.flush()
                state.hold.wait()
            self.wfile.write(content[max(start, end // 2) : end])

        def log_message(self, *_) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{httpd.server_port}"
    yield state
    httpd.shutdown()
    httpd.server_close()


def broken_off(server: Server, folder: Path, *, path: str = "/file.json") -> None:
    """Leave the first 100,000 bytes in ``file.json.part``."""
    server.breaks = [100_000, 100_000]  # the second attempt gets nothing more
    with pytest.raises(BenchmarkError, match=r"100,000 of|after 100,000|cannot be fetched"):
        fetch(server.address + path, folder)
    assert (folder / "file.json.part").stat().st_size == 100_000
    server.asked.clear()


def test_a_file_is_downloaded_once(server, tmp_path):
    seen: list[tuple[int, int | None]] = []
    digest = hashlib.sha256(CONTENT).hexdigest()
    url = f"{server.address}/a%20b.json.gz?raw=1"
    path = fetch(url, tmp_path / "data", sha256=digest.upper(), progress=lambda *s: seen.append(s))
    assert path == tmp_path / "data" / "a b.json.gz"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(url, tmp_path / "data", sha256=digest) == path
    assert server.asked == [None]
    assert [file.name for file in path.parent.iterdir()] == ["a b.json.gz"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(server, tmp_path, ranges):
    server.ranges, server.breaks = ranges, [300_000, 700_000]
    path = fetch(f"{server.address}/file.json", tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=700000-"]


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"1"'},
        {"Last-Modified": "Thu, 26 Nov 2026 10:00:00 GMT"},
        {"ETag": 'W/"1"', "Last-Modified": "Thu, 26 Nov 2026 10:00:00 GMT"},
    ],
)
def test_what_came_is_kept_for_the_next_call(server, tmp_path, headers):
    server.headers = headers
    broken_off(server, tmp_path)
    assert fetch(f"{server.address}/file.json", tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=100000-"]
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("url", ["/other/file.json", "/file.json?version=2"])
def test_what_came_from_another_address_is_not_gone_on_with(server, tmp_path, url):
    server.content[url] = OTHER
    broken_off(server, tmp_path)
    assert fetch(server.address + url, tmp_path).read_bytes() == OTHER
    assert server.asked == [None]


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("content", [OTHER, OTHER[:600_000], OTHER[:50_000], b"", OTHER * 2])
def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path, content, conditions):
    """By the server's word, and where it ignores the condition, by what it answers."""
    broken_off(server, tmp_path)
    server.content["/file.json"], server.headers = content, {"ETag": '"2"'}
    server.conditions = conditions
    assert fetch(f"{server.address}/file.json", tmp_path).read_bytes() == content


def test_where_versions_cannot_be_told_apart_it_is_fetched_anew(server, tmp_path):
    server.headers = {}
    broken_off(server, tmp_path)
    server.content["/file.json"] = OTHER
    assert fetch(f"{server.address}/file.json", tmp_path).read_bytes() == OTHER
    assert server.asked == [None]


def test_a_part_of_unknown_origin_is_not_gone_on_with(server, tmp_path):
    for note in (None, "", "[]", '{"url": 3}', "\udcff"):
        (tmp_path / "file.json.part").write_bytes(OTHER[:1000])
        if note is not None:
            content = note.encode(errors="surrogateescape")
            (tmp_path / "file.json.part.json").write_bytes(content)
        path = fetch(f"{server.address}/file.json", tmp_path)
        assert path.read_bytes() == CONTENT
        path.unlink()
    assert server.asked == [None] * 5


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_part_that_is_whole_already_or_too_long(server, tmp_path, more):
    broken_off(server, tmp_path)
    (tmp_path / "file.json.part").write_bytes(CONTENT + more)
    assert fetch(f"{server.address}/file.json", tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT + more)}-"] + [None] * bool(more)


def fetch_in_a_process(url: str, folder: Path) -> None:
    fetch(url, folder)


def test_a_killed_download_goes_on(server, tmp_path):
    server.hold = threading.Event()
    url = f"{server.address}/file.json"
    killed = get_context("fork").Process(target=fetch_in_a_process, args=(url, tmp_path))
    killed.start()
    part = tmp_path / "file.json.part"
    while not part.exists() or not part.stat().st_size:
        pass
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    server.hold.set()
    assert fetch(url, tmp_path).read_bytes() == CONTENT
    assert server.asked[1].startswith("bytes=")


def test_several_at_once_all_have_the_file(server, tmp_path):
    server.breaks = [200_000]
    urls = [f"{server.address}/file.json"] * 6
    with ThreadPoolExecutor(6) as pool:
        for path in pool.map(lambda url: fetch(url, tmp_path), urls):
            assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=200000-"]  # one fetched it, and all others waited
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_folder_that_cannot_be_written_to(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BenchmarkError, match=r"cannot write .*; move the file that"):
        fetch(f"{server.address}/file.json", tmp_path / "file" / "data")
    (tmp_path / "file.json").mkdir()
    with pytest.raises(BenchmarkError, match=r"cannot write .*: Is a directory"):
        fetch(f"{server.address}/file.json", tmp_path)


def test_a_full_disk(server, small_disk):
    with pytest.raises(BenchmarkError, match=r"cannot write .*file.json.part: No space left.*kept"):
        fetch(f"{server.address}/file.json", small_disk)
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert fetch(f"{server.address}/file.json", small_disk).read_bytes() == CONTENT
    assert server.asked[1].startswith("bytes=")


def test_another_file_than_expected(server, tmp_path):
    for _ in range(2):  # it is not kept, and the next call does not go on from it
        with pytest.raises(BenchmarkError, match="expected the checksum 0000"):
            fetch(f"{server.address}/file.json", tmp_path, sha256="0" * 64)
        assert os.listdir(tmp_path) == []
    assert server.asked == [None, None]
    fetch(f"{server.address}/other.json", tmp_path)
    with pytest.raises(BenchmarkError, match="expected the checksum"):
        fetch(f"{server.address}/other.json", tmp_path, sha256="0" * 64)


def test_no_way_there(server, tmp_path):
    with pytest.raises(BenchmarkError, match=r"answers 404.*act-bench on GitHub.*give its path"):
        fetch(f"{server.address}/none.json", tmp_path)
    with pytest.raises(BenchmarkError, match=r"cannot be downloaded: .*act-bench on GitHub"):
        fetch("http://127.0.0.1:9/file.json", tmp_path)
    with pytest.raises(BenchmarkError, match="cannot be fetched"):
        fetch("https://no-such-host.invalid/file.json", tmp_path)
    for url in ("http://a:b/f.json", "http://a..b/f.json", f"http://{'a' * 70}.b/f.json"):
        with pytest.raises(BenchmarkError, match="cannot be fetched"):
            fetch(url, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/b.json",
        "file:///etc/passwd",
        "b.json",
        "http://a/",
        "",
        "http://a/..",
        "http://a/%2e%2e",
        "http://[::1/b.json",
        "http:///b.json",
        "http://a/b%00.json",
    ],
)
def test_what_is_no_address(tmp_path, url):
    with pytest.raises(BenchmarkError, match="expected an http or https URL"):
        fetch(url, tmp_path)


def test_a_server_that_stops_answering(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_ATTEMPTS", 1)
    server.breaks = [50_000]
    with pytest.raises(BenchmarkError, match=r"The part received so far is in .*file.json.part"):
        fetch(f"{server.address}/file.json", tmp_path)

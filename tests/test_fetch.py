"""Downloads from a real server on loopback: resumed, checked, whole or not there."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from bo_act.benchmark import fetch as fetching
from bo_act.benchmark.fetch import fetch
from bo_act.errors import BenchmarkError

CONTENT = bytes(range(256)) * 4000  # about 1 MB


@dataclass
class Server:
    """What it does, and what was asked of it."""

    address: str = ""
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)


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
            start = 0
            if asked and state.ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                if start >= len(CONTENT):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            end = state.breaks.pop(0) if state.breaks else len(CONTENT)
            self.wfile.write(CONTENT[start:end])

        def log_message(self, *_) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{httpd.server_port}"
    yield state
    httpd.shutdown()
    httpd.server_close()


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


def test_what_came_is_kept_for_the_next_call(server, tmp_path):
    server.breaks = [100_000, 100_000]  # the second attempt gets nothing more
    with pytest.raises(BenchmarkError, match=r"100,000 of|after 100,000|cannot be fetched"):
        fetch(f"{server.address}/file.json", tmp_path)
    part = tmp_path / "file.json.part"
    assert part.read_bytes() == CONTENT[:100_000]
    assert fetch(f"{server.address}/file.json", tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=100000-"


def test_a_part_that_is_whole_already(server, tmp_path):
    (tmp_path / "file.json.part").write_bytes(CONTENT)
    assert fetch(f"{server.address}/file.json", tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file(server, tmp_path):
    (tmp_path / "file.json.part").write_bytes(CONTENT + b"more")
    assert fetch(f"{server.address}/file.json", tmp_path).read_bytes() == CONTENT


def test_another_file_than_expected(server, tmp_path):
    with pytest.raises(BenchmarkError, match="expected the checksum 0000"):
        fetch(f"{server.address}/file.json", tmp_path, sha256="0" * 64)
    assert not (tmp_path / "file.json").exists()
    fetch(f"{server.address}/other.json", tmp_path)
    with pytest.raises(BenchmarkError, match="expected the checksum"):
        fetch(f"{server.address}/other.json", tmp_path, sha256="0" * 64)


def test_no_way_there(server, tmp_path):
    with pytest.raises(BenchmarkError, match=r"answers 404.*act-bench on GitHub.*give its path"):
        fetch(f"{server.address}/none.json", tmp_path)
    with pytest.raises(BenchmarkError, match=r"cannot be fetched: .*act-bench on GitHub"):
        fetch("http://127.0.0.1:9/file.json", tmp_path)
    with pytest.raises(BenchmarkError, match="cannot be fetched"):
        fetch("https://no-such-host.invalid/file.json", tmp_path)


@pytest.mark.parametrize("url", ["ftp://a/b.json", "file:///etc/passwd", "b.json", "http://a/", ""])
def test_what_is_no_address(tmp_path, url):
    with pytest.raises(BenchmarkError, match="expected the http or https address"):
        fetch(url, tmp_path)


def test_a_server_that_stops_answering(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_ATTEMPTS", 1)
    server.breaks = [50_000]
    with pytest.raises(BenchmarkError, match=r"What came so far is kept in .*file.json.part"):
        fetch(f"{server.address}/file.json", tmp_path)

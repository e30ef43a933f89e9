"""A PostgreSQL server of a test's own, on a port of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


def _binaries() -> Path | None:
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    # Debian keeps the servers of all versions side by side.
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


class PostgreSQL:
    """A server that can be stopped and started again.

    PostgreSQL refuses to run as root: it runs as the user ``postgres`` then.
    """

    def __init__(self) -> None:
        pytest.importorskip("psycopg")
        self.binaries = _binaries()
        if self.binaries is None:
            pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
        self.options: dict = {"user": "postgres"} if os.geteuid() == 0 else {}
        self.folder = Path(tempfile.mkdtemp(prefix="bo-act-postgres-"))
        if self.options:
            shutil.chown(self.folder, "postgres", "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", "data", "-U", "bo_act", "-A", "trust", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://bo_act@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off -k {self.folder}"
        self._run("pg_ctl", "start", "-w", "-D", "data", "-l", "log", "-o", settings)

    def stop(self) -> None:
        """As in a crash: connections are cut, nothing is tidied up."""
        self._run("pg_ctl", "stop", "-w", "-D", "data", "-m", "immediate")

    def close(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(Path(self.binaries or "") / program), *arguments],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            **self.options,
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"

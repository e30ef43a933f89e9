"""Searches kept as lines of a file, so that a second call goes on where the first one stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Kept:
    """Results by key, each computed once.

    Args:
        path: of the file, JSON lines of a key's parts and its result; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.path = path
        self.found: dict[tuple[Any, ...], Any] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            *key, result = json.loads(line)
            self.found[tuple(key)] = result

    def get(self, key: tuple[Any, ...], search: Callable[[], Any]) -> Any:
        """Return the result of a key, by ``search`` where there is none yet."""
        if key not in self.found:
            self.found[key] = search()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([*key, self.found[key]]) + "\n")
        return self.found[key]

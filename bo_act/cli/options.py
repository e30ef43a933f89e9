"""Options that several commands share, and how they read a study and print JSON.

Every command names its panel of ``bo-act --help`` (``rich_help_panel=Panel.SEARCH``) and has an
example as its epilog (``Example: bo-act …``). Names of content complete in the shell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bo_act import content
from bo_act.errors import SpecError

if TYPE_CHECKING:
    from bo_act.specs import StudySpec


class Panel(StrEnum):
    """The groups of commands in ``bo-act --help``, in their order there."""

    SEARCH = "Search"
    FUNCTIONS = "Functions and spaces"
    RESULTS = "Results"
    BENCHMARKS = "Benchmarks"
    ENVIRONMENT = "Workers and environment"


def completing(kind: content.Kind) -> Callable[[str], list[str]]:
    """Return a completion for names of content and for paths with its suffix."""

    def complete(incomplete: str) -> list[str]:
        ending = content.SUFFIX[kind]
        folder = incomplete.rpartition("/")[0]
        paths = [
            str(path) + ("/" if path.is_dir() else "")
            for path in sorted(Path(folder or ".").glob("*"))
            if path.suffix == ending or (path.is_dir() and not path.name.startswith("."))
        ]
        return [one for one in [*content.names(kind), *paths] if one.startswith(incomplete)]

    return complete


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress on stderr.")]
StudyName = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="Name of a study, or path of its .toml file.",
        autocompletion=completing("studies"),
    ),
]
SpaceName = Annotated[
    str,
    typer.Argument(
        metavar="SPACE",
        help="Name of a space, or path of its .toml file.",
        autocompletion=completing("spaces"),
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the study; repeatable."),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Optuna storage: a URL, or a path (.log a journal, else SQLite).",
    ),
]


def read(study: str, changes: list[str] | None, storage: str | None = None) -> StudySpec:
    """Read a study file with the overrides of ``--set`` and ``--storage``."""
    from bo_act.specs.files import read_study

    overrides = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise SpecError(
                f"--set expects KEY=VALUE, e.g. --set training.epochs=20, got {change!r}"
            )
        overrides[key.strip()] = value.strip()
    if storage is not None:
        overrides["storage"] = json.dumps(storage)
    spec = read_study(study, overrides)
    # Only now that the file is known to be right is the time spent to import it all.
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return spec


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout; NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(_in_json(content), indent=2, allow_nan=False))


def _in_json(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _in_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_in_json(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content

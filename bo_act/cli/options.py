"""Options that several commands share, and how they read a study and print JSON.

Every command names its panel of ``bo-act --help`` (``rich_help_panel=Panel.SEARCH``) and has an
example as its epilog (``Example: bo-act …``). Names of content complete in the shell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bo_act import content
from bo_act.errors import SpecError

if TYPE_CHECKING:
    import optuna

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
        return [name for name in [*content.names(kind), *paths] if name.startswith(incomplete)]

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
OneOrNamed = Annotated[
    str | None,
    typer.Argument(
        metavar="STUDY",
        show_default=False,
        help="Name of a study, or path of its .toml file; or give --storage and --study.",
        autocompletion=completing("studies"),
    ),
]
Named = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="NAME",
        help="Name of a study in --storage, made by any program; replaces STUDY.",
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
    # Slow imports only once the file is valid.
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return spec


@dataclass(frozen=True)
class Opened:
    """A study that a command reads.

    Attributes:
        study: opened.
        spec: of its file; None if a program made it.
        storage: for display.
    """

    study: optuna.Study
    spec: StudySpec | None
    storage: str


def open_to_read(
    study: str | None, changes: list[str] | None, storage: str | None, named: str | None
) -> Opened:
    """Open the study of a file, or one by its storage and name.

    Args:
        study: name or path of a study file.
        changes: values of ``--set``.
        storage: of ``--storage``.
        named: of ``--study``.
    """
    if (study is None) == (named is None):
        raise SpecError(
            "expected the study as STUDY, or as --storage URL --study NAME, got "
            f"{'neither' if study is None else 'both'}"
        )
    from bo_act.study.storage.opening import load_named, load_study, location
    from bo_act.urls import shown_url

    if study is not None:
        spec = read(study, changes, storage)
        return Opened(load_study(spec), spec, location(spec))
    if storage is None or named is None:
        raise SpecError("--study names a study in a storage: give --storage URL, too")
    if changes:
        raise SpecError("--set changes a study file, and --study reads a study without one")
    import optuna

    from bo_act.study.results.tried import text_of
    from bo_act.study.storage.trials import own_trials

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    loaded, file_spec = load_named(storage, named)
    trials = own_trials(loaded)
    if trials and not any(map(text_of, trials)):
        raise SpecError(
            f"the study {named!r} in {shown_url(storage)} has no trial with a bo-act function; "
            "make some with space.suggest(trial)"
        )
    return Opened(loaded, file_spec, shown_url(storage))


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout; NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(_in_json(content), indent=2, allow_nan=False))


def _in_json(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _in_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_in_json(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content

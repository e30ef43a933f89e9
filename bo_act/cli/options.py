"""Options that several commands share, and how they read a study and print JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bo_act.errors import SpecError

if TYPE_CHECKING:
    from bo_act.specs import StudySpec

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="Name of a study, or path of its .toml file.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the study file."),
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
    """Read a study file with what ``--set`` and ``--storage`` change."""
    from bo_act.spec_files import read_study

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
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(content, indent=2, allow_nan=False))

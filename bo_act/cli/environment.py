"""Commands about the environment: a check of the installation, and the schemas of files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from bo_act.cli.options import Json, Panel, completing, print_json
from bo_act.errors import SpecError, nearest
from bo_act.io import atomic_write, reason

commands = typer.Typer()


@commands.command(
    epilog="Example: bo-act schema study -o study.schema.json",
    rich_help_panel=Panel.ENVIRONMENT,
)
def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="study or space.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Output file (default: stdout)."),
    ] = None,
) -> None:
    """Print the JSON Schema of study or space files, for completion and checks in an editor."""
    from bo_act.specs.schema import FORMS
    from bo_act.specs.schema import schema as json_schema

    if kind not in FORMS:
        raise SpecError(
            f"there is no schema of {kind!r}{nearest(kind, FORMS)}; expected study or space"
        )
    if out is None:
        print_json(json_schema(kind))
        return
    try:
        atomic_write(out, json.dumps(json_schema(kind), indent=2) + "\n", parents=False)
    except OSError as error:
        raise SpecError(f"cannot write {out}: {reason(error)}") from error
    print(f"wrote {out}", file=sys.stderr)


@commands.command(
    epilog="Example: bo-act doctor quickstart",
    rich_help_panel=Panel.ENVIRONMENT,
)
def doctor(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            help="Check this study's needs, too.",
            autocompletion=completing("studies"),
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check versions, devices, storage, folders and extras, with advice on what to fix."""
    from bo_act.cli.doctor_checks import examine

    findings = examine(study)
    if as_json:
        print_json({"findings": [finding.as_json() for finding in findings]})
    else:
        from rich.table import Table

        from bo_act.terminal.console import out

        table = Table(show_header=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        style = {"ok": "green", "warning": "yellow", "problem": "bold red"}
        for finding in findings:
            text = f"{finding.found}\n{finding.advice}" if finding.advice else finding.found
            level = f"[{style[finding.level]}]{finding.level}[/]"
            table.add_row(level, finding.what, escape(text))
        out.print(table)
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)

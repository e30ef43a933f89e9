"""The command that exports a function."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bo_act.cli.options import Panel
from bo_act.errors import ExportError
from bo_act.io import atomic_write, reason

commands = typer.Typer()


def _targets(incomplete: str) -> list[str]:
    names = ("torch", "jax", "keras", "onnx", "latex")
    return [name for name in names if name.startswith(incomplete)]


@commands.command(
    epilog="Example: bo-act export 'mul(sigmoid(x),erf(x))' --to torch --name gate -o gate.py",
    rich_help_panel=Panel.RESULTS,
)
def export(
    expression: Annotated[
        str, typer.Argument(metavar="FUNCTION", help="A function, e.g. 'max(relu(x),tanh(x))'.")
    ],
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="torch, jax, keras, onnx or latex.",
            autocompletion=_targets,
        ),
    ] = "torch",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Output file (default: stdout)."),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Name of the function in the code.")
    ] = "activation",
) -> None:
    """Export a function as standalone code, model or formula, independent of bo-act."""
    from bo_act.exports.exporter import export as exported

    content = exported(expression, to=to, name=name)  # type: ignore[arg-type]
    if out is None:
        if isinstance(content, str):
            print(content, end="")
        elif sys.stdout.isatty():
            raise ExportError("an ONNX model is a binary file; give its name: -o model.onnx")
        else:
            sys.stdout.buffer.write(content)
        return
    try:
        atomic_write(out, content, parents=False)
    except OSError as error:
        raise ExportError(f"cannot write {out}: {reason(error)}") from error
    print(f"wrote {out}", file=sys.stderr)

"""The command line: ``bo-act``. Results on stdout, progress and errors on stderr.

Exit codes: 0 done, 1 a defect in bo-act, 2 bad input (with one line that says what to do), 130
interrupted, 141 stdout closed by its reader, 143 terminated. Heavy imports wait until a command
needs them.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bo_act import __version__
from bo_act.cli import benchmarks, environment, exports, reports, studies, workers
from bo_act.cli.options import Panel
from bo_act.cli.streams import OutputError, steady_streams
from bo_act.errors import BoActError
from bo_act.io import reason
from bo_act.study.running.signals import terminable, was_terminated
from bo_act.urls import without_secrets

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

TERMINATED = 143
"""The exit code after SIGTERM."""

UNREAD = 141
"""The exit code when the reader closes stdout early, as shells have it after SIGPIPE."""


class _InPanels(TyperGroup):
    """Commands in the order of their panels, not of their definition."""

    def list_commands(self, ctx: Any) -> list[str]:
        panels = list(Panel)

        def order(name: str) -> int:
            panel = getattr(self.commands[name], "rich_help_panel", None)
            return panels.index(panel) if panel in panels else len(panels)

        return sorted(super().list_commands(ctx), key=order)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; errors about its arguments hide passwords."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(message := getattr(error, "message", None), str):
                error.message = without_secrets(message)  # type: ignore[attr-defined]
            raise


app = typer.Typer(
    cls=_InPanels,
    help="Search for a better activation function for your network and data.",
    epilog="First steps: bo-act run quickstart",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(requested: bool) -> None:
    if requested:
        print(f"bo-act {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


app.add_typer(studies.commands)
app.add_typer(environment.commands)
app.add_typer(exports.commands)
app.add_typer(benchmarks.commands)
app.add_typer(workers.commands)
app.add_typer(reports.commands)


def _warn_briefly() -> None:
    # Libraries' warnings about themselves, which users cannot act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.jit._script")  # workers
    warnings.showwarning = _warn  # type: ignore[assignment]


def _warn(message: Warning | str, *_: object) -> None:
    # One line, without the source location.
    sys.stderr.write(f"warning: {' '.join(without_secrets(str(message)).split())}\n")


def main() -> None:
    """Run the command line; the entry point of ``bo-act``."""
    with steady_streams():
        try:
            code = _run()
            sys.stdout.flush()
        except OutputError as error:
            code = UNREAD if error.unread else _complain(f"error: {error}", code=2)
    sys.exit(code)


def _run() -> int | str | None:
    """Run a command and return its exit code."""
    _warn_briefly()
    try:
        with terminable():
            app()
    except OutputError:
        raise
    except BoActError as error:
        return _complain(f"error: {error}", code=2)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer exits with this code, silently, after Ctrl-C
            terminated = was_terminated()
            event = "terminated" if terminated else "interrupted"
            code = TERMINATED if terminated else INTERRUPTED
            return _complain(f"{event}; the same command resumes here", code=code)
        return end.code
    except Exception as error:
        fault = _fault(error)
        if fault is None:  # a defect; its traceback may quote the arguments
            sys.stderr.write(without_secrets(traceback.format_exc()))
            return 1
        return _complain(f"error: {fault}", code=2)
    return 0


def _fault(error: BaseException | None) -> str | None:
    """Describe a failure of disk, folder or database; None for any other error."""
    while error is not None:
        if isinstance(error, OSError):
            try:
                os.getcwd()
            except FileNotFoundError:
                return "the working folder was removed; change to an existing one"
            path = f"{error.filename}: " if error.filename else ""
            return path + reason(error)
        if isinstance(error, sqlite3.Error):
            return (
                f"the database of the study: {error}; make room there, allow writing to it and its "
                f"folder, and do not move it; the same command resumes from the stored trials"
            )
        if isinstance(error, RuntimeError) and "home directory" in str(error):
            return "there is no home folder, and this command needs one; set HOME to a folder"
        error = error.__cause__
    return None


def _complain(message: str, *, code: int) -> int:
    sys.stderr.write(" ".join(message.split()) + "\n")
    return code

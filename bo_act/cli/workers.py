"""Commands about running studies: workers, status, ownership of trials, the dashboard."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from bo_act.cli.options import (
    Json,
    Named,
    OneOrNamed,
    Panel,
    Quiet,
    Set,
    Storage,
    StudyName,
    open_to_read,
    print_json,
    read,
)
from bo_act.dependencies.extras import require_extra
from bo_act.errors import WorkerError

commands = typer.Typer()


@commands.command(
    epilog="Example: bo-act worker quickstart --storage postgresql://me@server/studies",
    rich_help_panel=Panel.ENVIRONMENT,
)
def worker(
    study: StudyName,
    *,
    changes: Set = None,
    storage: Storage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run one more worker of a study, on any machine, until the study has its trials."""
    if study == "-":  # started by bo-act run, which has made the checks and runs the callbacks
        from bo_act.study.running.worker_process import work_for_parent

        work_for_parent()
        return
    spec = read(study, changes, storage)
    from bo_act import terminal
    from bo_act.study.running.callbacks import Callbacks
    from bo_act.study.running.worker import work

    with terminal.live(quiet=quiet) as events:
        ran = work(spec, events=events, callbacks=Callbacks.of(spec, ()))
    if as_json:
        print_json({"study": spec.name, "trials": ran})
    else:
        print(f"{spec.name}: done; this worker ran {ran} trials")


@commands.command(
    epilog="Example: bo-act status quickstart --watch", rich_help_panel=Panel.ENVIRONMENT
)
def status(
    study: OneOrNamed = None,
    *,
    changes: Set = None,
    storage: Storage = None,
    named: Named = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until the study is done.")
    ] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Refresh interval, with --watch.")
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """Show a study's workers, throughput and remaining time."""
    opened = open_to_read(study, changes, storage, named)
    from bo_act import terminal
    from bo_act.study.results.status import StudyStatus, read_status

    def now() -> StudyStatus:
        return read_status(opened.spec, opened.study, storage=opened.storage)

    if as_json:
        print_json(now().as_json())
        return
    if not watch:
        terminal.show_status(now())
        return
    from rich.live import Live

    with Live(console=terminal.out, auto_refresh=False) as screen:
        while True:
            current = now()
            screen.update(terminal.status_table(current), refresh=True)
            if current.done:
                return
            time.sleep(every)


@commands.command(epilog="Example: bo-act release quickstart 17", rich_help_panel=Panel.ENVIRONMENT)
def release(
    study: StudyName,
    trial: Annotated[int, typer.Argument(min=0, metavar="TRIAL", help="Number of the trial.")],
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Release the trial even if its process is alive.")
    ] = False,
    changes: Set = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Release a running trial whose worker is dead; the next worker takes it over."""
    spec = read(study, changes, storage)
    from bo_act.study.storage.opening import load_study
    from bo_act.study.storage.ownership import release as give_back

    released = give_back(load_study(spec), trial, force=force)
    if as_json:
        print_json(released.as_json())
        return
    process = f" of {released.host} (pid {released.pid})" if released.host else ""
    seconds = released.silent
    silent = "" if seconds is None else f", with no heartbeat for {seconds:.0f} s,"
    print(
        f"trial {released.trial}{process}{silent} was released; the next worker runs it again "
        "under the same number"
    )


@commands.command(
    epilog="Example: bo-act dashboard quickstart --port 8080", rich_help_panel=Panel.ENVIRONMENT
)
def dashboard(
    study: StudyName,
    *,
    changes: Set = None,
    storage: Storage = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
) -> None:
    """Open a study in optuna-dashboard, in the browser."""
    spec = read(study, changes, storage)
    run_server = require_extra("dashboard", "bo-act dashboard").run_server

    from bo_act.dependencies.optuna_internals import storage_of, study_id
    from bo_act.study.storage.opening import load_study

    opened = load_study(spec)
    address = f"http://{host}:{port}/dashboard/studies/{study_id(opened)}"
    print(f"{address} (Ctrl-C ends it)", flush=True)  # pipes are buffered
    try:
        run_server(storage_of(opened), host=host, port=port)
    except OSError as error:
        raise WorkerError(
            f"port {port} of {host} is not available ({error}); choose another --port"
        ) from error

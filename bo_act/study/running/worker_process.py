"""What a worker process of a crew does. Light to import: libraries speak as they are loaded."""

from __future__ import annotations

import threading
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from bo_act.errors import BoActError

if TYPE_CHECKING:
    from bo_act.specs import StudySpec


def quiet_libraries() -> None:
    """Leave out what libraries say about their own inside; nothing that a user could change."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def work_for_parent(connection: Connection, spec: StudySpec) -> None:
    """Work on a study until it is done, and tell the parent what comes.

    Args:
        connection: gets a number whenever a trial has ended, each warning as its text, and at last
            the exception that ended the work, or None where all is done.
        spec: the study.
    """

    def tell(what: object) -> None:
        with suppress(OSError):  # the parent is gone
            connection.send(what)

    # Written from here, a warning would stand in the middle of what the parent draws.
    quiet_libraries()
    warnings.showwarning = lambda message, *_, **__: tell(str(message))

    import optuna
    import torch

    from bo_act.events import Events
    from bo_act.process_pool import end_with_parent, portable
    from bo_act.study.running.signals import terminable
    from bo_act.study.running.worker import work

    class Report(Events):
        def search(self, done: int, total: int, trial: object, best: float | None) -> None:  # noqa: ARG002
            if trial is not None:
                tell(done)

    threading.Thread(target=end_with_parent, daemon=True).start()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(spec.training.threads or 1)
    try:
        with terminable():
            work(spec, events=Report(), checked=True)
        tell(None)
    except BoActError as error:
        tell(error)
    except Exception as error:
        tell(portable(error))
    except KeyboardInterrupt:
        return  # the trial was given back

"""Work that is killed again and again until it is let finish."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def killed_ten_times(work: Callable[[], object], pause: Callable[[], float]) -> None:
    """Do some work in child processes, ten of which get a ``kill -9`` and the last none.

    Args:
        work: what each child begins, and the last one ends.
        pause: seconds until the next kill: too short for ten children to finish the work.
    """
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            try:
                work()
                os._exit(0)
            finally:  # whatever happens, the tests must not run on in here
                os._exit(1)
        if kills < 10:
            time.sleep(pause())
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        else:
            assert os.WEXITSTATUS(status) == 0
            break
    assert kills == 10

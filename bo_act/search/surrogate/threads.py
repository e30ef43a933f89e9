"""Small numbers on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch
from threadpoolctl import threadpool_limits

_BUSY = RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch and numpy to one thread.

    Matrices of some hundred rows gain nothing from more, and the two libraries' pools of threads,
    taking turns on the same cores, made a fit ten times as long. One computation at a time, as the
    setting is the whole process's.
    """
    with _BUSY:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(1):
                yield
        finally:
            torch.set_num_threads(before)

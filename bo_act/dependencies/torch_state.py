"""Isolation from torch's global settings.

bo-act's numbers do not depend on ``torch.set_default_device``, ``torch.set_default_dtype``,
``torch.no_grad``, ``torch.inference_mode`` or ``torch.autocast`` of the caller.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from threadpoolctl import threadpool_limits

_BUSY = threading.RLock()


@contextmanager
def plain_torch(device: torch.device | str = "cpu") -> Iterator[None]:
    """Give torch the settings of a new process: gradients, float32, no autocast.

    Anomaly detection is off: slopes that are not finite are results here, not mistakes.

    Args:
        device: default of new tensors, if the caller set another one than the CPU.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in {"cpu", torch.device(device).type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_anomaly_enabled():
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device(device))
        stack.enter_context(_FLOAT32)
        yield


def one_core_in_this_thread() -> None:
    """Restrict torch to one core in the calling thread, which must be new.

    ``torch.set_num_threads`` sets the number of its own thread, and of all threads that first use
    torch later: for those another thread restores it.
    """
    with _THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        back = threading.Thread(target=torch.set_num_threads, args=(before,))
        back.start()
        back.join()


_THREADS = threading.Lock()


class _Float32:
    """Makes float32 the default dtype while any thread needs it.

    The default is global: the first thread sets it, and the last one restores the old value.
    """

    def __init__(self) -> None:
        self.users = 0
        self.before = torch.float32
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.before = torch.get_default_dtype()
                if self.before != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0 and self.before != torch.float32:
                torch.set_default_dtype(self.before)


_FLOAT32 = _Float32()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Keep torch and numpy to one thread.

    Matrices of some hundred rows gain nothing from more, and the two libraries' thread pools,
    competing for the same cores, made a fit ten times as long. One computation at a time, because
    the setting is global.
    """
    with _BUSY:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(1):
                yield
        finally:
            torch.set_num_threads(before)

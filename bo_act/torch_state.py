"""What is set in torch for a whole process or block, kept away from what is computed here.

A caller may have called ``torch.set_default_device`` or ``torch.set_default_dtype``, or may stand
inside of ``torch.no_grad``, ``torch.inference_mode`` or ``torch.autocast``. The numbers here follow
from none of that.
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
    """Have torch do what it does in a new process: gradients, float32, no autocast.

    Anomaly detection is off: slopes that are not finite are results here, not mistakes.

    Args:
        device: of tensors that are made without saying where, if the caller had set another one
            than the CPU.
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
    """Have torch use one core in the calling thread, which has to be a new one.

    What ``torch.set_num_threads`` sets is that of its own thread, and of all that come to torch
    for the first time later: for those another thread puts it back.
    """
    with _THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        back = threading.Thread(target=torch.set_num_threads, args=(before,))
        back.start()
        back.join()


_THREADS = threading.Lock()


class _Float32:
    """Makes float32 the default dtype while somebody needs it.

    The default is one for all threads: the first to come sets it, and the last to leave puts back
    what was there.
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

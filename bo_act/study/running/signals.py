"""Requests to stop: SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from bo_act.training.outcomes import TrainingStopped

_received: list[int] = []


class Signals:
    """The last signal to stop, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def came(self) -> bool:
        """Tell whether a signal came."""
        return self.signal is not None

    def explain(self, error: BaseException) -> bool:
        """Tell whether an exception comes from a request to stop."""
        if self.came() or isinstance(error, TrainingStopped):
            return True
        # Only the main thread receives signals; other threads must trust the exception.
        in_thread = threading.current_thread() is not threading.main_thread()
        return in_thread and isinstance(error, KeyboardInterrupt)

    def stop_now(self) -> None:
        """Raise if a signal came.

        Raises:
            TrainingStopped: a signal came.
        """
        if self.came():
            raise TrainingStopped("asked to stop")


@contextmanager
def finishing_steps() -> Iterator[Signals]:
    """Record SIGTERM and a first Ctrl-C without acting; a second Ctrl-C interrupts at once."""
    signals = Signals()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signals.signal == signal.SIGINT:
            signal.default_int_handler(number, frame)
        signals.signal = number
        _received.append(number)

    with _handled((signal.SIGTERM, signal.SIGINT), note):
        yield signals


@contextmanager
def noting() -> Iterator[Signals]:
    """Record SIGTERM and Ctrl-C, and let them act as usual.

    This tells a user's request to stop from a KeyboardInterrupt that code raised.
    """
    signals = Signals()
    before = {
        number: handler
        for number in (signal.SIGTERM, signal.SIGINT)
        if callable(handler := signal.getsignal(number))
    }

    def note(number: int, frame: FrameType | None) -> None:
        signals.signal = number
        before[signal.Signals(number)](number, frame)

    with _handled(tuple(before), note):
        yield signals


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM act like Ctrl-C, so that a running trial is given back."""

    def stop(number: int, _: FrameType | None) -> None:
        _received.append(number)
        raise TrainingStopped("asked to stop")

    _received.clear()
    with _handled((signal.SIGTERM,), stop):
        yield


def was_terminated() -> bool:
    """Tell whether the last signal was SIGTERM."""
    return _received[-1:] == [signal.SIGTERM]


@contextmanager
def _handled(
    numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)

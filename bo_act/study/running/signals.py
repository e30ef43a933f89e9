"""Being asked to stop: SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from bo_act.training.outcomes import TrainingStopped

_received: list[int] = []


class Signals:
    """What came while steps were to be finished."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def came(self) -> bool:
        """Tell whether there was one."""
        return self.signal is not None

    def explain(self, error: BaseException) -> bool:
        """Tell whether an exception is that of a person who wants to stop."""
        if self.came() or isinstance(error, TrainingStopped):
            return True
        # Elsewhere no signals are heard, and so nothing is known of what came.
        elsewhere = threading.current_thread() is not threading.main_thread()
        return elsewhere and isinstance(error, KeyboardInterrupt)

    def stop_now(self) -> None:
        """Stop where there was one.

        Raises:
            TrainingStopped: so.
        """
        if self.came():
            raise TrainingStopped("asked to stop")


@contextmanager
def finishing_steps() -> Iterator[Signals]:
    """Only note SIGTERM and a first Ctrl-C inside; a second Ctrl-C interrupts at once."""
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
    """Note SIGTERM and Ctrl-C inside, which act as they do outside.

    So what a person asked for is told from what some code raised.
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
    """Let SIGTERM inside end the work as Ctrl-C does, so that a trial is given back."""

    def stop(number: int, _: FrameType | None) -> None:
        _received.append(number)
        raise TrainingStopped("asked to stop")

    _received.clear()
    with _handled((signal.SIGTERM,), stop):
        yield


def was_terminated() -> bool:
    """Tell whether the last signal that came was SIGTERM."""
    return _received[-1:] == [signal.SIGTERM]


@contextmanager
def _handled(
    numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread alone
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)

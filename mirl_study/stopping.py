"""A request to stop waits until the step is done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Request:
    """Signals that came in meanwhile, and who would have got them."""

    def __init__(self) -> None:
        self.former: dict[int, Callable[..., Any] | int] = {}
        self.pending: list[int] = []

    def __bool__(self) -> bool:
        """Whether anybody wants this process to stop."""
        return bool(self.pending)

    def deliver(self) -> None:
        """Passes the first signal on to whom it was meant for; who lets the work go on returns."""
        if not self.pending:
            return
        number, handler = self.pending[0], self.former[self.pending[0]]
        self.pending.clear()
        if callable(handler):
            handler(number, None)
        else:  # the system's own way, which is to end the process
            signal.signal(number, handler)
            signal.raise_signal(number)


@contextmanager
def postponed(tell: Callable[[int], None] | None = None) -> Iterator[Request]:
    """Holds SIGINT, SIGTERM and SIGHUP back until they are delivered, or the block ends.

    Only the first thread of a process hears signals; in others this does nothing.

    Args:
        tell: called with each signal as it comes.

    Yields:
        What came in.
    """
    request = Request()

    def hear(number: int, frame: Any) -> None:
        request.pending.append(number)
        if tell:
            tell(number)

    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        handlers = {number: signal.getsignal(number) for number in numbers}
        request.former = {number: h for number, h in handlers.items() if h not in (None, signal.SIG_IGN)}
    for number in request.former:
        signal.signal(number, hear)
    try:
        yield request
    finally:
        for number, handler in request.former.items():
            signal.signal(number, handler)
        request.deliver()

"""Signals that end a training: Ctrl-C, and what schedulers and closed terminals send."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """What a signal raises: a ``KeyboardInterrupt`` that knows the number of the signal."""

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that the signal has ended."""
        return 128 + int(self.args[0])


class Notes:
    """Which signal has come first, 0 if none.

    Attributes:
        signal: its number.
    """

    signal = 0


@contextlib.contextmanager
def note_signals() -> Iterator[Notes]:
    """Let signals be noted, so that one can look for them where it is convenient."""
    notes = Notes()

    def note(number: int, _: Any) -> None:
        notes.signal = notes.signal or number

    with _handling(note):
        yield notes


@contextlib.contextmanager
def raise_signals() -> Iterator[None]:
    """Let the first signal raise :class:`Interrupted`; further ones do not disturb what follows."""
    notes = Notes()

    def interrupt(number: int, _: Any) -> None:
        if not notes.signal:
            notes.signal = number
            raise Interrupted(number)

    with _handling(interrupt):
        yield


@contextlib.contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle signals, except for those that the process ignores, as under ``nohup``.

    Only the main thread can; in another one nothing is done.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        for each, old in before.items():
            if old not in (signal.SIG_IGN, None):
                signal.signal(each, handler)
        yield
    finally:
        for each, old in before.items():
            if old not in (signal.SIG_IGN, None):
                signal.signal(each, old)

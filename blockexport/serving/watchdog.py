"""Interrupts an engine that does not come back."""

import threading
import time
from typing import Protocol


class Interruptible(Protocol):
    """An engine whose call in progress can be ended from another thread; the call then raises."""

    def interrupt(self) -> None:
        """End the call in progress."""
        ...

    def rearm(self) -> None:
        """Let calls run again."""
        ...


class Watchdog:
    """Watches one call at a time, from a thread that looks a few times a second.

    Args:
        limit_s: longest that a call may take.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._watched: tuple[Interruptible, float] | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def begin(self, engine: Interruptible) -> None:
        """Interrupt the engine if `end` is not called in time."""
        # Starting late costs a program that never serves nothing.
        if self._thread is None:
            self._thread = threading.Thread(target=self._patrol, name="engine-watchdog", daemon=True)
            self._thread.start()
        engine.rearm()
        # No lock and no notice: steps are short and many. The patrol looks often enough to see a long one.
        self._watched = (engine, time.monotonic() + self._limit_s)

    def end(self) -> None:
        """The call has come back."""
        self._watched = None

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _patrol(self) -> None:
        pause_s = min(0.25, self._limit_s / 4)
        with self._changed:
            while not self._is_closed:
                self._changed.wait(pause_s)
                watched = self._watched
                if watched is not None and time.monotonic() > watched[1]:
                    watched[0].interrupt()

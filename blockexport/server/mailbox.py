"""From the thread of the engine to the event loop, without blocking the one or flooding the other."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from blockexport.serving.service import Ending, Promise


@dataclass(frozen=True, slots=True)
class Token:
    """A token, the level that gave it, and when it came, by `time.perf_counter`."""

    token: int
    level: str
    at_s: float


Event = Promise | Token | Ending

PACE_S = 0.02
"""Tokens are taken out so many seconds after the last ones, or later: nobody reads faster, and each time costs the
engine what it takes to write a piece of an answer, for both share the interpreter and the processors."""


class Mailbox:
    """What the answers to one HTTP request send, until it is taken out. Made in the loop that takes it out.

    Args:
        capacity: most events that wait; tokens beyond are lost and the mailbox is overfull.
        on_overfull: told once, in the engine's thread.
    """

    def __init__(self, capacity: int, on_overfull: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[int, Event]] = deque()
        self._news = asyncio.Event()
        self._capacity = capacity
        self._on_overfull = on_overfull
        self._is_woken = self._is_expired = False
        self._taken_at_s = -PACE_S
        self.is_overfull = False

    def post(self, index: int, event: Event) -> None:
        """Put an event of answer `index` in, from the engine's thread."""
        if len(self._events) >= self._capacity and isinstance(event, Token):
            if not self.is_overfull:
                self.is_overfull = True
                self._on_overfull()
            return
        self._events.append((index, event))
        # One wake-up serves all that comes before the loop gets to it; what is no token does not wait.
        if not self._is_woken or not isinstance(event, Token):
            self._is_woken = True
            wake = self._wake_later if isinstance(event, Token) else self._news.set
            try:
                self._loop.call_soon_threadsafe(wake)
            except RuntimeError:
                # The loop has ended, and with it whoever would have read this.
                self._events.clear()

    def _wake_later(self) -> None:
        self._loop.call_at(self._taken_at_s + PACE_S, self._news.set)

    def expire(self) -> None:
        """Let nobody wait any longer; to be called in the loop."""
        self._is_expired = True
        self._news.set()

    async def take(self) -> list[tuple[int, Event]]:
        """All there is, waiting for at least one; none if the mailbox has expired."""
        taken: list[tuple[int, Event]] = []
        while not taken and not self._is_expired:
            await self._news.wait()
            self._news.clear()
            # From here on a post wakes again; what it brings may be taken now, and that wake-up then finds nothing.
            self._is_woken = False
            while self._events:
                taken.append(self._events.popleft())
        if any(isinstance(event, Token) for _, event in taken):
            self._taken_at_s = self._loop.time()
        return taken


class MailboxListener:
    """Listens for one answer; see `serving.service.Listener`."""

    def __init__(self, mailbox: Mailbox, index: int) -> None:
        self._mailbox = mailbox
        self._index = index

    def on_promise(self, promise: Promise, /) -> None:
        """Pass on the promise."""
        self._mailbox.post(self._index, promise)

    def on_token(self, token: int, level: str, /) -> None:
        """Pass on a token."""
        self._mailbox.post(self._index, Token(token, level, time.perf_counter()))

    def on_end(self, ending: Ending, /) -> None:
        """Pass on the ending."""
        self._mailbox.post(self._index, ending)

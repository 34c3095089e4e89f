"""Connections that are dropped when their client neither asks nor reads, which no ASGI application can do."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with an end to patience.

    Attributes:
        head_timeout_s: within which the head of a request must be complete, counted from its begin; of the first one,
            from the connection on.
        stall_timeout_s: within which a client must take what was sent, once buffers are full.
    """

    head_timeout_s = 30.0
    stall_timeout_s = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client is there, and is expected to ask."""
        super().connection_made(transport)
        self._head_timer = self._abort_in(self.head_timeout_s)

    def data_received(self, data: bytes) -> None:
        """A client asks, or goes on to."""
        super().data_received(data)
        is_within_head = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if not is_within_head:
            _stop(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self._abort_in(self.head_timeout_s)

    def pause_writing(self) -> None:
        """Buffers are full."""
        super().pause_writing()
        self._stall_timer = self._abort_in(self.stall_timeout_s)

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        _stop(self._stall_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        _stop(self._head_timer)
        _stop(self._stall_timer)
        super().connection_lost(exc)

    def _abort_in(self, seconds: float) -> asyncio.TimerHandle:
        # Closing in order would wait for the client to take what is left.
        return asyncio.get_running_loop().call_later(seconds, self.transport.abort)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def protocol_of(head_timeout_s: float, stall_timeout_s: float) -> type[PatientProtocol]:
    """The protocol with the patience of a server; uvicorn makes one for each connection, and takes a class."""
    limits = {"head_timeout_s": head_timeout_s, "stall_timeout_s": stall_timeout_s}
    return type("ServerProtocol", (PatientProtocol,), limits)

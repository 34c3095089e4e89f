"""Clients that go away, or do not read."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from blockexport.server.problems import body_of

_Result = TypeVar("_Result")
_CLIENT_GONE = 499
"""What nginx writes into its log for a client that went away; nobody reads it."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Do something for a client, as long as it is there.

    Raises:
        ClientDisconnect: it went away; the work was cancelled.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientDisconnect
        return worker.result()
    finally:
        await _stop(worker, watcher)


async def on_gone(_request: Request, _error: Exception) -> Response:
    """An answer to nobody."""
    return Response(status_code=_CLIENT_GONE)


class EventStream(Response):
    """Server-sent events.

    Args:
        events: JSON documents to send; an HTTPException among them is sent as the last one.
        headers: of the answer.
        on_close: called at the end, however it comes.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[Mapping[str, Any]],
        headers: Mapping[str, str],
        on_close: Callable[[], None],
    ) -> None:
        super().__init__(headers={**headers, "Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send all events, unless the client goes away."""
        writer = asyncio.create_task(self._write(send))
        watcher = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
        finally:
            await _stop(writer, watcher)
            self._on_close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await self._send(send, json.dumps(event, ensure_ascii=False))
        except HTTPException as error:
            await self._send(send, json.dumps(body_of(error)))
        await self._send(send, "[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, data: str) -> None:
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

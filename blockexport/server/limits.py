"""No request is larger than allowed, nor slower to arrive."""

import asyncio
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockexport.server.problems import problem


class BodyLimit:
    """Reads whole bodies, within limits, before anything looks at them."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is small and quick enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        refused: ASGIApp | None = None
        if headers.get("content-encoding", "identity") != "identity":
            refused = problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is compressed; send it as it is")
        elif not length.isdigit() or int(length) > self._max_bytes:
            refused = self._too_large(length)
        else:
            try:
                async with asyncio.timeout(self._timeout_s):
                    body = await self._read(receive)
            except TimeoutError:
                message = f"the body did not arrive within {self._timeout_s:g} s"
                refused = problem(HTTPStatus.REQUEST_TIMEOUT, message, {"Connection": "close"})
            else:
                if body is None:
                    refused = self._too_large("more")
        await (refused or _Replayed(self._app, body or b""))(scope, receive, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, None if it is too large."""
        pieces, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self._max_bytes:
                return None
            more = message.get("more_body", False)
        return b"".join(pieces)

    def _too_large(self, what: str) -> ASGIApp:
        message = f"the body has {what} bytes; at most {self._max_bytes} are taken"
        return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, {"Connection": "close"})


class _Replayed:
    """An application that is handed a body which was read before."""

    def __init__(self, app: ASGIApp, body: bytes) -> None:
        self._app = app
        self._body: bytes | None = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def replay() -> Message:
            body, self._body = self._body, None
            if body is None:
                return await receive()
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

"""Who may ask."""

import hmac
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from blockexport.server.problems import problem

PUBLIC_PATHS = frozenset({"/", "/health", "/v2/health/live", "/v2/health/ready"})
"""Open to everyone: whether the server is well, and the page, which holds no figures until it is given the token."""


class BearerAuth:
    """Asks for `Authorization: Bearer TOKEN`."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on who shows the token."""
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            given = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(given, self._expected):
                message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
                refused = problem(HTTPStatus.UNAUTHORIZED, message, {"WWW-Authenticate": "Bearer"})
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)

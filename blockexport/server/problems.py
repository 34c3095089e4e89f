"""Everything that goes wrong, in the shape in which OpenAI clients expect it, with a sentence."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from blockexport.errors import BlockExportError, ConfigError, RequestError, RoutingError, ServiceClosedError
from blockexport.serving.service import Ending

_log = logging.getLogger(__name__)
_KINDS = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.UNPROCESSABLE_ENTITY: "budget_infeasible",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
# The OpenAI clients repeat what failed with 5xx; a request that was late once would only be late again.
NO_RETRY = {"x-should-retry": "false"}


class Refused(HTTPException):
    """To be raised for a request that the service ended without an answer; `told` is what became of it."""

    def __init__(
        self, status: int, message: str, told: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.told = told


def problem_body(status: int, message: str, told: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The body of an answer that is none, with what became of the request where the service had it."""
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    kind = _KINDS.get(HTTPStatus(status), kind)
    error = {"message": " ".join(message.split()), "type": kind, "param": None, "code": status}
    return {"error": error if told is None else {**error, "blockexport": dict(told)}}


def body_of(error: HTTPException) -> dict[str, Any]:
    """The body of what was raised."""
    return problem_body(error.status_code, error.detail, error.told if isinstance(error, Refused) else None)


def problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer that is none."""
    return JSONResponse(problem_body(status, message), status, dict(headers or {}))


def bad_request(message: str) -> HTTPException:
    """To be raised for what a caller got wrong."""
    return HTTPException(HTTPStatus.BAD_REQUEST, message)


def refusal(ending: Ending, told: Mapping[str, Any]) -> Refused:
    """What a caller is told of a request that ended without an answer."""
    if ending.outcome == "shed" and ending.retry_after_ms is not None:
        seconds = max(1, -int(-ending.retry_after_ms // 1000))
        message = f"{ending.reason}; try again in {seconds} s"
        return Refused(HTTPStatus.TOO_MANY_REQUESTS, message, told, {"Retry-After": str(seconds)})
    if ending.outcome == "shed":
        message = f"the budget cannot be kept: {ending.reason}; allow more time or fewer tokens"
        return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, message, told)
    if ending.outcome == "late":
        return Refused(HTTPStatus.GATEWAY_TIMEOUT, f"the budget was missed: {ending.reason}", told, NO_RETRY)
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"the request {ending.outcome}: {ending.reason}", told)


def sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic found wrong, as one line."""
    return "; ".join(_clause(error) for error in errors[:3])


def _clause(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"] if part != "body")
    if error["type"] == "json_invalid":
        return f"the body is no JSON ({error.get('ctx', {}).get('error', 'it cannot be read')}, character {place})"
    if error["type"] == "extra_forbidden":
        return f"{place} is unknown here; leave it out"
    if error["type"] == "missing":
        return f"{place or 'the body'} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


async def on_http(_request: Request, error: Exception) -> JSONResponse:
    """What the framework or we refused."""
    assert isinstance(error, HTTPException)
    return JSONResponse(body_of(error), error.status_code, dict(error.headers or {}))


async def on_invalid(_request: Request, error: Exception) -> JSONResponse:
    """A body or a header that is not of the schema; pydantic's errors and FastAPI's both list what is wrong."""
    return problem(HTTPStatus.BAD_REQUEST, sentence(error.errors()))  # type: ignore[attr-defined]


async def on_error(_request: Request, error: Exception) -> JSONResponse:
    """An error of ours."""
    if isinstance(error, ServiceClosedError):
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": "1"})
    if isinstance(error, ConfigError | RequestError | RoutingError):
        return problem(HTTPStatus.BAD_REQUEST, str(error))
    assert isinstance(error, BlockExportError)
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), NO_RETRY)


async def on_defect(_request: Request, error: Exception) -> JSONResponse:
    """A defect; its inner words are for the log, not for a caller."""
    _log.error("a request failed", exc_info=error)
    message = f"unexpected {type(error).__name__}; see the log of the server and report it"
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, message, NO_RETRY)

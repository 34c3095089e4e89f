"""All endpoints of a server together."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

import blockexport
from blockexport.errors import BlockExportError
from blockexport.server.auth import BearerAuth
from blockexport.server.connection import on_gone
from blockexport.server.inference import Inference
from blockexport.server.limits import BodyLimit
from blockexport.server.metrics import CONTENT_TYPE, Metrics
from blockexport.server.model import ServedModel
from blockexport.server.openai.chat import Chat
from blockexport.server.openai.completions import Completions
from blockexport.server.openai.endpoint import Endpoint
from blockexport.server.openai.models import Models
from blockexport.server.page import Page
from blockexport.server.problems import on_defect, on_error, on_http, on_invalid
from blockexport.server.settings import ServerSettings
from blockexport.server.watch import Watch
from blockexport.serving.service import GenerationService

Route = tuple[str, str, Callable[..., Any]]

_HANDLERS = {
    ClientDisconnect: on_gone,
    HTTPException: on_http,
    RequestValidationError: on_invalid,
    ValidationError: on_invalid,
    BlockExportError: on_error,
    Exception: on_defect,
}


def build_app(model: ServedModel, service: GenerationService | None, settings: ServerSettings) -> Any:
    """The ASGI application.

    Args:
        model: what is served.
        service: what continues texts, closed when the application ends; None for a model that continues none.
        settings: whom to answer, and limits.
    """
    # Without a service nothing else uses the engine, and one thread of its own is enough.
    spare = ThreadPoolExecutor(1, "engine") if service is None else None
    run: Callable[..., Any] = spare.submit if service is None else service.run  # type: ignore[union-attr]

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        yield
        if service is not None:
            await anyio.to_thread.run_sync(service.drain, settings.drain_timeout_s)
            await anyio.to_thread.run_sync(service.close)
        if spare is not None:
            spare.shutdown()

    app = FastAPI(
        title="blockexport",
        version=blockexport.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=_HANDLERS,
    )
    watch = Watch({level["name"]: level["depth"] for level in model.levels})
    metrics = Metrics(model, service, watch)
    routes = [
        *_openai_routes(Endpoint(service, model, settings, metrics), model, settings),
        *_tensor_routes(Inference(model, run, settings.max_output_values)),
        *_watching_routes(Page(service, model, watch), metrics),
    ]
    for method, path, call in routes:
        app.add_api_route(path, call, methods=[method], response_model=None)
    # The one added last is asked first.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    if settings.api_key is not None:
        app.add_middleware(BearerAuth, api_key=settings.api_key)
    return app


def _openai_routes(endpoint: Endpoint, model: ServedModel, settings: ServerSettings) -> Sequence[Route]:
    models = Models(model)
    return (
        ("POST", "/v1/completions", Completions(endpoint, settings.max_prompts).__call__),
        ("POST", "/v1/chat/completions", Chat(endpoint, model, settings.max_pictures).__call__),
        ("GET", "/v1/models", models.index),
        ("GET", "/v1/models/{name:path}", models.card),
    )


def _tensor_routes(inference: Inference) -> Sequence[Route]:
    return (
        ("GET", "/v2", inference.server),
        ("GET", "/v2/health/live", inference.live),
        ("GET", "/v2/health/ready", inference.ready),
        ("GET", "/v2/models/{name}", inference.metadata),
        ("GET", "/v2/models/{name}/ready", inference.model_ready),
        ("POST", "/v2/models/{name}/infer", inference.infer),
    )


def _watching_routes(page: Page, metrics: Metrics) -> Sequence[Route]:
    async def health() -> Mapping[str, str]:
        """Whether the server is well."""
        return {"status": "ok"}

    async def exposed() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.exposed(), media_type=CONTENT_TYPE)

    async def status() -> JSONResponse:
        """What the page shows."""
        return JSONResponse(await page.status())

    return (
        ("GET", "/", page.show),
        ("GET", "/status", status),
        ("GET", "/health", health),
        ("GET", "/metrics", exposed),
    )

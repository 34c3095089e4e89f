"""The Open Inference Protocol, version 2, for tensors."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

import blockexport
from blockexport.errors import RequestError
from blockexport.server.model import ServedModel
from blockexport.server.tensors import Tensor, input_names, output_shape, with_output

Run = Callable[[Callable[[], NDArray[np.float32]]], "Future[NDArray[np.float32]]"]
"""Calls something in the engine's thread."""


class InferParameters(BaseModel):
    """How to run: at which level; the deepest if nothing is said."""

    model_config = ConfigDict(extra="forbid", strict=True)

    level: str | None = None


class RequestedOutput(BaseModel):
    """An output that is wanted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    parameters: dict[str, Any] = {}


class InferFields(BaseModel):
    """Tensors to run the model on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(max_length=200)] | None = None
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=4)]
    outputs: list[RequestedOutput] = []
    parameters: InferParameters = InferParameters()


class Inference:
    """Runs a level on tensors.

    Args:
        model: what is served.
        run: calls the engine in its own thread.
        max_output_values: most numbers of an answer.
    """

    def __init__(self, model: ServedModel, run: Run, max_output_values: int) -> None:
        self._model = model
        self._run = run
        self._max_values = max_output_values

    async def server(self) -> dict[str, Any]:
        """What the server is."""
        return {"name": "blockexport", "version": blockexport.__version__, "extensions": []}

    async def live(self) -> Response:
        """It answers, so it lives."""
        return JSONResponse({"live": True})

    async def ready(self) -> Response:
        """Levels are opened before the first connection is taken."""
        return JSONResponse({"ready": True})

    async def model_ready(self, name: str) -> Response:
        """The same of the one model."""
        self._check(name)
        return JSONResponse({"name": name, "ready": True})

    async def metadata(self, name: str) -> dict[str, Any]:
        """What the model takes and gives."""
        self._check(name)
        spec = self._model.spec
        inputs = input_names(spec).items()
        return {
            "name": name,
            "versions": [spec.digest],
            "platform": "blockexport",
            "inputs": [{"name": key, "datatype": kind, "shape": shape} for key, (kind, shape) in inputs],
            "outputs": [{"name": spec.output, "datatype": "FP32", "shape": output_shape(spec)}],
            "parameters": {"levels": [dict(level) for level in self._model.levels]},
        }

    async def infer(self, name: str, body: InferFields) -> Response:
        """Run the model once on whole inputs."""
        self._check(name)
        level = self._level(body.parameters.level)
        inputs = {tensor.name: tensor.array() for tensor in body.inputs}
        self._check_names(inputs, body)
        forward = self._model.forward
        output = await asyncio.wrap_future(self._run(lambda: forward(inputs, level)))
        if output.size > self._max_values:
            raise RequestError(self._too_many(output.size))
        answer = {"model_name": name, "id": body.id or "", "parameters": {"level": level}}
        written = await asyncio.to_thread(with_output, answer, self._model.spec.output, output)
        return Response(written, media_type="application/json")

    def _check(self, name: str) -> None:
        if name != self._model.name:
            message = f"model {name[:100]!r} is not served here; ask for {self._model.name!r}"
            raise HTTPException(HTTPStatus.NOT_FOUND, message)

    def _level(self, name: str | None) -> str:
        names = [level["name"] for level in self._model.levels]
        if name is not None and name not in names:
            msg = f"no level {name[:100]!r}; choose from {', '.join(names)}"
            raise RequestError(msg)
        return name or names[0]

    def _check_names(self, inputs: dict[str, NDArray[Any]], body: InferFields) -> None:
        known, spec = input_names(self._model.spec), self._model.spec
        if len(inputs) < len(body.inputs) or not inputs.keys() <= known.keys() or next(iter(known)) not in inputs:
            msg = f"inputs are {', '.join(tensor.name for tensor in body.inputs)}; send {', '.join(known)}, each once"
            raise RequestError(msg)
        if any(output.name != spec.output for output in body.outputs):
            msg = f"outputs are {', '.join(output.name for output in body.outputs)}; there is {spec.output} only"
            raise RequestError(msg)
        # Logits of long prompts are gigabytes: refused before they are made.
        values = inputs["input_ids"].size * spec.vocab_size if spec.kind == "decoder" else 0
        if values > self._max_values:
            raise RequestError(self._too_many(values))

    def _too_many(self, values: int) -> str:
        return f"the answer would hold {values} values; at most {self._max_values} are sent, ask for fewer tokens"

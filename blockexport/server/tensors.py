"""Tensors as the Open Inference Protocol writes them."""

import json
import math
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from blockexport.core.model import ModelSpec
from blockexport.errors import RequestError

_TYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}
_PIECE_VALUES = 4096


class Tensor(BaseModel):
    """One tensor of a request, its numbers in rows or in one list."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=8)]
    datatype: Literal["BOOL", "INT32", "INT64", "FP32", "FP64"]
    data: list[Any]
    parameters: dict[str, Any] = {}

    def array(self) -> NDArray[Any]:
        """The numbers, in their shape.

        Raises:
            RequestError: numbers of another kind, or more or fewer than the shape has.
        """
        try:
            given = np.asarray(self.data)
        except ValueError as error:
            msg = f"input {self.name!r} has rows of different lengths; send one list, or rows of one length"
            raise RequestError(msg) from error
        wanted = np.dtype(_TYPES[self.datatype])
        if given.dtype.kind not in "biuf" or (wanted.kind in "bi" and given.dtype.kind == "f"):
            msg = f"input {self.name!r} holds what is no {self.datatype}; send numbers of that kind"
            raise RequestError(msg)
        if given.size != math.prod(self.shape):
            msg = f"input {self.name!r} has {given.size} values; its shape {self.shape} has {math.prod(self.shape)}"
            raise RequestError(msg)
        if given.dtype.kind == "f" and not np.isfinite(given).all():
            msg = f"input {self.name!r} holds what is not finite; send finite numbers"
            raise RequestError(msg)
        return given.astype(wanted).reshape(self.shape)


def with_output(answer: dict[str, Any], name: str, array: NDArray[np.float32]) -> str:
    """An answer and its one tensor, as JSON.

    Written in pieces: a large one at once would keep every other thread of the process waiting, the engine's too.
    """
    flat = array.ravel()
    pieces = (json.dumps(flat[i : i + _PIECE_VALUES].tolist())[1:-1] for i in range(0, flat.size, _PIECE_VALUES))
    head = json.dumps({"name": name, "datatype": "FP32", "shape": list(array.shape)})
    return f'{json.dumps(answer)[:-1]}, "outputs": [{head[:-1]}, "data": [{", ".join(pieces)}]}}]}}'


def input_names(spec: ModelSpec) -> dict[str, tuple[str, list[int]]]:
    """Datatype and shape of what a model takes, -1 for a free axis; the last one of text may be left out."""
    if spec.kind == "vision":
        return {"pixel_values": ("FP32", [-1, *spec.image_shape])}
    return {"input_ids": ("INT64", [-1, -1]), "attention_mask": ("INT64", [-1, -1])}


def output_shape(spec: ModelSpec) -> list[int]:
    """Shape of what a model gives, -1 for a free axis or one that its engines alone know."""
    if spec.kind == "decoder":
        return [-1, -1, spec.vocab_size]
    return [-1, -1, -1] if spec.output == "last_hidden_state" else [-1, -1]

"""A decoder level in ONNX Runtime, its cache rows updated in place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.session import open_session
from blockexport.core.engine import KvRow, StepInputs
from blockexport.core.signature import CACHE_PARTS, past_name, present_name
from blockexport.errors import RequestError


class OrtDecoder:
    """One opened decoder level."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        self._session = open_session(path, threads=threads)
        names = [value.name for value in self._session.get_inputs()]
        self.blocks = tuple(sorted({int(name.split(".")[1]) for name in names if name.startswith("past_key_values.")}))

    def bind(self, rows: Mapping[int, KvRow]) -> "OrtBoundDecoder":
        """Tie the level to cache rows; the rows must stay alive and in place as long as the result is used."""
        return OrtBoundDecoder(self._session, {block: rows[block] for block in self.blocks})


class OrtBoundDecoder:
    """A decoder level tied to cache rows: input and output of a row are the same memory."""

    def __init__(self, session: Any, rows: Mapping[int, KvRow]) -> None:
        self._session = session
        self._rows = rows
        self._vocab_size = int(session.get_outputs()[0].shape[-1])
        self._binding = session.io_binding()
        for block, row in rows.items():
            for part, array in zip(CACHE_PARTS, row, strict=True):
                self._bind_input(past_name(block, part), array)
                self._bind_output(present_name(block, part), array)
        self._capacity = next(iter(rows.values()))[0].shape[2] if rows else 0

    def step(self, inputs: StepInputs) -> NDArray[np.float32]:
        """Run once; logits (batch, kept_positions, vocab).

        Raises:
            RequestError: the rows cannot hold the new tokens.
        """
        total = inputs.total_tokens
        if self._rows and max(total, inputs.input_ids.shape[1]) > self._capacity:
            msg = f"{total} tokens do not fit a cache of {self._capacity}; allocate more or ask for fewer tokens"
            raise RequestError(msg)
        # The arrays live until the call returns, which is as long as the binding points at them.
        held: dict[str, NDArray[Any]] = {
            "input_ids": inputs.input_ids,
            "position_ids": inputs.position_ids,
            "last_position": inputs.last_position,
            "total_tokens": np.array(total, np.int32),
            "logits_index": inputs.logits_index,
        }
        for name, array in held.items():
            self._bind_input(name, array)
        logits = np.empty((*inputs.logits_index.shape, self._vocab_size), np.float32)
        self._bind_output("logits", logits)
        self._session.run_with_iobinding(self._binding)
        return logits

    def _bind_input(self, name: str, array: NDArray[np.generic]) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)

    def _bind_output(self, name: str, array: NDArray[np.generic]) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)

"""A decoder level in ONNX Runtime, its cache rows updated in place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.session import import_onnxruntime, open_session
from blockexport.core.engine import KvRow, StepInputs
from blockexport.core.pictures import ImageTokens
from blockexport.core.positions import NUM_AXES
from blockexport.core.signature import (
    CACHE_PARTS,
    IMAGE_FEATURES,
    IMAGE_POSITIONS,
    POSITION_SHIFTS,
    past_name,
    present_name,
)
from blockexport.errors import RequestError


class OrtDecoder:
    """One opened decoder level.

    Args:
        path: the graph.
        threads: threads within an operator; 0 lets the runtime choose.
        library: operators beyond the runtime's own.
        session: the same graph, opened already.
    """

    def __init__(self, path: Path, *, threads: int = 0, library: Path | None = None, session: Any = None) -> None:
        self._session = session or open_session(path, threads=threads, library=library)
        names = [value.name for value in self._session.get_inputs()]
        # One for all calls: setting its flag ends whichever is in progress, between two of its operators.
        self._run_options = import_onnxruntime().RunOptions()
        # Its default. Left unset, each call looks for it, and meets an exception that costs as much as a small block.
        self._run_options.add_run_config_entry("gpu_graph_id", "0")
        self.blocks = tuple(sorted({int(name.split(".")[1]) for name in names if name.startswith("past_key_values.")}))

    def bind(self, rows: Mapping[int, KvRow]) -> "OrtBoundDecoder":
        """Tie the level to cache rows; the rows must stay alive and in place as long as the result is used."""
        return OrtBoundDecoder(self._session, self._run_options, {block: rows[block] for block in self.blocks})

    def interrupt(self) -> None:
        """End the call in progress, from another thread; it raises RequestError."""
        self._run_options.terminate = True

    def rearm(self) -> None:
        """Let calls run again."""
        self._run_options.terminate = False


class OrtBoundDecoder:
    """A decoder level tied to cache rows: input and output of a row are the same memory."""

    def __init__(self, session: Any, run_options: Any, rows: Mapping[int, KvRow]) -> None:
        self._session = session
        self._run_options = run_options
        self._rows = rows
        self._vocab_size = int(session.get_outputs()[0].shape[-1])
        taken = {value.name: value for value in session.get_inputs()}
        features = taken.get(IMAGE_FEATURES)
        self._no_image_tokens = None if features is None else ImageTokens.none(int(features.shape[-1]))
        self._has_axes = POSITION_SHIFTS in taken
        self._binding = session.io_binding()
        for block, row in rows.items():
            for part, array in zip(CACHE_PARTS, row, strict=True):
                self._bind_input(past_name(block, part), array)
                self._bind_output(present_name(block, part), array)
        self._capacity = min(keys.shape[2] for keys, _ in rows.values())
        # Kept alive here as long as the binding points at it.
        self._inputs: StepInputs | None = None
        self._logits = np.empty(0, np.float32)
        self._no_shifts = np.zeros((NUM_AXES, 0, 0), np.int64)

    def prepare(self, inputs: StepInputs) -> None:
        """Tie the level to arrays, if it is not yet; they are read at every step, whatever they hold by then.

        Raises:
            RequestError: pictures were given to a level that reads text only.
        """
        if inputs is self._inputs:
            return
        for name, array in inputs.by_name(self._rows).items():
            self._bind_input(name, array)
        self._bind_image_tokens(inputs.image_tokens)
        if self._has_axes:
            self._bind_shifts(inputs)
        self._logits = np.empty((*inputs.logits_index.shape, self._vocab_size), np.float32)
        self._bind_output("logits", self._logits)
        self._inputs = inputs

    def step(self, inputs: StepInputs) -> NDArray[np.float32]:
        """Run once; logits (batch, kept_positions, vocab), overwritten when the same object is given again.

        Raises:
            RequestError: the rows cannot hold the new tokens, or the engine fails on them.
        """
        inputs.require_room(self._capacity)
        self.prepare(inputs)
        try:
            self._session.run_with_iobinding(self._binding, self._run_options)
        except Exception as error:
            # The runtime raises a private class of its own for each kind of failure; what it meets here is memory.
            reason = " ".join(str(error).split())
            shape = "x".join(map(str, inputs.input_ids.shape))
            msg = f"ONNX Runtime failed on {shape} tokens: {reason}; ask for fewer, or run `blockexport verify`"
            raise RequestError(msg) from error
        return self._logits

    def _bind_image_tokens(self, given: ImageTokens | None) -> None:
        if self._no_image_tokens is None:
            if given is not None:
                msg = "pictures were given to a level that reads text only; leave them out"
                raise RequestError(msg)
            return
        image_tokens = given or self._no_image_tokens
        self._bind_input(IMAGE_FEATURES, image_tokens.features)
        self._bind_input(IMAGE_POSITIONS, image_tokens.positions)

    def _bind_shifts(self, inputs: StepInputs) -> None:
        shifts = inputs.position_shifts
        if shifts is None:
            shifts = self._no_shifts = np.zeros((NUM_AXES, *inputs.input_ids.shape), np.int64)
        self._bind_input(POSITION_SHIFTS, shifts)

    def _bind_input(self, name: str, array: NDArray[np.generic]) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)

    def _bind_output(self, name: str, array: NDArray[np.generic]) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)

"""Levels on a GPU through ONNX Runtime: one copy of the weights there for all of them.

A level that is bound to arrays of the host has its cache copied there and back in each call. Bound to rows that lie on
the device, which several levels may share as they share arrays, nothing but tokens and logits crosses over.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.decoder import OrtDecoder
from blockexport.backends.onnxruntime.external_data import ExternalTensor, read_external
from blockexport.backends.onnxruntime.providers import Providers, cuda, require_provider
from blockexport.backends.onnxruntime.session import import_onnxruntime, open_session
from blockexport.backends.onnxruntime.single_pass import OrtSinglePass
from blockexport.core.engine import StepInputs, empty_rows
from blockexport.core.signature import CACHE_PARTS, past_name, present_name
from blockexport.errors import BundleError, RequestError

DeviceRow = tuple[Any, Any]
"""Keys and values of one block as `OrtValue`, (batch, kv_heads, capacity, head_dim) each."""

# By ONNX's number of a type. bfloat16 has no NumPy type; such weights are left to the runtime.
_TYPES: dict[int, type[np.generic]] = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 10: np.float16}
# What the attention kernel reads on the host.
_ON_HOST = ("total_tokens",)


class DeviceLevels:
    """Opens levels on one device over one copy of their weights.

    Args:
        device: where, as ONNX Runtime calls it.
        providers: who computes there.

    Attributes:
        kind: what runs the levels, for reports.
    """

    kind = "cuda"

    def __init__(self, device: str = "cuda", providers: Providers | None = None) -> None:
        self.device = device
        self._providers = cuda() if providers is None else providers
        self._weights: dict[tuple[str, int, int, tuple[int, ...]], Any] = {}

    def decoder(self, path: Path) -> OrtDecoder:
        """Open a decoder level, whose cache rows are arrays of the host.

        Raises:
            BackendUnavailableError: this host has no such device or provider.
            BundleError: the level cannot be opened, or the device has no room for it.
        """
        return OrtDecoder(path, session=self.session(path))

    def single_pass(self, path: Path) -> OrtSinglePass:
        """Open an encoder or vision level; errors as for a decoder."""
        return OrtSinglePass(path, session=self.session(path))

    def session(self, path: Path) -> Any:
        """Open a graph whose weights are those that other levels read too; errors as for a decoder."""
        require_provider(import_onnxruntime(), self._providers)
        try:
            shared = {name: self._put(path.parent, tensor) for name, tensor in read_external(path).items()}
        except Exception as error:
            # The runtime raises a private class of its own for each kind of failure; what it meets here is memory.
            msg = f"the weights of {path.name} do not fit {self.device}: {error}; unload a level, or use device 'cpu'"
            raise BundleError(msg) from error
        known = {name: value for name, value in shared.items() if value is not None}
        return open_session(path, providers=self._providers, initializers=known)

    def _put(self, folder: Path, tensor: ExternalTensor) -> Any:
        """A weight on the device, put there when the first level asks for it."""
        if tensor.dtype not in _TYPES:
            return None
        location, offset, length = (tensor.entries[name] for name in ("location", "offset", "length"))
        key = (location, int(offset), tensor.dtype, tensor.shape)
        if key not in self._weights:
            mapped = np.memmap(folder / location, np.uint8, "r", int(offset), (int(length),))
            array = mapped.view(_TYPES[tensor.dtype]).reshape(tensor.shape)
            self._weights[key] = _value(array, self.device)
        return self._weights[key]


def device_rows(
    layout: Mapping[int, tuple[int, int]], batch: int, capacity: int, device: str = "cuda"
) -> dict[int, DeviceRow]:
    """Fresh cache rows on a device, for all levels; arguments as of `core.engine.empty_rows`."""
    rows = empty_rows(layout, batch, capacity, np.dtype(np.float32))
    return {block: (_value(keys, device), _value(values, device)) for block, (keys, values) in rows.items()}


class DeviceDecoder:
    """A decoder level tied to cache rows that lie on its device; a `BoundDecoder`.

    Args:
        session: the level, opened by `DeviceLevels.session`.
        rows: by original block; those of skipped blocks are not touched.
        device: where they lie.
    """

    def __init__(self, session: Any, rows: Mapping[int, DeviceRow], device: str = "cuda") -> None:
        self._session = session
        self._device = device
        self._binding = session.io_binding()
        names = {value.name for value in session.get_inputs()}
        self._blocks = tuple(block for block in rows if past_name(block, "key") in names)
        for block in self._blocks:
            for part, value in zip(CACHE_PARTS, rows[block], strict=True):
                self._binding.bind_ortvalue_input(past_name(block, part), value)
                self._binding.bind_ortvalue_output(present_name(block, part), value)
        self._vocab_size = int(session.get_outputs()[0].shape[-1])
        self._inputs: StepInputs | None = None
        self._given: dict[str, NDArray[Any]] = {}
        self._values: dict[str, Any] = {}

    def prepare(self, inputs: StepInputs) -> None:
        """Tie the level to arrays before their first step."""
        if inputs is self._inputs:
            return
        self._given = inputs.by_name(self._blocks)
        for name, array in self._given.items():
            self._values[name] = _value(array, "cpu" if name in _ON_HOST else self._device)
            self._binding.bind_ortvalue_input(name, self._values[name])
        shape = [*inputs.logits_index.shape, self._vocab_size]
        runtime = import_onnxruntime()
        self._values["logits"] = runtime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0)
        self._binding.bind_ortvalue_output("logits", self._values["logits"])
        self._inputs = inputs

    def step(self, inputs: StepInputs) -> NDArray[np.float32]:
        """Run once, writing new keys and values into the rows; logits (batch, kept_positions, vocab).

        Raises:
            RequestError: the engine fails.
        """
        self.prepare(inputs)
        try:
            for name, array in self._given.items():
                self._values[name].update_inplace(array)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            # The runtime raises a private class of its own for each kind of failure; what it meets here is memory.
            msg = f"ONNX Runtime failed on {self._device}: {' '.join(str(error).split())}; ask for fewer tokens"
            raise RequestError(msg) from error
        logits: NDArray[np.float32] = self._values["logits"].numpy()
        return logits


def _value(array: NDArray[Any], device: str) -> Any:
    return import_onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)

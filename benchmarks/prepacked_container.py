"""Sessions that share packed weights through ONNX Runtime's container, which only its C interface offers.

The library's table of functions is called through ctypes, by position: the table only ever grows at its end. This
exists to measure the container; nothing of the package uses it.
"""

import ctypes
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POINTER = ctypes.c_void_p
_TEXT = ctypes.c_char_p
_SIZE = ctypes.c_size_t
_VERSION = 20
# Positions in `OrtApi` of onnxruntime_c_api.h.
_GET_ERROR_MESSAGE = 2
_CREATE_ENV = 3
_RUN = 9
_CREATE_SESSION_OPTIONS = 10
_CREATE_TENSOR_WITH_DATA = 49
_GET_DATA = 51
_CREATE_CPU_MEMORY_INFO = 69
_ADD_INITIALIZER = 150
_CREATE_CONTAINER = 166
_CREATE_SESSION_WITH_CONTAINER = 168
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}


class _Base(ctypes.Structure):
    _fields_ = (("get_api", ctypes.CFUNCTYPE(_POINTER, ctypes.c_uint32)), ("get_version", _POINTER))


class Container:
    """One container and the sessions that share it, over weights that the caller keeps alive."""

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        self._api = _load()
        self._env = self._new(_CREATE_ENV, ctypes.c_int(3), _TEXT(b"bench"))
        self._memory = self._new(_CREATE_CPU_MEMORY_INFO, ctypes.c_int(1), ctypes.c_int(0))
        self._container = self._new(_CREATE_CONTAINER)
        self._weights = {name: self._tensor(array) for name, array in weights.items()}

    def open(self, path: Path) -> Any:
        """A session on a graph; only weights that the caller hands over are shared."""
        options = self._new(_CREATE_SESSION_OPTIONS)
        for name, value in self._weights.items():
            self._call(_ADD_INITIALIZER, options, _TEXT(name.encode()), value)
        return self._new(_CREATE_SESSION_WITH_CONTAINER, self._env, _TEXT(str(path).encode()), options, self._container)

    def run(
        self, session: Any, inputs: Mapping[str, NDArray[Any]], output: str, num_values: int
    ) -> NDArray[np.float32]:
        """Run once; the values of one output."""
        values = [self._tensor(array) for array in inputs.values()]
        results = (_POINTER * 1)()
        self._call(
            _RUN,
            session,
            None,
            (_TEXT * len(values))(*(name.encode() for name in inputs)),
            (_POINTER * len(values))(*(value.value for value in values)),
            _SIZE(len(values)),
            (_TEXT * 1)(output.encode()),
            _SIZE(1),
            results,
        )
        data = self._new(_GET_DATA, _POINTER(results[0]))
        return np.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(ctypes.c_float)), (num_values,)).copy()

    def _tensor(self, array: NDArray[Any]) -> Any:
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        data, code = _POINTER(array.ctypes.data), ctypes.c_int(_TYPES[array.dtype.name])
        return self._new(
            _CREATE_TENSOR_WITH_DATA, self._memory, data, _SIZE(array.nbytes), shape, _SIZE(array.ndim), code
        )

    def _new(self, position: int, *arguments: Any) -> Any:
        made = _POINTER()
        self._call(position, *arguments, ctypes.byref(made))
        return made

    def _call(self, position: int, *arguments: Any) -> None:
        status = ctypes.CFUNCTYPE(_POINTER)(self._api[position])(*arguments)
        if status:
            message = ctypes.CFUNCTYPE(_TEXT, _POINTER)(self._api[_GET_ERROR_MESSAGE])(status)
            raise RuntimeError(message.decode())


def _load() -> Any:
    from onnxruntime import capi

    library = ctypes.CDLL(str(next(Path(capi.__file__).parent.glob("libonnxruntime.so.*"))))
    library.OrtGetApiBase.restype = ctypes.POINTER(_Base)
    table = library.OrtGetApiBase().contents.get_api(_VERSION)
    return ctypes.cast(table, ctypes.POINTER(_POINTER))


class Mapped:
    """The bundle's weights as arrays over the mapped file; `tensors` as `read_external` gives them."""

    def __init__(self, path: Path, tensors: Mapping[str, Any]) -> None:
        types = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64}
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = np.frombuffer(self._map, np.uint8)
        self.arrays = {}
        for name, tensor in tensors.items():
            offset, length = int(tensor.entries["offset"]), int(tensor.entries["length"])
            self.arrays[name] = content[offset : offset + length].view(types[tensor.dtype]).reshape(tensor.shape)

    def let_go(self) -> None:
        """Give pages back that were read; what is read again comes from the file."""
        self._map.madvise(mmap.MADV_DONTNEED)

"""The GPU as its driver sees it, asked without torch: a host may have the one and not the other."""

import ctypes
from dataclasses import dataclass
from typing import Any

from blockexport.errors import BackendUnavailableError

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first device.

    Attributes:
        name: as it calls itself.
        compute_capability: such as `9.0`.
        driver: the newest CUDA that the driver supports, such as `13.0`.
        memory_bytes: all of it.
    """

    name: str
    compute_capability: str
    driver: str
    memory_bytes: int


def find_gpu() -> Gpu:
    """Ask the driver.

    Raises:
        BackendUnavailableError: there is no driver, in the loader's own words, or no device.
    """
    cuda = _open()
    version, device, number = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
    _call(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    name, memory = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
    _call(cuda, "cuDeviceGetName", name, _NAME_BYTES, device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    parts = []
    for attribute in (_MAJOR, _MINOR):
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
        parts.append(str(number.value))
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(), ".".join(parts), driver, memory.value)


def free_bytes() -> int:
    """Memory of the first device that nobody uses; what this process allocated since is what became less.

    Raises:
        BackendUnavailableError: see `find_gpu`.
    """
    cuda = _open()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    # The context that runtimes use too; it stays, since they do.
    _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _call(cuda, "cuCtxSetCurrent", context)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call(cuda, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value


def _open() -> Any:
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        msg = f"gpu: {error}"
        raise BackendUnavailableError(msg) from error
    _call(cuda, "cuInit", 0)
    return cuda


def _call(cuda: Any, function: str, *arguments: Any) -> None:
    code = getattr(cuda, function)(*arguments)
    if code:
        msg = f"gpu: {function} of {_LIBRARY} gives error {code}"
        raise BackendUnavailableError(msg)

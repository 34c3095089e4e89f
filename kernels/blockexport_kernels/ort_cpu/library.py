"""The compiled operators, and what they will run on this processor."""

import ctypes
from pathlib import Path

from blockexport_kernels.ort_cpu.build import NativeBuildError, build

__all__ = ["DOMAIN", "PATH_VARIABLE", "NativeBuildError", "find_or_build", "path_of"]

DOMAIN = "blockexport.cpu"
# Names the path that a process is to take, scalar, avx2 or avx512; read when it loads the library. For tests.
PATH_VARIABLE = "BLOCKEXPORT_CPU_PATH"


def find_or_build(cache_folder: Path) -> Path:
    """Library for `SessionOptions.register_custom_ops_library`; seconds the first time, then at once.

    Raises:
        NativeBuildError: There is no compiler, or it fails.
    """
    return build(cache_folder)


def path_of(library: Path) -> str:
    """Which path the library takes on this processor: `avx512`, `avx2` or `scalar`."""
    name = ctypes.CDLL(str(library)).blockexport_cpu_path
    name.restype = ctypes.c_char_p
    value: bytes = name()
    return value.decode()

"""Whose operators run a level: ONNX Runtime's own, or ours, compiled once a host."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blockexport.core.host_cache import open_cache
from blockexport.errors import BackendUnavailableError, ConfigError
from blockexport_kernels.ort_cpu.library import NativeBuildError, find_or_build, path_of

OperatorChoice = Literal["auto", "native", "stock"]
OPERATOR_CHOICES: tuple[OperatorChoice, ...] = ("auto", "native", "stock")

# On processors that have no better, the stock operators are faster than ours.
_FAST_PATHS = ("avx512",)


@dataclass(frozen=True, slots=True)
class Operators:
    """One choice.

    Attributes:
        target: which graph of a level they run.
        library: where they are; None for those of ONNX Runtime.
    """

    target: str
    library: Path | None = None


STOCK = Operators("ort")


def choose_operators(wanted: OperatorChoice) -> Operators:
    """Find, and if need be compile, what is asked for; compiling takes seconds and happens once a host.

    Args:
        wanted: `native`, `stock`, or `auto` for ours where they can be had and are faster.

    Raises:
        BackendUnavailableError: `native` is asked for and cannot be had.
        ConfigError: there is no such choice.
    """
    if wanted not in OPERATOR_CHOICES:
        msg = f"operators {wanted!r} are unknown; choose from {', '.join(OPERATOR_CHOICES)}"
        raise ConfigError(msg)
    if wanted == "stock":
        return STOCK
    try:
        library = native_library()
    except BackendUnavailableError:
        if wanted == "native":
            raise
        return STOCK
    return Operators("native", library) if wanted == "native" or path_of(library) in _FAST_PATHS else STOCK


def native_library() -> Path:
    """Our operators, compiled for this host.

    Raises:
        BackendUnavailableError: they cannot be compiled, or not be kept.
    """
    folder = open_cache(None)
    if folder is None:
        msg = (
            "native operators need a cache folder to be compiled into; set BLOCKEXPORT_CACHE to one that can be written"
        )
        raise BackendUnavailableError(msg)
    try:
        return find_or_build(folder / "operators")
    except NativeBuildError as error:
        raise BackendUnavailableError(str(error)) from error
    except OSError as error:
        msg = f"native operators cannot be compiled into {folder}: {error.strerror or error}; make room or set $CXX"
        raise BackendUnavailableError(msg) from error

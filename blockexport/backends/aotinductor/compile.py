"""Compiling a level. What comes out is machine code without weights."""

from pathlib import Path
from typing import Any

import torch
from torch._inductor import package as _package
from torch.export import ExportedProgram

from blockexport.backends.aotinductor.host import find_compiler, host_demands, machine_demands
from blockexport.errors import BackendUnavailableError, ConfigError

DEVICES = ("cpu", "cuda")

# A package of torch's must have this ending.
SUFFIX = ".pt2"
_OPTIONS = {
    "aot_inductor.package": True,
    # All levels read one set of weights, which is handed to them when they are opened.
    "aot_inductor.package_constants_in_so": False,
}
_MAX_REASON = 300
_PACKAGES: Any = _package
_INDUCTOR: Any = torch._inductor  # noqa: SLF001  (torch's name for what its documentation tells to call)


def demands(device: str) -> dict[str, str]:
    """What packages that are compiled here for a device will demand of a host.

    Raises:
        BackendUnavailableError: there is no such device here.
        ConfigError: packages cannot be compiled for such a device.
    """
    if device not in DEVICES:
        msg = f"device {device!r} is unknown to backend 'aotinductor'; choose from {', '.join(DEVICES)}"
        raise ConfigError(msg)
    if device == "cpu":
        return host_demands()
    if not torch.cuda.is_available():
        msg = f"torch {torch.__version__} sees no CUDA device; build for device cpu, or on a host with a GPU"
        raise BackendUnavailableError(msg)
    major, minor = torch.cuda.get_device_capability()
    return machine_demands() | {"gpu": f"sm{major}{minor}"}


def compile_program(program: ExportedProgram, path: Path) -> None:
    """Compile an exported program for the device that it was exported on.

    Args:
        program: it may write into its inputs.
        path: where the package goes; ends in `.pt2`.

    Raises:
        BackendUnavailableError: there is no compiler, or it fails.
    """
    find_compiler()
    arguments, _ = program.example_inputs
    try:
        files = _INDUCTOR.aot_compile(program.module(check_guards=False), arguments, options=dict(_OPTIONS))
        # The sources are of no use to whoever opens the package.
        binaries = [file for file in files if not str(file).endswith(".cpp")]
        _PACKAGES.package_aoti(str(path), binaries)
    except Exception as error:
        # Compilers of several packages run here, each with errors of its own.
        reason = " ".join(str(error).split())[:_MAX_REASON]
        kind = type(error).__name__
        msg = f"torch {torch.__version__} cannot compile {path.name}: {kind}: {reason}; check the compiler"
        raise BackendUnavailableError(msg) from error

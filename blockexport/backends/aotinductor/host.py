"""What a compiled package demands of a host. Nothing here imports torch."""

import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata

from blockexport.core.hardware import HostFingerprint
from blockexport.errors import BackendUnavailableError

_ADVICE = "rebuild the bundle on this host, or use backend 'onnxruntime'"


def torch_version() -> str:
    """The version of torch that is installed.

    Raises:
        BackendUnavailableError: none is.
    """
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError as error:
        msg = "backend 'aotinductor' needs torch, also to serve; install it with blockexport[build]"
        raise BackendUnavailableError(msg) from error


def find_compiler() -> str:
    """The C++ compiler that torch will call.

    Raises:
        BackendUnavailableError: there is none.
    """
    name = os.environ.get("CXX", "g++")
    found = shutil.which(name)
    if found is None:
        msg = f"backend 'aotinductor' compiles with {name!r}, which is not there; install g++ or set $CXX"
        raise BackendUnavailableError(msg)
    return found


def host_demands() -> dict[str, str]:
    """What code that is compiled here for the processor will demand of a host.

    Raises:
        BackendUnavailableError: there is no torch.
    """
    # The compiler is told to use all that this processor has.
    return machine_demands() | {"cpu_features": " ".join(HostFingerprint.detect().cpu_features)}


def machine_demands() -> dict[str, str]:
    """What code for any device of this machine will demand of a host.

    Raises:
        BackendUnavailableError: there is no torch.
    """
    return {"torch": torch_version(), "machine": f"{platform.system()} {platform.machine()}"}


def check_host(demands: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Compare a package's demands with what a host has.

    Raises:
        BackendUnavailableError: it was compiled for another torch, machine, processor or GPU.
    """
    for name in ("torch", "machine", "gpu"):
        if demands.get(name) != here.get(name):
            msg = f"the package was compiled for {name} {demands.get(name)}, this host has {here.get(name)}; {_ADVICE}"
            raise BackendUnavailableError(msg)
    missing = set(demands.get("cpu_features", "").split()).difference(here.get("cpu_features", "").split())
    if missing:
        lacks = ", ".join(sorted(missing))
        msg = f"the package was compiled for a processor with {lacks}, which this one lacks; {_ADVICE}"
        raise BackendUnavailableError(msg)

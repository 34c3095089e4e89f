"""Who computes a session. ONNX Runtime lists providers that it cannot load, and goes on without them in silence."""

from dataclasses import dataclass, field
from typing import Any

from blockexport.errors import BackendUnavailableError


@dataclass(frozen=True, slots=True)
class Providers:
    """One execution provider.

    Attributes:
        name: as ONNX Runtime calls it.
        options: its own.
        session_entries: of the session's configuration.
    """

    name: str
    options: dict[str, str] = field(default_factory=dict)
    session_entries: dict[str, str] = field(default_factory=dict)


CPU = Providers("CPUExecutionProvider")
_CUDA = "CUDAExecutionProvider"


def cuda(*, device_id: int = 0, capture: bool = False, only_cuda: bool = False) -> Providers:
    """The CUDA provider, set up so that parity can hold and memory is what the levels need.

    Args:
        device_id: which GPU.
        capture: whether a run is recorded as a CUDA graph, for inputs whose shapes and addresses stay.
        only_cuda: whether the session is refused if even one node, be it arithmetic on shapes, would run on the CPU.
    """
    options = {
        "device_id": str(device_id),
        # Products in TF32 have 10 bits of mantissa: no fp32 tolerance holds.
        "use_tf32": "0",
        # The default doubles the arena each time; levels share a GPU.
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": str(int(capture)),
    }
    return Providers(_CUDA, options, {"session.disable_cpu_ep_fallback": "1"} if only_cuda else {})


def require_provider(runtime: Any, wanted: Providers) -> None:
    """Refuse a provider that this build of ONNX Runtime does not have.

    Raises:
        BackendUnavailableError: it has not.
    """
    available = runtime.get_available_providers()
    if wanted.name not in available:
        msg = (
            f"ONNX Runtime {runtime.__version__} has no {wanted.name}, only {', '.join(available)}; "
            "install blockexport[ort-gpu] in place of [ort], or use device 'cpu'"
        )
        raise BackendUnavailableError(msg)


def require_in_use(session: Any, wanted: Providers) -> None:
    """Refuse a session that another provider would compute.

    Raises:
        BackendUnavailableError: the provider could not be loaded.
    """
    in_use = session.get_providers()[0]
    if in_use != wanted.name:
        msg = (
            f"{wanted.name} was asked for, but ONNX Runtime would use {in_use}: a library of it or the GPU's driver "
            "cannot be loaded; run `blockexport doctor`, or use device 'cpu'"
        )
        raise BackendUnavailableError(msg)

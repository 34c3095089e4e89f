"""How a function that launches kernels becomes an operator of torch, and where it can run."""

from collections.abc import Callable
from typing import Any

import torch
import triton

from blockexport_kernels.triton.errors import KernelUnavailableError

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Triton's interpreter runs kernels as numpy, on a CPU. TRITON_INTERPRET decides it when Triton is imported."""

# torch finds the kernels of an operator by this name in its source, so operators call it as it is. The interpreter's
# kernels need no wrapping, and torch before 2.13 refuses them.
wrap_triton: Callable[[Any], Any] = (lambda kernel: kernel) if INTERPRETED else torch.library.wrap_triton


def register(
    name: str, *, mutates: tuple[str, ...] = (), fake: Callable[..., Any]
) -> Callable[[Callable[..., Any]], Any]:
    """Make `blockexport_kernels::name` of a function that launches kernels wrapped by `wrap_triton`.

    Compilers see the launches themselves (`torch.library.triton_op`). Interpreted kernels read memory while they are
    traced, so they are hidden behind an opaque operator of the same schema.

    Autocast is not registered: kernels add up in fp32 whatever they are given, and a cast of an argument that they
    write to would write to a copy.

    Args:
        name: of the operator.
        mutates: arguments that it writes to.
        fake: its shape function.
    """
    make: Any = torch.library.custom_op if INTERPRETED else torch.library.triton_op

    def decorate(function: Callable[..., Any]) -> Any:
        operator = make(f"blockexport_kernels::{name}", function, mutates_args=mutates)
        operator.register_fake(fake)
        return operator

    return decorate


def require_device(tensor: torch.Tensor) -> None:
    """Refuse tensors that no kernel reaches; there is no silent way round.

    Raises:
        KernelUnavailableError: neither on a GPU nor interpreted.
    """
    if tensor.device.type != "cuda" and not INTERPRETED:
        msg = (
            f"kernels run on GPUs, and these tensors are on {tensor.device}; move them, call the function of the same "
            "name in blockexport_kernels.triton.reference, or set TRITON_INTERPRET=1 before Triton is imported"
        )
        raise KernelUnavailableError(msg)

"""Whether torch can use the GPU."""

import torch

from blockexport.errors import BackendUnavailableError


def require_torch_cuda() -> None:
    """Make sure that it can, and that fp32 means fp32.

    Raises:
        BackendUnavailableError: it cannot.
    """
    if not torch.cuda.is_available():
        msg = f"torch {torch.__version__} sees no CUDA device"
        raise BackendUnavailableError(msg)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

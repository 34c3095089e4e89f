"""What the kernels raise on purpose."""


class KernelInputError(ValueError):
    """Tensors that a kernel cannot take; the message says what was given and what is allowed."""


class KernelUnavailableError(RuntimeError):
    """A kernel cannot run on these tensors on this host; the message says what can."""

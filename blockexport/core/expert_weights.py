"""What the weights of a mixture of experts are called in the weight file.

The operators for experts want the rows of a gate and of what it gates in turn; a checkpoint has one half after the
other. The weight file has them in turn, under a name that says so.
"""

_SUFFIX = ".interleaved"


def interleaved_name(name: str) -> str:
    """Of the checkpoint's weight of this name, with the rows of its halves in turn."""
    return f"{name}{_SUFFIX}"


def source_of(name: str) -> str | None:
    """The checkpoint's name of a weight that is stored interleaved under this one; None for any other."""
    return name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else None

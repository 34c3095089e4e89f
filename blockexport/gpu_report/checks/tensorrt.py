"""TensorRT, of which there is nothing to check yet; a report says so, lest its absence be read as a pass."""

from collections.abc import Iterator

from blockexport.errors import BackendUnavailableError
from blockexport.gpu_report.finding import Finding


def run() -> Iterator[Finding]:
    """Nothing.

    Raises:
        BackendUnavailableError: this version has no such backend.
    """
    msg = "this version of blockexport has no TensorRT backend"
    raise BackendUnavailableError(msg)

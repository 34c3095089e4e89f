"""TensorRT: load, numerics, pointer sharing and CUDA graph, by the backend's own checks."""

from collections.abc import Iterator

from blockexport.gpu_report.finding import Finding
from blockexport.gpu_report.optional import findings_of


def run() -> Iterator[Finding]:
    """Whatever `blockexport.backends.tensorrt` has to say."""
    yield from findings_of("blockexport.backends.tensorrt", "tensorrt")

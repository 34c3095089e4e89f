"""The Triton kernels: correctness and speed, by their own checks."""

from collections.abc import Iterator

from blockexport.gpu_report.finding import Finding
from blockexport.gpu_report.optional import findings_of
from blockexport.gpu_report.torch_cuda import require_torch_cuda


def run() -> Iterator[Finding]:
    """Whatever `blockexport_kernels.triton` has to say."""
    require_torch_cuda()
    yield from findings_of("blockexport_kernels.triton", "triton-kernels")

"""AOTInductor on the GPU: all four levels of a small decoder."""

from collections.abc import Iterator

from blockexport.gpu_report.checks.aotinductor import numerics
from blockexport.gpu_report.finding import Finding
from blockexport.gpu_report.models import SMALL_LADDER
from blockexport.gpu_report.torch_cuda import require_torch_cuda


def run() -> Iterator[Finding]:
    """Numerics, and that there is one set of weights."""
    require_torch_cuda()
    yield from numerics("cuda", "gpu", len(SMALL_LADDER.levels))

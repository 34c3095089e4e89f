"""The Triton kernels: correctness and speed, by the kernels' own report."""

from collections.abc import Iterator

import torch

from blockexport.gpu_report.finding import Finding
from blockexport.gpu_report.torch_cuda import require_torch_cuda
from blockexport_kernels.triton.report import iterate_checks


def run() -> Iterator[Finding]:
    """Each kernel's verdicts, as soon as there is one."""
    require_torch_cuda()
    for found in iterate_checks(torch.device("cuda")):
        yield Finding(found["id"], "gpu", found["status"], found["why"], found["metrics"])

"""All checks, most valuable first. Each is loaded when it runs: what one needs may be what another host lacks."""

from collections.abc import Iterator
from importlib import import_module

from blockexport.gpu_report.finding import Check, Finding, Run


def _of(module: str, function: str = "run") -> Run:
    def run() -> Iterator[Finding]:
        found: Iterator[Finding] = getattr(import_module(f"{__name__}.{module}"), function)()
        return found

    return run


CHECKS: tuple[Check, ...] = (
    Check("onnxruntime-cuda", "gpu", 90, _of("onnxruntime_cuda")),
    Check("aotinductor-cuda", "gpu", 120, _of("aotinductor_cuda")),
    Check("torch-compile-cuda", "gpu", 90, _of("torch_compile", "on_cuda")),
    Check("decode-7b", "gpu", 270, _of("decode_7b")),
    Check("triton-kernels", "gpu", 60, _of("triton_kernels")),
    Check("tensorrt", "gpu", 90, _of("tensorrt")),
    Check("router-replay-cuda", "gpu", 60, _of("router_replay", "on_cuda")),
    Check("aotinductor-cpu", "cpu", 150, _of("aotinductor", "on_cpu")),
    Check("torch-compile-cpu", "cpu", 90, _of("torch_compile", "on_cpu")),
    Check("router-replay-cpu", "cpu", 90, _of("router_replay", "on_cpu")),
)

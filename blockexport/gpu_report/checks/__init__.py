"""All checks, most valuable first."""

from blockexport.gpu_report.checks import (
    aotinductor,
    aotinductor_cuda,
    decode_7b,
    onnxruntime_cuda,
    router_replay,
    tensorrt,
    torch_compile,
    triton_kernels,
)
from blockexport.gpu_report.finding import Check

CHECKS: tuple[Check, ...] = (
    Check("onnxruntime-cuda", "gpu", 90, onnxruntime_cuda.run),
    Check("aotinductor-cuda", "gpu", 120, aotinductor_cuda.run),
    Check("torch-compile-cuda", "gpu", 90, torch_compile.on_cuda),
    Check("decode-7b", "gpu", 270, decode_7b.run),
    Check("triton-kernels", "gpu", 60, triton_kernels.run),
    Check("tensorrt", "gpu", 90, tensorrt.run),
    Check("router-replay-cuda", "gpu", 60, router_replay.on_cuda),
    Check("aotinductor-cpu", "cpu", 150, aotinductor.on_cpu),
    Check("torch-compile-cpu", "cpu", 90, torch_compile.on_cpu),
    Check("router-replay-cpu", "cpu", 90, router_replay.on_cpu),
)

"""Compiles every kernel for a GPU that need not be there, and prints as JSON what came out. A process of its own."""

import json
import sys
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from blockexport_kernels.triton import decode_attention, dequant_gemv, kv_backfill, residual_rmsnorm

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
_OPTIONS = ("num_warps", "num_stages")


class Recorder:
    """Stands where `wrap_triton` does: takes down what would be launched."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, kernel: Any) -> Any:
        return _Grid(self, kernel)


class _Grid:
    def __init__(self, recorder: Recorder, kernel: Any) -> None:
        self._recorder, self._kernel = recorder, kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: self._recorder.launches.append((self._kernel, args, kwargs))


def launches(module: ModuleType, *args: Any) -> Recorder:
    recorder = Recorder()
    module.wrap_triton = recorder
    module._operator._init_fn(*args)
    return recorder


def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cases(dtype: torch.dtype) -> dict[str, Recorder]:
    """Every kernel in the shapes of Qwen2-7B, and the branches that those do not take."""
    query, new, cache = (empty(*s, dtype=dtype) for s in ((1, 28, 128), (1, 4, 128), (1, 4, 4096, 128)))
    attend = (query, new, new, cache, cache, empty(1))
    wide, norm = empty(1, 3584, dtype=dtype), empty(3584, dtype=torch.float32)
    offsets, cache_offsets = empty(14, 5, dtype=torch.int64), empty(14, 2, dtype=torch.int64)
    angles, flat = empty(100, 64, dtype=torch.float32), empty(1 << 20, dtype=dtype)
    places = (flat, cache_offsets, empty(100), empty(100), [4 * 4096 * 128, 4096 * 128, 128], 4, 128, 1e-6)
    skipped = (empty(2, 100, 3584, dtype=dtype), empty(14), flat, norm, offsets)
    codes, scales = empty(18944, 28, 64, dtype=torch.uint8), empty(18944, 28, dtype=torch.float32)
    zeros = empty(18944, 14, dtype=torch.uint8)
    return {
        "decode_attention": launches(decode_attention, *attend, None, 0.1, 64),
        "decode_attention holes": launches(decode_attention, *attend, empty(1, 3, 2), 0.1, 64),
        "residual_rmsnorm": launches(residual_rmsnorm, wide, wide, norm, 1e-6),
        "residual_rmsnorm alone": launches(residual_rmsnorm, wide, None, norm, 1e-6),
        "kv_backfill": launches(kv_backfill, *skipped, angles, angles, *places),
        "dequant_gemv 4": launches(dequant_gemv, wide[:, :3584], codes, scales, zeros, 4, None),
        "dequant_gemv 8": launches(dequant_gemv, wide[:, :1792], codes, scales, None, 8, norm[:1]),
    }


def compile_launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], capability: int) -> Any:
    """As a launch would compile it: tensors begin at multiples of 16 bytes, and so on for numbers."""
    names = kernel.arg_names
    given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k not in _OPTIONS}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(names):
        value = given[name]
        if isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
        elif name.isupper() or value is None or value == 1:
            signature[name], constants[name] = "constexpr", value
            continue
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if not isinstance(value, float) and (isinstance(value, torch.Tensor) or value % 16 == 0):
            attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {key: kwargs[key] for key in _OPTIONS if key in kwargs}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main() -> None:
    """Bytes of machine code and shared memory of kernels; the command line names type, capability and which."""
    dtype, capability = getattr(torch, sys.argv[1]), int(sys.argv[2])
    out = {}
    for name, recorder in cases(dtype).items():
        if sys.argv[3:] and name not in sys.argv[3:]:
            continue
        for kernel, args, kwargs in recorder.launches:
            compiled = compile_launch(kernel, args, kwargs, capability)
            sizes = {"cubin_bytes": len(compiled.asm["cubin"]), "shared_bytes": compiled.metadata.shared}
            out[f"{name}: {kernel.__name__}"] = sizes
    sys.stdout.write(json.dumps(out))


if __name__ == "__main__":
    main()

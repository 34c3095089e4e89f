"""Decoding in the shape of Qwen2-7B, bf16, one row: what depth and shared weights are worth on this GPU."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from blockexport.core.masks import DepthMask
from blockexport.errors import BackendUnavailableError
from blockexport.export.lower.aten import AtenProgram
from blockexport.export.trace import trace
from blockexport.gpu_report.driver import free_bytes
from blockexport.gpu_report.finding import Finding, verdict
from blockexport.gpu_report.models import LARGE_BLOCKS, LARGE_KEPT, qwen2_7b_shape
from blockexport.gpu_report.step import CompiledStep, StepInputs, lower_step
from blockexport.gpu_report.timing import copy_bytes_per_s, median_ms
from blockexport.gpu_report.torch_cuda import require_torch_cuda
from blockexport.masking.compiled import CompiledLevel, compile_level
from blockexport.models.loaded import LoadedModel

_CAPACITY = 512
_NEEDED_BYTES = 24 << 30
_NAME = "decode-7b"
# What this project has set itself; a figure that is missed is a failure, and stands in the report as what it is.
_LEAST_SHARE, _MOST_HALF, _MOST_MEMORY, _MOST_SWITCH_US = 0.8, 0.55, 1.05, 50.0
_SWITCHES = 20


def run() -> Iterator[Finding]:
    """Steps at four depths, then torch.compile at three."""
    require_torch_cuda()
    before = free_bytes()
    if before < _NEEDED_BYTES:
        msg = f"{before / 1e9:.0f} GB of GPU memory are free, {_NEEDED_BYTES / 1e9:.0f} GB are needed"
        raise BackendUnavailableError(msg)
    bandwidth = copy_bytes_per_s()
    model = qwen2_7b_shape()
    marked = trace(model)
    inputs = StepInputs(model.spec, _CAPACITY, torch.bfloat16)
    steps: dict[int, CompiledStep] = {}
    times: dict[int, float] = {}
    used: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        for depth, kept in LARGE_KEPT.items():
            program = lower_step(marked, DepthMask.from_kept(kept, LARGE_BLOCKS), _CAPACITY)
            steps[depth] = CompiledStep(program, inputs, Path(folder), f"d{depth}")
            steps[depth].record()
            times[depth] = _time(steps[depth], inputs)
            yield _speed(depth, times[depth], program, bandwidth, steps[depth])
            torch.cuda.empty_cache()
            used.append(before - free_bytes())
            if depth == 14:
                ratio = times[14] / times[28]
                failures = [] if ratio <= _MOST_HALF else [f"14 of 28 blocks take {ratio:.3f} of full depth"]
                yield verdict(f"{_NAME}:14-of-28", "gpu", failures, {"ratio": ratio})
        yield _memory(used)
        yield _switch(steps[28], steps[14], inputs)
        for depth in (28, 14, 21):
            yield _against_torch_compile(model, depth, times[depth])


def _time(step: CompiledStep, inputs: StepInputs) -> float:
    def prepare(index: int) -> None:
        inputs.set(token=index * 997 % 150_000, position=_CAPACITY - 1 - index % 64)
        step.logits.fill_(float("nan"))

    return median_ms(step.run, prepare)


def _speed(depth: int, step_ms: float, program: AtenProgram, bandwidth: float, step: CompiledStep) -> Finding:
    # Of the table of embeddings a step reads one row.
    read = (tensor for name, tensor in program.weights.items() if name != "model.embed_tokens.weight")
    active_bytes = sum(tensor.nbytes for tensor in read)
    share = active_bytes / (step_ms / 1e3) / bandwidth
    failures = [] if share >= _LEAST_SHARE else [f"{share:.3f} of the copy bandwidth"]
    if not bool(torch.isfinite(step.logits).all()):
        failures.append("the poisoned output was not overwritten by finite numbers")
    metrics = {"step_ms": step_ms, "active_bytes": active_bytes, "copy_bytes_per_s": bandwidth, "share_of_copy": share}
    return verdict(f"{_NAME}:d{depth}", "gpu", failures, metrics)


def _memory(used: list[int]) -> Finding:
    ratio = used[-1] / used[0]
    failures = [] if ratio <= _MOST_MEMORY else [f"four levels take {ratio:.3f} of one"]
    return verdict(f"{_NAME}:memory", "gpu", failures, {"ratio": ratio, "used_bytes": used})


def _switch(deep: CompiledStep, shallow: CompiledStep, inputs: StepInputs) -> Finding:
    """What a step takes longer behind one of another level than behind one of its own."""

    def sequence(first: CompiledStep, second: CompiledStep) -> float:
        def both() -> None:
            for _ in range(_SWITCHES):
                first.run()
                second.run()

        return median_ms(both, lambda i: inputs.set(i, _CAPACITY - 1), 15)

    alternating, same = sequence(deep, shallow), (sequence(deep, deep) + sequence(shallow, shallow)) / 2
    microseconds = (alternating - same) * 1e3 / (2 * _SWITCHES)
    failures = [] if microseconds < _MOST_SWITCH_US else [f"a switch takes {microseconds:.1f} us"]
    return verdict(f"{_NAME}:switch", "gpu", failures, {"switch_us": microseconds})


def _against_torch_compile(model: LoadedModel, depth: int, ours_ms: float) -> Finding:
    torch._dynamo.reset()  # noqa: SLF001  (torch's documented name for it)
    level = compile_level(model, DepthMask.from_kept(LARGE_KEPT[depth], LARGE_BLOCKS), capacity_tokens=_CAPACITY)
    theirs_ms = _compiled_ms(level)
    failures = [] if ours_ms <= theirs_ms else [f"{ours_ms:.3f} ms against {theirs_ms:.3f} ms"]
    metrics = {"aotinductor_ms": ours_ms, "torch_compile_ms": theirs_ms}
    return verdict(f"{_NAME}:d{depth}-against-torch-compile", "gpu", failures, metrics)


def _compiled_ms(level: CompiledLevel) -> float:
    """Median of a step behind as many tokens as ours had on average."""
    prompt = torch.randint(0, 150_000, (1, _CAPACITY - 128), device="cuda")
    level.start(prompt)
    tokens = torch.zeros(1, 1, dtype=torch.long, device="cuda")
    return median_ms(lambda: level.step(tokens), lambda i: tokens.fill_(i * 997 % 150_000))

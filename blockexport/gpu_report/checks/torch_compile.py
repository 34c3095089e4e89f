"""torch.compile: decode steps of a small decoder against the eager masked model."""

from collections.abc import Iterator
from statistics import median
from time import perf_counter

import torch

from blockexport.core.masks import DepthMask
from blockexport.core.parity import tolerance_of
from blockexport.gpu_report.finding import Finding, Tier, verdict
from blockexport.gpu_report.models import SMALL_BLOCKS, small_decoder
from blockexport.gpu_report.timing import median_ms
from blockexport.gpu_report.torch_cuda import require_torch_cuda
from blockexport.masking.compiled import CompiledLevel, compile_level
from blockexport.masking.masked import masked
from blockexport.models.loaded import LoadedModel, wrap_module

_DEPTHS = {4: (0, 1, 2, 3), 2: (0, 3)}
_PROMPT_TOKENS, _STEPS, _CAPACITY = 12, 8, 128


def on_cpu() -> Iterator[Finding]:
    """The half-depth level, in the default mode."""
    yield _level("cpu", "cpu", 2)


def on_cuda() -> Iterator[Finding]:
    """Full and half depth, as CUDA graphs."""
    require_torch_cuda()
    for depth in _DEPTHS:
        yield _level("cuda", "gpu", depth)


def _level(device: str, tier: Tier, depth: int) -> Finding:
    torch._dynamo.reset()  # noqa: SLF001  (torch's documented name for it)
    model, exact = small_decoder(), wrap_module(small_decoder().module.double(), digest="random")
    mask = DepthMask.from_kept(_DEPTHS[depth], SMALL_BLOCKS)
    tokens = torch.randint(0, model.spec.vocab_size, (1, _PROMPT_TOKENS + _STEPS))
    expected, reference = (_whole(either, mask, tokens) for either in (model, exact))
    tolerance = tolerance_of(expected.numpy(), reference.numpy())
    there = LoadedModel(model.module.to(device), model.spec, model.adapter)
    level = compile_level(there, mask, capacity_tokens=_CAPACITY)
    found = [level.start(tokens[:, :_PROMPT_TOKENS].to(device)).cpu()]
    following = tokens[:, _PROMPT_TOKENS:].to(device).split(1, dim=1)
    # A copy each: a recorded step writes to where the last one did.
    found += [level.step(token).cpu().clone() for token in following]
    error = float((torch.cat(found) - expected[0, _PROMPT_TOKENS - 1 :]).abs().max())
    failures = [] if error <= tolerance else [f"off by {error:.3g}, allowed {tolerance:.3g}"]
    metrics = {"error_over_tolerance": error / tolerance, "step_ms": _step_ms(level, device)}
    return verdict(f"torch-compile-{device}:d{depth}", tier, failures, metrics)


def _whole(model: LoadedModel, mask: DepthMask, tokens: torch.Tensor) -> torch.Tensor:
    with masked(model, mask), torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def _step_ms(level: CompiledLevel, device: str, repeats: int = 30) -> float:
    """Median of a step; on the processor by its clock."""
    bank = [torch.full((1, 1), token, dtype=torch.long, device=device) for token in range(repeats + 10)]
    current = [bank[0]]
    if device == "cuda":
        return median_ms(lambda: level.step(current[0]), lambda i: current.__setitem__(0, bank[i]), repeats)
    times = []
    for tokens in bank[:repeats]:
        begin = perf_counter()
        level.step(tokens)
        times.append((perf_counter() - begin) * 1e3)
    return median(times)

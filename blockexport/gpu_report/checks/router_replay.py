"""The router on engines of this host: requests with budgets, and which of its promises it kept."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from blockexport.core.latency import LatencyBudget
from blockexport.gpu_report.finding import Finding, Tier, verdict
from blockexport.gpu_report.models import SMALL_LADDER, small_decoder
from blockexport.pipeline.build import build
from blockexport.runtime import load, profile

_REQUESTS, _PROMPT_TOKENS, _NEW_TOKENS = 40, 32, 16
_PROFILE_S = 30.0


def on_cpu() -> Iterator[Finding]:
    """Through ONNX Runtime on the processor."""
    yield _replay("cpu", "cpu")


def on_cuda() -> Iterator[Finding]:
    """Through ONNX Runtime on the GPU."""
    yield _replay("cuda", "gpu")


def _replay(device: str, tier: Tier) -> Finding:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bundle"
        build(small_decoder().module, SMALL_LADDER, out=folder)
        runtime = load(folder, device=device)
        runtime.warm_up()
        profile(runtime, quick=True, time_limit_s=_PROFILE_S)
        unbound = runtime.plan(prompt_tokens=_PROMPT_TOKENS, new_tokens=_NEW_TOKENS)
        bounds = sorted([unbound.bound_ms, *(other.bound_ms for other in unbound.alternatives)])
        # From what no level can keep to what every level can.
        budgets = np.linspace(0.5 * bounds[0], 1.5 * bounds[-1], _REQUESTS)
        return _count(runtime, budgets.tolist(), f"router-replay-{device}", tier)


def _count(runtime: Any, budgets: list[float], identifier: str, tier: Tier) -> Finding:
    prompt = list(range(_PROMPT_TOKENS))
    kept, feasible, failures, levels = 0, 0, [], []
    for budget_ms in budgets:
        budget = LatencyBudget(e2e_ms=budget_ms)
        decision = runtime.plan(prompt_tokens=_PROMPT_TOKENS, new_tokens=_NEW_TOKENS, budget=budget)
        if not decision.feasible:
            continue
        feasible += 1
        if decision.bound_ms > budget_ms:
            failures.append(f"a bound of {decision.bound_ms:.3f} ms was promised for a budget of {budget_ms:.3f} ms")
        done = runtime.generate(prompt, _NEW_TOKENS, level=decision.level, stop_tokens=[])
        levels.append(decision.level)
        kept += done.observed_ms <= budget_ms
    if not feasible:
        failures.append("no budget was feasible")
    on_device = {runtime.engines.operators(name) for name in set(levels)}
    metrics = {"requests": len(budgets), "feasible": feasible, "in_time": kept, "levels_used": len(set(levels))}
    return verdict(identifier, tier, failures, metrics | {"operators": sorted(on_device)})

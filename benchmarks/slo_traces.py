"""Requests to be served: when each comes, how long it is, and what it is promised."""

import csv
import gzip
import io
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from blockexport.core.latency import LatencyBudget
from blockexport.routing.contract import Contract
from blockexport.routing.costs import StepCosts

# Budgets are multiples of what a request takes alone at full depth, plus a constant; each request draws one.
FACTORS = (0.8, 1.2, 2.0, 4.0)
CONSTANT_MS = 30.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrays with an entry for each request, in the order of arrival.

    Attributes:
        name: of the trace.
        arrived_ms: when it comes.
        prompt_tokens: of its prompt.
        new_tokens: of its answer; only the engine and the oracle know.
        max_new_tokens: what the caller states: the next power of two.
        contracts: what it is promised.
    """

    name: str
    arrived_ms: Any
    prompt_tokens: Any
    new_tokens: Any
    max_new_tokens: Any
    contracts: list[Contract]

    def __len__(self) -> int:
        return len(self.contracts)


def read_azure(path: Path, limit: int | None) -> tuple[Any, Any, Any]:
    """Seconds since the first request, prompt tokens and new tokens of a trace in the format of Azure's.

    The columns are TIMESTAMP, ContextTokens and GeneratedTokens; the file may be gzipped.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = list(csv.DictReader(io.StringIO(raw.decode())))[:limit]
    # Seven digits of a second, of which Python reads six.
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    prompt = np.array([max(1, int(row["ContextTokens"])) for row in rows])
    new = np.array([max(1, int(row["GeneratedTokens"])) for row in rows])
    return np.array(times) - times[0], prompt, new


def synthesise(num_requests: int, seed: int) -> tuple[Any, Any, Any]:
    """The same of a made-up trace: Poisson arrivals whose rate is five times higher in bursts, log-normal lengths."""
    rng = np.random.default_rng(seed)
    gaps, in_burst = [], False
    while len(gaps) < num_requests:
        # Spells of 60 requests in mean, half of them in bursts.
        spell = 1 + rng.geometric(1 / 60)
        gaps += rng.exponential(0.2 if in_burst else 1.0, spell).tolist()
        in_burst = not in_burst
    prompt = np.clip(rng.lognormal(5.5, 1.0, num_requests), 8, 4096).astype(int)
    new = np.clip(rng.lognormal(4.0, 0.9, num_requests), 1, 1024).astype(int)
    return np.cumsum(gaps[:num_requests]), prompt, new


def work_ms(costs: StepCosts, depth: int, rows: int, prompt: int, new: int) -> float:
    """Engine time of a request at a depth, its decode steps shared with `rows - 1` others as long as itself."""
    fixed, slope = costs.prefill_line(prompt)
    step_fixed, step_slope = costs.decode_line(rows, rows * (prompt + new / 2))
    return fixed + depth * slope + (new - 1) * (step_fixed + depth * step_slope) / rows


def prepare(
    name: str, raw: tuple[Any, Any, Any], costs: StepCosts, depth: int, *, max_rows: int, seed: int
) -> Workload:
    """A workload at a load of 1: arrivals stretched so that full depth in full batches takes just as long."""
    seconds, prompt, new = raw

    def work(rows: int) -> Any:
        return np.array([work_ms(costs, depth, rows, *size) for size in zip(prompt, new, strict=True)])

    span_ms = float(work(max_rows).sum())
    factors = np.random.default_rng(seed).choice(FACTORS, len(prompt))
    budgets = factors * work(1) + CONSTANT_MS
    contracts = [Contract(LatencyBudget(e2e_ms=float(budget)), on_miss="error") for budget in budgets]
    max_new = 2 ** np.ceil(np.log2(new)).astype(int)
    return Workload(name, seconds * (span_ms / seconds[-1]), prompt, new, max_new, contracts)


def at_load(workload: Workload, load: float) -> Workload:
    """The same requests, coming faster or slower."""
    return replace(workload, arrived_ms=workload.arrived_ms / load)

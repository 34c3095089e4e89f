"""How does the real server keep its promises, under load and for hours on end?

Open loop: requests come as in the seeded synthetic trace of `bench_slo.py`, whatever became of those before, at loads
that are multiples of what full depth in full batches could just work off; with and without a neighbour that takes
turns on the processor. Every policy runs the same requests. Then one stream, the server beside the bare runtime in
turns; and many streams at a time, until `--soak-s` is over.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from environment import describe
from server_client import Asked, Server, ask, make_client, open_loop, serving
from slo_traces import Workload, at_load, prepare, synthesise

from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.routing.costs import StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.runtime import Runtime, load

LOADS = (0.4, 0.6, 0.8, 1.0, 1.2)
MAX_ROWS = 4
ALPHA = 0.05
MAX_NEW = 64


def workload_of(runtime: Runtime, num_requests: int, seed: int) -> Workload:
    """The synthetic trace, cut to what the model places."""
    costs = StepCosts.of(runtime.profile.fit)
    arrived_s, prompt, new = synthesise(num_requests, seed)
    new = np.minimum(new, MAX_NEW)
    prompt = np.minimum(prompt, (runtime.spec.context_tokens or 4096) - MAX_NEW)
    return prepare("synthetic", (arrived_s, prompt, new), costs, runtime.levels[0].depth, max_rows=MAX_ROWS, seed=seed)


def _burn(stop: Any, on_s: float, off_s: float) -> None:
    while not stop.is_set():
        until = time.monotonic() + on_s
        while time.monotonic() < until:
            pass
        stop.wait(off_s)


@contextmanager
def neighbour(on_s: float = 2.0, off_s: float = 4.0) -> Iterator[None]:
    """Another process that computes for a while, and rests for a while."""
    stop = multiprocessing.Event()
    process = multiprocessing.Process(target=_burn, args=(stop, on_s, off_s), daemon=True)
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join()


NOISES: dict[str, Callable[[], AbstractContextManager[None]]] = {"quiet": nullcontext, "noisy neighbour": neighbour}


def summarise(asked: Sequence[Asked], ladder: Ladder) -> dict[str, Any]:
    """The figures of one run; what was shed, late or refused counts as not in time."""
    worth = dict(zip(ladder.names, ladder.worth[None], strict=True))
    depths = dict(zip(ladder.names, ladder.depths, strict=True))
    served = [one for one in asked if one.told.get("outcome") == "served"]
    good = [one for one in served if one.told["is_in_time"]]
    promised = [one for one in asked if "bound_ms" in one.told and "observed_ms" in one.told]
    kept = [one for one in promised if one in served and one.told["observed_ms"] <= one.told["bound_ms"]]
    errors = [abs(one.told["predicted_ms"] / one.told["observed_ms"] - 1) for one in served]
    tokens = sum(sum(one.told["tokens_at"].values()) for one in served)
    blocks = sum(depths[name] * n for one in served for name, n in one.told["tokens_at"].items())
    return {
        "offered": len(asked),
        "effective_quality": sum(_mean_worth(one, worth) for one in good) / len(asked),
        "attainment": len(good) / len(asked),
        "mean_depth": blocks / tokens if tokens else None,
        "switches_per_served": sum(len(one.told["switches"]) for one in served) / max(1, len(served)),
        "promised": len(promised),
        "promise_coverage": len(kept) / len(promised) if promised else None,
        "predicted_to_observed_median_error": statistics.median(errors) if errors else None,
        "failed_connections": sum(one.status == 0 or one.status >= 500 for one in asked),
    }


def _mean_worth(one: Asked, worth: dict[str, float]) -> float:
    tokens_at = one.told["tokens_at"]
    return sum(worth[name] * n for name, n in tokens_at.items()) / sum(tokens_at.values())


def under_load(
    server: Server, workload: Workload, prompts: Sequence[Sequence[int]], load_: float, ladder: Ladder
) -> dict[str, Any]:
    """One run at a load."""
    offered = at_load(workload, load_)
    budgets = [contract.budget.e2e_ms if contract.budget else None for contract in offered.contracts]
    new_tokens = offered.new_tokens.tolist()
    return summarise(
        asyncio.run(open_loop(server.url, prompts, new_tokens, offered.arrived_ms.tolist(), budgets)), ladder
    )


async def _stream(url: str, prompt: Sequence[int], rounds: int, num_new: int) -> list[float]:
    """Mean time between two tokens at a client, of each round."""
    async with make_client(url) as client:
        found = []
        for _ in range(rounds):
            one = await ask(client, prompt, num_new)
            found.append((one.token_ms[-1] - one.token_ms[0]) / (num_new - 1))
        return found


def one_stream(server: Server, runtime: Runtime, prompt: Sequence[int], rounds: int, num_new: int) -> dict[str, Any]:
    """Per token, the server at its deepest level against the bare runtime, in turns."""
    name, served, bare = runtime.levels[0].name, [], []
    for _ in range(rounds):
        served += asyncio.run(_stream(server.url, prompt, 1, num_new))
        times: list[float] = []
        runtime.generate(
            list(prompt),
            num_new,
            level=name,
            stop_tokens=(),
            on_token=lambda _row, _token, times=times: times.append(time.perf_counter() * 1e3),
        )
        bare.append((times[-1] - times[0]) / (len(times) - 1))
    ratios = [one / other for one, other in zip(served, bare, strict=True)]
    return {"rounds": rounds, "served_over_bare": statistics.median(ratios), "range": [min(ratios), max(ratios)]}


async def _soak(url: str, prompts: Sequence[Sequence[int]], streams: int, seconds: float, server: Server) -> Any:
    until, counts, memory = time.monotonic() + seconds, {"answers": 0, "tokens": 0, "errors": []}, []
    async with make_client(url) as client:

        async def go(first: int) -> None:
            number = first
            while time.monotonic() < until:
                one = await ask(client, prompts[number % len(prompts)], MAX_NEW)
                if one.told.get("outcome") == "served" and sum(one.told["tokens_at"].values()) == MAX_NEW:
                    counts["answers"] += 1
                    counts["tokens"] += MAX_NEW
                else:
                    counts["errors"].append(one.error or json.dumps(one.told))
                number += streams

        async def watch() -> None:
            while time.monotonic() < until:
                memory.append(server.pss_bytes())
                await asyncio.sleep(seconds / 40)

        await asyncio.gather(watch(), *(go(first) for first in range(streams)))
    quarter = len(memory) // 4
    return {
        "streams": streams,
        "seconds": seconds,
        **counts,
        "pss_second_quarter_bytes": statistics.median(memory[quarter : 2 * quarter]),
        "pss_last_quarter_bytes": statistics.median(memory[-quarter:]),
    }


def main() -> None:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="profiled on this host, quietly")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=200, help="of each cell")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument(
        "--policy", action="append", help="several times; ours, slackfit and all fixed ones when left out"
    )
    parser.add_argument("--noises", nargs="+", choices=list(NOISES), default=list(NOISES))
    parser.add_argument("--stream-rounds", type=int, default=20)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--soak-s", type=float, default=300.0)
    parser.add_argument(
        "--threads", type=int, default=1, help="of the engine: server, client and engine share the processors"
    )
    parser.add_argument("--trace", type=Path, help="folder for a trace of decisions of each policy and noise")
    parser.add_argument("--port", type=int, default=18431)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    runtime = load(args.bundle, threads=args.threads)
    ladder = Ladder.of(runtime.levels)
    workload = workload_of(runtime, args.requests, args.seed)
    rng = np.random.default_rng(args.seed)
    prompts = [rng.integers(1, runtime.spec.vocab_size, size).tolist() for size in workload.prompt_tokens]
    result: dict[str, Any] = {"before": describe(), "requests": args.requests, "max_rows": MAX_ROWS, "alpha": ALPHA}
    result["threads"] = args.threads
    result["rows"] = []
    threads = ("--threads", str(args.threads))
    options = (*threads, "--max-rows", str(MAX_ROWS), "--alpha", str(ALPHA))
    for policy in args.policy or ["priced", "slackfit", *(f"fixed:{name}" for name in ladder.names)]:
        for noise in args.noises:
            traced = ("--trace", str(args.trace / f"{policy}-{noise}.jsonl")) if args.trace else ()
            with serving(args.bundle, args.port, "--policy", policy, *options, *traced) as server, NOISES[noise]():
                for load_ in args.loads:
                    row = {"policy": policy, "noise": noise, "load": load_}
                    row |= under_load(server, workload, prompts, load_, ladder)
                    result["rows"].append(row)
                    print(json.dumps(row), flush=True)
    with serving(args.bundle, args.port, "--policy", "full-depth", *options) as server:
        result["one_stream"] = one_stream(server, runtime, prompts[0], args.stream_rounds, MAX_NEW)
        print(result["one_stream"], flush=True)
    with serving(
        args.bundle, args.port, *threads, "--max-rows", "16", "--max-waiting", str(2 * args.streams)
    ) as server:
        result["soak"] = asyncio.run(_soak(server.url, prompts, args.streams, args.soak_s, server))
        print(result["soak"], flush=True)
    result["after"] = describe()
    write_atomically(args.out / "bench_server.json", dump_json(result) + "\n")


if __name__ == "__main__":
    main()

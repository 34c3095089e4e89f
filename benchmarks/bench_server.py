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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from environment import describe
from server_client import Asked, Server, ask, make_client, open_loop, profiled_bundle, serving
from server_report import save_plot
from slo_traces import Workload, at_load, prepare, synthesise

from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.routing.costs import StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.runtime import Runtime, load

LOADS = (0.4, 0.6, 0.8, 1.0, 1.2)
MAX_ROWS = 4
ALPHA = 0.05
MAX_NEW = 64
LONG_ANSWER = 128
"""Of the one stream: a request's own cost, which is not one of its tokens, then hides in neither side."""


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
    alone = _alone(asked)
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
        "promises_kept": len(kept),
        "predicted_to_observed_median_error": _median_error(served),
        "served_alone": sum(one in alone for one in served),
        "predicted_to_observed_median_error_alone": _median_error([one for one in served if one in alone]),
        "failed_connections": sum(one.status == 0 or one.status >= 500 for one in asked),
    }


def _median_error(served: Sequence[Asked]) -> float | None:
    errors = [abs(one.told["predicted_ms"] / one.told["observed_ms"] - 1) for one in served]
    return statistics.median(errors) if errors else None


def _alone(asked: Sequence[Asked]) -> list[Asked]:
    """Those that had the server to themselves: nobody was there when they came, and nobody came before they left."""
    spans = [(one.sent_ms, one.sent_ms + one.told.get("observed_ms", 0.0)) for one in asked]
    return [
        one
        for one, (begun, over) in zip(asked, spans, strict=True)
        if sum(other_begun < over and begun < other_over for other_begun, other_over in spans) == 1
    ]


def steadiness(runtime: Runtime, prompt: Sequence[int], rounds: int) -> float:
    """How far the bare runtime is from itself: the same request again and again, each time against the one before."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        runtime.generate(list(prompt), MAX_NEW, level=runtime.levels[0].name, stop_tokens=())
        times.append(time.perf_counter() - begun)
    return statistics.median(abs(after / before - 1) for before, after in pairwise(times))


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
    """Mean time between two tokens at a client, of each round; the first is sent at once, the last when it is there."""
    async with make_client(url) as client:
        found = []
        for _ in range(rounds):
            one = await ask(client, prompt, num_new)
            found.append((one.token_ms[-1] - one.token_ms[0]) / (num_new - 1))
        return found


def one_stream(server: Server, runtime: Runtime, prompt: Sequence[int], rounds: int) -> dict[str, Any]:
    """Per token, the server at its deepest level against the bare runtime, in turns."""
    name, served, bare, num_new = runtime.levels[0].name, [], [], LONG_ANSWER
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


def measure(bundle: Path, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """All of it, figure by figure."""
    runtime = load(bundle, threads=args.threads)
    ladder = Ladder.of(runtime.levels)
    workload = workload_of(runtime, args.requests, args.seed)
    rng = np.random.default_rng(args.seed)
    prompts = [rng.integers(1, runtime.spec.vocab_size, size).tolist() for size in workload.prompt_tokens]
    threads = ("--threads", str(args.threads))
    options = (*threads, "--max-rows", str(MAX_ROWS), "--alpha", str(ALPHA))
    result["bare_runtime_against_itself"] = steadiness(runtime, prompts[0], args.stream_rounds)
    rows = result["rows"] = []
    for policy in args.policy or ["priced", "slackfit", *(f"fixed:{name}" for name in ladder.names)]:
        for noise in args.noises:
            traced = ("--trace", str(args.trace / f"{policy}-{noise}.jsonl")) if args.trace else ()
            with (
                serving(bundle, args.port, "--policy", policy, *options, *traced) as server,
                NOISES[noise](),
            ):
                for load_ in args.loads:
                    row = {"policy": policy, "noise": noise, "load": load_}
                    rows.append(row | under_load(server, workload, prompts, load_, ladder))
                    print(json.dumps(rows[-1]), flush=True)
    with serving(bundle, args.port, "--policy", "full-depth", *options) as server:
        result["one_stream"] = one_stream(server, runtime, prompts[0][:LONG_ANSWER], args.stream_rounds)
        print(result["one_stream"], flush=True)
    with serving(bundle, args.port, *threads, "--max-rows", "16", "--max-waiting", str(2 * args.streams)) as server:
        result["soak"] = asyncio.run(_soak(server.url, prompts, args.streams, args.soak_s, server))
        print(result["soak"], flush=True)


def main() -> None:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="profiled on this host; the demo, built and profiled now, without")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=100, help="of each cell")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument(
        "--policy", action="append", help="several times; ours, slackfit and all fixed ones when left out"
    )
    parser.add_argument("--noises", nargs="+", choices=list(NOISES), default=list(NOISES))
    parser.add_argument("--stream-rounds", type=int, default=100)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--soak-s", type=float, default=60.0)
    parser.add_argument(
        "--threads", type=int, default=1, help="of the engine: server, client and engine share the processors"
    )
    parser.add_argument("--trace", type=Path, help="folder for a trace of decisions of each policy and noise")
    parser.add_argument("--port", type=int, default=18431)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    result: dict[str, Any] = {"before": describe(), "max_rows": MAX_ROWS, "alpha": ALPHA}
    result |= {"requests": args.requests, "threads": args.threads}
    with profiled_bundle(args.bundle, args.threads) as bundle:
        measure(bundle, args, result)
    result["after"] = describe()
    write_atomically(args.out / "bench_server.json", dump_json(result) + "\n")
    save_plot(args.out / "bench_server.png", result["rows"])


if __name__ == "__main__":
    main()

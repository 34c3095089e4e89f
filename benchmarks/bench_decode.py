"""How does the time of a decode step and of a prompt fall with depth, and how far is it from what memory allows?

For each bundle and each kind of operators, every level runs in turn, a decode step behind 128 cached tokens and a
prompt of 128; the order of all of them rotates from round to round, and the read bandwidth of the machine is measured
in each round. A line is fitted through the medians over depth: its slope is what a block costs, its offset what does
not depend on depth (embedding, head, sampling, the call).

    bench_decode.py --bundle fp32=FOLDER --bundle int4=FOLDER --out FOLDER

Bundles in the shape of Qwen2.5-0.5B are made by qwen_shape.py; without any, the demo's own model is built.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from environment import describe
from machine import read_gb_per_s

import blockexport
from blockexport.bundle.weights import read_locations
from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.runtime.runtime import Runtime
from blockexport.runtime.workload import RuntimeWorkload

OPERATORS = ("native", "stock")
TOKENS = 128
THREADS = 2
_PROBE_BYTES = 1 << 29
# Steps of one measurement; a single one is too short for the clock of a shared machine.
_STEPS = {"decode": 8, "prefill": 1}
# The threads of the level before still spin for a while, and its weights lie in the caches.
_UNTIMED = {"decode": 4, "prefill": 1}


@dataclass(slots=True)
class Series:
    """One level of one bundle with one kind of operators, in one phase."""

    bundle: str
    operators: str
    level: str
    depth: int
    phase: str
    call: Callable[[], None]
    times_ms: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Measure once."""
        steps = _STEPS[self.phase]
        for _ in range(_UNTIMED[self.phase]):
            self.call()
        started = time.perf_counter()
        for _ in range(steps):
            self.call()
        self.times_ms.append((time.perf_counter() - started) * 1e3 / steps)

    def to_json(self) -> dict[str, Any]:
        """Medians and ranges."""
        kinds = {"bundle": self.bundle, "operators": self.operators, "level": self.level, "depth": self.depth}
        figures = {"median_ms": median(self.times_ms), "min_ms": min(self.times_ms), "max_ms": max(self.times_ms)}
        return kinds | {"phase": self.phase, "n": len(self.times_ms)} | figures


def _series(name: str, folder: Path, operators: str) -> Iterator[Series]:
    runtime = blockexport.load(folder, threads=THREADS, operators=operators)
    levels = [(level.name, level.depth) for level in runtime.levels]
    workload = RuntimeWorkload(runtime.engines, runtime.spec, levels)
    for level, depth in levels:
        yield Series(name, operators, level, depth, "decode", workload.decode_call(level, 1, TOKENS))
        yield Series(name, operators, level, depth, "prefill", workload.prefill_call(level, 1, TOKENS))


def measure(bundles: dict[str, Path], rounds: int) -> dict[str, Any]:
    """All series, interleaved, with the read bandwidth beside them."""
    before = describe()
    series = [one for name, path in bundles.items() for kind in OPERATORS for one in _series(name, path, kind)]
    bandwidth = []
    for number in range(-1, rounds):
        order = series[number % len(series) :] + series[: number % len(series)]
        for one in order:
            one.run()
        bandwidth.append(read_gb_per_s(THREADS, _PROBE_BYTES, times=1))
        if number < 0:
            for one in series:
                one.times_ms.clear()
    fits = [_fit(name, bundles[name], kind, series, median(bandwidth)) for name in bundles for kind in OPERATORS]
    return {
        "question": "how does time fall with depth, and how far is it from what memory allows?",
        "shape": {"batch": 1, "past_tokens": TOKENS, "prompt_tokens": TOKENS, "threads": THREADS},
        "read_gb_per_s": {"median": median(bandwidth), "min": min(bandwidth), "max": max(bandwidth)},
        "rows": [one.to_json() for one in series],
        "fits": fits,
        "before": before,
        "after": describe(),
    }


def _fit(name: str, folder: Path, operators: str, series: list[Series], gb_per_s: float) -> dict[str, Any]:
    """A line through the medians of the decode step over depth, and what a block's bytes would take to read."""
    chosen = [one for one in series if (one.bundle, one.operators, one.phase) == (name, operators, "decode")]
    depths = np.array([one.depth for one in chosen], float)
    times = np.array([median(one.times_ms) for one in chosen])
    slope, offset = np.polyfit(depths, times, 1)
    residual = times - (slope * depths + offset)
    block_bytes = bytes_of_block(blockexport.load(folder, verify=False), folder)
    return {
        "bundle": name,
        "operators": operators,
        "r_squared": float(1 - residual.var() / times.var()),
        "block_ms": float(slope),
        "offset_ms": float(offset),
        "offset_share_at_full_depth": float(offset / times.max()),
        "block_bytes": block_bytes,
        "block_ms_over_reading_its_bytes": float(slope / (block_bytes / gb_per_s / 1e6)),
    }


def bytes_of_block(runtime: Runtime, folder: Path) -> int:
    """Bytes of weights that the last block holds in the weight file."""
    last = runtime.spec.num_blocks - 1
    prefix = f"{runtime.spec.block_path}.{last}."
    return sum(
        where.size_bytes
        for name, where in read_locations(folder / "weights.safetensors").items()
        if name.startswith(prefix)
    )


def table(result: dict[str, Any]) -> str:
    """Ratios to the deepest level of the same bundle, and of our operators to the stock ones."""
    rows = {(r["bundle"], r["operators"], r["phase"], r["depth"]): r["median_ms"] for r in result["rows"]}
    names = ("weights", "blocks", "decode / full", "prompt / full", "decode, native / stock", "prompt, native / stock")
    head = f"| {' | '.join(names)} |"
    lines = [head, "|---|---|---|---|---|---|"]
    deepest = max(depth for *_, depth in rows)
    for bundle, operators, phase, depth in rows:
        if (operators, phase) != ("native", "decode"):
            continue
        own = [rows[bundle, "native", p, depth] / rows[bundle, "native", p, deepest] for p in ("decode", "prefill")]
        stock = [rows[bundle, "native", p, depth] / rows[bundle, "stock", p, depth] for p in ("decode", "prefill")]
        lines.append(f"| {bundle} | {depth} | " + " | ".join(f"{ratio:.2f}" for ratio in (*own, *stock)) + " |")
    lines += [
        "",
        "| weights | operators | R2 | a block / reading its bytes | share of what does not depend on depth |",
        "|---|---|---|---|---|",
    ]
    for fit in result["fits"]:
        figures = (fit["r_squared"], fit["block_ms_over_reading_its_bytes"], fit["offset_share_at_full_depth"])
        lines.append(f"| {fit['bundle']} | {fit['operators']} | " + " | ".join(f"{x:.3f}" for x in figures) + " |")
    return "\n".join(lines) + "\n"


def _demo_bundle(folder: Path) -> Path:
    from blockexport.core.masks import DepthLadder, DepthMask
    from blockexport.pipeline.build import build

    ladder = DepthLadder.from_masks([DepthMask.from_kept(range(depth), 16) for depth in (16, 12, 8, 4)])
    return build("demo:code-lm", ladder, out=folder / "demo").folder


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        named = dict(entry.split("=", 1) for entry in args.bundle)
        bundles = {name: Path(path) for name, path in named.items()} or {"demo fp32": _demo_bundle(Path(folder))}
        result = measure(bundles, args.rounds)
    write_atomically(args.out / "bench_decode.json", dump_json(result) + "\n")
    write_atomically(args.out / "bench_decode.md", table(result))
    print(table(result))


if __name__ == "__main__":
    main()

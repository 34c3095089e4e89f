"""What one more depth costs, and a ladder of four against a single level.

Both builds are the whole of `blockexport.build`: trace, lower, cut, write, parity, audit, quality. No cache.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from environment import describe

from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.export.cut import cut
from blockexport.export.lower import ort
from blockexport.export.trace import block_unit, trace
from blockexport.models.loading import load_model
from blockexport.pipeline.build import build

MODEL = "demo:code-lm"
DEPTHS = (16, 12, 8, 4)


def _ladder(depths: tuple[int, ...]) -> DepthLadder:
    return DepthLadder.from_masks([DepthMask.from_kept(range(depth), 16) for depth in depths])


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(rounds: int) -> dict[str, Any]:
    """Interleaved builds, then cuts from one lowered graph."""
    model = load_model(MODEL)
    before = describe()
    samples: dict[str, list[float]] = {"one_level": [], "four_levels": []}
    with tempfile.TemporaryDirectory() as folder:
        ladders = {"one_level": _ladder(DEPTHS[:1]), "four_levels": _ladder(DEPTHS)}
        # The first build of a process pays for loading the exporter.
        build(model, ladders["one_level"], out=Path(folder) / "warm-up")
        for number in range(rounds):
            for name in sorted(ladders, reverse=bool(number % 2)):
                samples[name].append(_seconds(lambda name=name: build(model, ladders[name], out=Path(folder) / name)))
    marked = ort.lower(trace(model))
    units = [block_unit(block) for block in range(1, 16, 2)]
    cuts = [_seconds(lambda: cut(marked, units)) for _ in range(10)]
    return {
        "question": "what does one more depth cost, and four levels against one?",
        "model": MODEL,
        "builds_seconds": samples,
        "ratio_four_to_one": median(samples["four_levels"]) / median(samples["one_level"]),
        "cut_seconds": {"median": median(cuts), "max": max(cuts)},
        "before": before,
        "after": describe(),
    }


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    result = measure(args.rounds)
    write_atomically(args.out / "bench_build.json", dump_json(result) + "\n")
    print(f"four levels / one level: {result['ratio_four_to_one']:.2f}")
    print(f"one more depth: median {result['cut_seconds']['median'] * 1e3:.1f} ms")


if __name__ == "__main__":
    main()

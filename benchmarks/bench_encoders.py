"""What do the levels of a single-pass model give in latency and in throughput, and what do they share in memory?

Encoders in the shape of BERT-base (12 blocks of 768, 128 tokens) and of ViT-S/16 (12 blocks of 384, 196 patches),
random weights. Every level runs at each batch size, with native and with stock operators, beside transformers' eager
model of the same kept blocks; the order rotates from round to round. Memory is that of a process of its own which runs
every level, against one that runs the deepest.

    bench_encoders.py --out FOLDER
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from environment import describe
from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification

import blockexport
from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.masking.bake import bake
from blockexport.pipeline.build import build

NUM_BLOCKS = 12
# Evenly spread, each level within the next.
KEPT = (range(12), [block for block in range(12) if block % 4 != 3], range(0, 12, 2), range(0, 12, 4))
DEPTHS = tuple(len(kept) for kept in KEPT)
BATCHES = (1, 16)
TOKENS = 128
THREADS = 2
_SHAPE = {"num_hidden_layers": NUM_BLOCKS, "attn_implementation": "sdpa"}


def _bert() -> Any:
    return BertModel(BertConfig(vocab_size=8000, **_SHAPE), add_pooling_layer=False)


def _vit() -> Any:
    shape = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    return ViTForImageClassification(ViTConfig(num_labels=100, **shape, **_SHAPE))


MODELS: dict[str, Callable[[], Any]] = {"bert": _bert, "vit": _vit}


def inputs_of(model: str, batch: int) -> dict[str, np.ndarray]:
    """Whole rows, without padding."""
    rng = np.random.default_rng(0)
    if model == "vit":
        return {"pixel_values": rng.standard_normal((batch, 3, 224, 224), dtype=np.float32)}
    return {"input_ids": rng.integers(1, 8000, (batch, TOKENS)), "attention_mask": np.ones((batch, TOKENS), np.int64)}


@dataclass(slots=True)
class Series:
    """One level of one model, run in one way at one batch size."""

    model: str
    way: str
    depth: int
    batch: int
    call: Callable[[], Any]
    times_ms: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Measure once, behind a call in which the threads of the session before stop spinning."""
        self.call()
        started = time.perf_counter()
        self.call()
        self.times_ms.append((time.perf_counter() - started) * 1e3)

    def to_json(self) -> dict[str, Any]:
        """Medians and ranges."""
        what = {"model": self.model, "way": self.way, "depth": self.depth, "batch": self.batch}
        times = {"median_ms": median(self.times_ms), "min_ms": min(self.times_ms), "max_ms": max(self.times_ms)}
        return what | times | {"n": len(self.times_ms), "rows_per_s": self.batch / median(self.times_ms) * 1e3}


def _ladder() -> DepthLadder:
    return DepthLadder.from_masks([DepthMask.from_kept(kept, NUM_BLOCKS) for kept in KEPT])


def _series(model: str, folder: Path, module: torch.nn.Module) -> list[Series]:
    made = []
    for way in ("native", "stock"):
        runtime = blockexport.load(folder, threads=THREADS, operators=way)
        for level in runtime.levels:
            for batch in BATCHES:
                call = partial(runtime.forward, inputs_of(model, batch), level=level.name)
                made.append(Series(model, way, level.depth, batch, call))
    for masked in _ladder().levels:
        baked = bake(module, masked.mask)
        for batch in BATCHES:
            tensors = {name: torch.from_numpy(array) for name, array in inputs_of(model, batch).items()}
            made.append(Series(model, "eager", masked.depth, batch, partial(_eager, baked, tensors)))
    return made


@torch.inference_mode()
def _eager(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    module(**tensors)


def _memory_mb(folder: Path, model: str, levels: list[str]) -> float:
    """PSS of a process that has run these levels."""
    code = (
        "import sys, json, pathlib; sys.path.insert(0, sys.argv[1]); import blockexport, numpy as np\n"
        f"r = blockexport.load(sys.argv[2], threads={THREADS}, operators='native')\n"
        "feeds = {n: np.array(v, d) for n, (v, d) in json.loads(sys.stdin.read()).items()}\n"
        "[r.forward(feeds, level=level) for level in sys.argv[3:]]\n"
        "rollup = pathlib.Path('/proc/self/smaps_rollup').read_text().splitlines()\n"
        "print(next(line.split()[1] for line in rollup if line.startswith('Pss:')))\n"
    )
    feeds = {name: (array.tolist(), str(array.dtype)) for name, array in inputs_of(model, 1).items()}
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(folder), *levels]
    done = subprocess.run(command, input=json.dumps(feeds), capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e3


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """All series of both models, interleaved, and the memory of each."""
    torch.set_num_threads(THREADS)
    before, series, memory = describe(), [], {}
    for model, make in MODELS.items():
        torch.manual_seed(0)
        module = make().eval()
        build(module, _ladder(), out=folder / model)
        names = [f"d{depth}" for depth in DEPTHS]
        pss = {"all": _memory_mb(folder / model, model, names), "deepest": _memory_mb(folder / model, model, names[:1])}
        memory[model] = pss | {"all_over_deepest": pss["all"] / pss["deepest"]}
        series += _series(model, folder / model, module)
    for number in range(-1, rounds):
        for one in series[number % len(series) :] + series[: number % len(series)]:
            one.run()
        if number < 0:
            for one in series:
                one.times_ms.clear()
    return {
        "question": "what do the levels of a single-pass model give in latency and throughput, and what do they share?",
        "shape": {"tokens": TOKENS, "threads": THREADS, "batches": BATCHES},
        "rows": [one.to_json() for one in series],
        "pss_mb": memory,
        "before": before,
        "after": describe(),
    }


def table(result: dict[str, Any]) -> str:
    """Ratios only: to the deepest level, to the stock operators, to eager, and of a row in a batch to a row alone."""
    times = {(r["model"], r["way"], r["depth"], r["batch"]): r["median_ms"] for r in result["rows"]}
    names = ("model", "blocks", "batch", "time / full depth", "stock / native", "eager / native", "rows/s / batch of 1")
    lines = [f"| {' | '.join(names)} |", "|---|---|---|---|---|---|---|"]
    for (model, way, depth, batch), own in times.items():
        if way != "native":
            continue
        figures = (
            own / times[model, way, DEPTHS[0], batch],
            times[model, "stock", depth, batch] / own,
            times[model, "eager", depth, batch] / own,
            batch * times[model, way, depth, 1] / own,
        )
        lines.append(f"| {model} | {depth} | {batch} | " + " | ".join(f"{x:.2f}" for x in figures) + " |")
    lines += ["", "| model | memory of four levels / of the deepest |", "|---|---|"]
    lines += [f"| {model} | {pss['all_over_deepest']:.2f} |" for model, pss in result["pss_mb"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.rounds)
    write_atomically(args.out / "bench_encoders.json", dump_json(result) + "\n")
    write_atomically(args.out / "bench_encoders.md", table(result))
    print(table(result))


if __name__ == "__main__":
    main()

"""What it costs to change depth between two tokens, and what the runtime adds to the engine's time for each token.

Down: the time of `switch`, and proof that no cache buffer moved or changed. Up: the time of the switch and the token
behind it, with the missing tokens run again or passed over, and what passing over them does to quality. Overhead: the
time from token to token in `generate` less the time in ONNX Runtime. All levels are open and tied to the cache
beforehand.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
from environment import describe

from blockexport.core.data import Dataset
from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.quality import evaluate
from blockexport.datasets import load_dataset
from blockexport.models.loading import load_model
from blockexport.pipeline.build import BuildOptions, build
from blockexport.runtime import Runtime, Session, load
from blockexport.runtime.sampling import Sampling, choose
from blockexport.runtime.switch_quality import switch_quality

MODEL = "demo:code-lm"
# The greedy ladder of results/bench_quality.json.
KEPT = (tuple(range(16)), (0, 1, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15), (0, 1, 5, 6, 8, 9, 12, 15), (0, 5, 6, 9))
HOLES = (16, 64, 256)
BATCHES = (1, 4)
NUM_NEW = 64
# Of a model whose vocabulary is large.
LARGE_VOCAB = 151_936


class TimedSession(onnxruntime.InferenceSession):
    """Adds up the time spent in ONNX Runtime."""

    spent_ns = 0

    def run_with_iobinding(self, *args: Any, **kwargs: Any) -> None:
        """Run, timed."""
        started = time.perf_counter_ns()
        super().run_with_iobinding(*args, **kwargs)
        TimedSession.spent_ns += time.perf_counter_ns() - started


def _microseconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e3


def _summary(samples: list[float]) -> dict[str, float]:
    return {"median": median(samples), "min": min(samples), "max": max(samples), "n": len(samples)}


def _prompt(tokens: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(tokens).integers(1, 1024, (batch, tokens))


def _rotated(items: Iterable[Any], turn: int) -> list[Any]:
    listed = list(items)
    return listed[turn % len(listed) :] + listed[: turn % len(listed)]


def _memory(session: Session) -> list[tuple[int, str]]:
    """Address and digest of every buffer of the cache."""
    parts = [part for row in session.cache.rows.values() for part in row]
    return [(part.ctypes.data, hashlib.sha256(part.tobytes()).hexdigest()) for part in parts]


def down(runtime: Runtime, rounds: int) -> dict[str, Any]:
    """Microseconds of a switch to the next shallower level between two tokens."""
    names = [level.name for level in runtime.levels]
    samples: dict[str, list[float]] = {}
    for turn in range(rounds):
        for batch in _rotated(BATCHES, turn):
            with runtime.start(_prompt(32 + turn, batch)) as session:
                session.prepare(*names)
                session.step()
                for name in names[1:]:
                    before = _memory(session) if turn == 0 else None
                    samples.setdefault(f"batch {batch}", []).append(
                        _microseconds(lambda name=name, session=session: session.switch(name))
                    )
                    if before is not None and _memory(session) != before:
                        msg = "a switch touched the cache"
                        raise AssertionError(msg)
                    session.step()
    return {"microseconds": {name: _summary(values) for name, values in samples.items()}, "buffers_unchanged": True}


def up(runtime: Runtime, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a switch from the shallowest to the deepest level and the next token, by tokens missing."""
    deepest, shallowest = runtime.levels[0].name, runtime.levels[-1].name
    rows = []
    for hole in HOLES:
        samples: dict[str, list[float]] = {"reprefill": [], "masked": [], "plain token": []}
        for turn in range(rounds):
            for mode in _rotated(("reprefill", "masked"), turn):
                with runtime.start(_prompt(hole), level=shallowest) as session:
                    session.prepare(deepest)
                    session.step()

                    def switched(session: Session = session, mode: str = mode) -> None:
                        session.switch(deepest, up=mode)
                        session.step()

                    samples[mode].append(_microseconds(switched) / 1e3)
                    samples["plain token"].append(_microseconds(session.step) / 1e3)
        row: dict[str, Any] = {"missing_tokens": hole, "milliseconds": {k: _summary(v) for k, v in samples.items()}}
        row["reprefill_to_masked"] = median(samples["reprefill"]) / median(samples["masked"])
        rows.append(row)
    return rows


def overhead(runtime: Runtime, rounds: int) -> list[dict[str, Any]]:
    """Microseconds from token to token of `generate`, outside ONNX Runtime; choosing the token is inside."""
    rows = []
    for batch in BATCHES:
        samples: dict[str, list[float]] = {level.name: [] for level in runtime.levels}
        for turn in range(rounds + 1):
            for name in _rotated(samples, turn):
                taken = _outside_engine(runtime, name, batch)
                # The first round warms up.
                samples[name] += taken if turn else []
        rows.append({"batch": batch, "microseconds": {name: _summary(values) for name, values in samples.items()}})
    return rows


def _outside_engine(runtime: Runtime, level: str, batch: int) -> list[float]:
    marks: list[int] = []

    def mark(row: int, _token: int) -> None:
        if row == 0:
            marks.append(time.perf_counter_ns() - TimedSession.spent_ns)

    runtime.generate(_prompt(32, batch), NUM_NEW, level=level, stop_tokens=[], on_token=mark)
    return [(after - before) / 1e3 for before, after in pairwise(marks)]


def sampling(rounds: int) -> dict[str, Any]:
    """Microseconds to choose a token, by size of vocabulary and settings."""
    settings = {"greedy": Sampling(), "top_p 0.9": Sampling(1.0, top_p=0.9), "top_k 50": Sampling(1.0, top_k=50)}
    rng, result = np.random.default_rng(0), {}
    for vocab_size in (1024, LARGE_VOCAB):
        logits = rng.normal(0, 3, (1, vocab_size)).astype(np.float32)
        for name, setting in settings.items():
            taken = [_microseconds(lambda s=setting, x=logits: choose(x, s, rng)) for _ in range(5 * rounds)]
            result[f"{name}, {vocab_size} tokens"] = _summary(taken)
    return result


def quality(runtime: Runtime, data: Dataset) -> dict[str, float]:
    """Bits per byte when each text's first half is read by a shallow level, and the rest by the deepest."""
    deepest, shallow = runtime.levels[0].name, runtime.levels[2].name
    figures = {name: evaluate(runtime.engines.whole_pass(name), data) for name in (deepest, shallow)}
    for mode in ("reprefill", "masked"):
        figures[f"{shallow}, then {deepest} {mode}"] = switch_quality(runtime.engines, data, shallow, deepest, mode)
    return {name: figure.metrics["bits_per_byte"].value for name, figure in figures.items()}


def measure(rounds: int, num_texts: int) -> dict[str, Any]:
    """Build the ladder, then answer each part of the question."""
    model = load_model(MODEL)
    data = load_dataset(MODEL, model.spec, model.tokenizer_dir, split="test")
    texts = Dataset("texts", tuple(sample for sample in data.samples if sample.metric == "bits_per_byte")[:num_texts])
    ladder = DepthLadder.from_masks([DepthMask.from_kept(kept, 16) for kept in KEPT])
    onnxruntime.InferenceSession = TimedSession
    with tempfile.TemporaryDirectory() as folder:
        build(model, ladder, out=Path(folder) / "bundle", options=BuildOptions(data=texts.take(2, 0)))
        runtime = load(Path(folder) / "bundle", threads=1, warm_up=[level.name for level in ladder.levels])
        before = describe()
        return {
            "question": "what does a change of depth cost between two tokens, and the runtime for each token?",
            "model": MODEL,
            "threads": 1,
            "down": down(runtime, rounds),
            "up": up(runtime, rounds),
            "overhead_per_token": overhead(runtime, rounds),
            "sampling_microseconds": sampling(rounds),
            "bits_per_byte": quality(runtime, texts),
            "before": before,
            "after": describe(),
        }


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--texts", type=int, default=64)
    args = parser.parse_args()
    result = measure(args.rounds, args.texts)
    write_atomically(args.out / "bench_switch.json", dump_json(result) + "\n")
    for name, summary in result["down"]["microseconds"].items():
        print(f"switch down, {name}: {summary['median']:.0f} us ({summary['min']:.0f} to {summary['max']:.0f})")
    for row in result["overhead_per_token"]:
        for name, summary in row["microseconds"].items():
            print(f"overhead for each token, batch {row['batch']}, {name}: {summary['median']:.0f} us")
    for row in result["up"]:
        print(f"up over {row['missing_tokens']} tokens: reprefill / masked = {row['reprefill_to_masked']:.1f}")
    for name, value in result["bits_per_byte"].items():
        print(f"bits per byte, {name}: {value:.3f}")


if __name__ == "__main__":
    main()

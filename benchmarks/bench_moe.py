"""How fast are mixtures of experts: which form of them, what does depth save, and how far ahead of transformers?

Forms: one mixture of 64 experts, 8 for each token, as it was gathered before, with all experts for all tokens, with
ONNX Runtime's operator and with ours, in fp32, and the last two in int8 and int4. A new routing for every run.

Engines: a decoder in the shape of MolmoE-1B's text stack (moe_shape.py; narrower, which is said in the result), all
depths with native and stock operators, and transformers with its loop over experts and with `grouped_mm`. A
measurement is 8 decode steps behind 128 tokens, or a prompt of 128; tokens are random and new for each.

What is compared runs in turn, the order rotates from round to round, and each round measures the bandwidth of reading
memory. Loading is left out. Memory: about 5 GiB at the default widths; stock operators pack fp32 weights for each depth
and take more.

    bench_moe.py --out FOLDER
    bench_moe.py --out FOLDER --parts engines --precisions fp32 --operators native    # depth and transformers only
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from environment import describe
from machine import read_gb_per_s
from moe_forms import CHOSEN, FORMS, NUM_EXPERTS, Shape, open_form, random_weights
from moe_shape import KEPT, active_bytes, make_model, mark, write_engines
from transformers import DynamicCache

from blockexport.core.engine import StepInputs
from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.models.loaded import LoadedModel
from blockexport.runtime.engines import Engines
from blockexport_kernels.ort_cpu.library import find_or_build

PARTS = ("forms", "engines")
OPERATORS = ("stock", "native")
TOKENS = 128
STEPS = 8
_PROBE_BYTES = 1 << 28
# Gathering the experts of so many tokens would copy gigabytes.
_MOST_GATHERED = 16
_TRANSFORMERS = {"loop": "eager", "grouped_mm": "grouped_mm"}


@dataclass(slots=True)
class Series:
    """One thing that is measured again and again.

    Attributes:
        what: says which one it is.
        call: runs it once.
        active_bytes: weights that it has to read.
        steps: how many of what is reported one call runs.
        times_ms: found so far, of one step.
    """

    what: dict[str, Any]
    call: Callable[[], Any]
    active_bytes: int | None = None
    steps: int = 1
    times_ms: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Measure once."""
        started = time.perf_counter()
        self.call()
        self.times_ms.append((time.perf_counter() - started) * 1e3 / self.steps)

    def row(self, gb_per_s: list[float]) -> dict[str, Any]:
        """Medians and ranges, and where weights decide the time, the share of the bandwidth that they are read at."""
        row = self.what | {"n": len(self.times_ms), "environment": describe()}
        row |= {"median_ms": median(self.times_ms), "min_ms": min(self.times_ms), "max_ms": max(self.times_ms)}
        if self.active_bytes is not None:
            rates = [self.active_bytes / time_ms / 1e6 for time_ms in self.times_ms]
            shares = [rate / limit for rate, limit in zip(rates, gb_per_s, strict=True)]
            row |= {"active_bytes": self.active_bytes, "gb_per_s": median(rates)}
            row["share_of_read_bandwidth"] = {"median": median(shares), "min": min(shares), "max": max(shares)}
        return row


def _run(series: list[Series], rounds: int, threads: int) -> list[float]:
    """All of them in turn; the bandwidth of each round."""
    bandwidth = []
    for number in range(-1, rounds):
        for one in series[number % len(series) :] + series[: number % len(series)]:
            one.run()
        bandwidth.append(read_gb_per_s(threads, _PROBE_BYTES))
        if number < 0:  # warm-up
            bandwidth.clear()
            for one in series:
                one.times_ms.clear()
    return bandwidth


def _ratios(over: Series, under: Series) -> dict[str, float]:
    """Of times in the same round."""
    found = [a / b for a, b in zip(over.times_ms, under.times_ms, strict=True)]
    return {"median": median(found), "min": min(found), "max": max(found)}


def measure_forms(width: int, rounds: int, threads: int, folder: Path, library: Path) -> list[dict[str, Any]]:
    """Every form of one mixture."""
    rng = np.random.default_rng(0)
    rows = []
    for precision in ("fp32", "int8", "int4"):
        shape = Shape(width, width // 2, precision)
        arrays = random_weights(shape, rng)
        for tokens in (1, _MOST_GATHERED, TOKENS):
            names = [
                form
                for form in (FORMS if precision == "fp32" else ("stock", "native"))
                if form != "gathered" or tokens <= _MOST_GATHERED
            ]
            sessions = {
                form: open_form(form, shape, tokens, arrays, library=library, folder=folder, threads=threads)
                for form in names
            }
            rows += _forms_of(shape, tokens, sessions, rounds, threads, rng)
            del sessions
            for file in folder.iterdir():
                file.unlink()
    return rows


def _forms_of(
    shape: Shape, tokens: int, sessions: dict[str, Any], rounds: int, threads: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    def feeds() -> dict[str, np.ndarray]:
        experts = np.stack([rng.permutation(NUM_EXPERTS)[:CHOSEN] for _ in range(tokens)])
        weights = rng.random((tokens, CHOSEN), dtype=np.float32) + np.float32(0.01)
        return {
            "x": rng.standard_normal((tokens, shape.width), dtype=np.float32),
            "experts": experts,
            "weights": weights,
        }

    same = feeds()
    outputs = {form: session.run(None, same)[0] for form, session in sessions.items()}
    largest = float(np.abs(outputs["native"]).max())
    series = {}
    for form, session in sessions.items():
        difference = float(np.abs(outputs[form] - outputs["native"]).max()) / largest
        what = {"form": form, "precision": shape.precision, "width": shape.width, "inner": shape.inner}
        what |= {"tokens": tokens, "largest_relative_difference_to_native": difference}
        bytes_read = shape.active_bytes if tokens == 1 else None
        # A run of its own inputs; making them is outside the clock.
        queue = [feeds() for _ in range(rounds + 1)]
        series[form] = Series(what, partial(_next_run, session, queue), bytes_read)
    bandwidth = _run(list(series.values()), rounds, threads)
    rows = []
    for one in series.values():
        rows.append(
            one.row(bandwidth) | {"read_gb_per_s": median(bandwidth), "over_native": _ratios(one, series["native"])}
        )
        print(rows[-1]["precision"], tokens, rows[-1]["form"], f"{rows[-1]['median_ms']:.2f} ms", flush=True)
    return rows


def _next_run(session: Any, queue: list[dict[str, np.ndarray]]) -> None:
    session.run(None, queue.pop())


def _engine_series(
    name: str, engines: Engines, model: LoadedModel, precision: str, rng: np.random.Generator
) -> Iterator[Series]:
    vocabulary = model.spec.vocab_size
    for depth in KEPT:
        what = {"runs": name, "precision": precision, "depth": depth}
        decoder = engines.decoder(f"d{depth}")
        bound = decoder.bind(engines.new_cache(1, TOKENS + STEPS + 1).rows)
        steps = [StepInputs.following(np.ones((1, 1), np.int64), np.array([TOKENS + step])) for step in range(STEPS)]

        def decode(bound: Any = bound, steps: list[StepInputs] = steps) -> None:
            for inputs in steps:
                inputs.input_ids[:] = rng.integers(0, vocabulary, (1, 1))
                bound.step(inputs)

        prompt = StepInputs.prompt(np.ones((1, TOKENS), np.int64), np.array([TOKENS]))

        def prefill(bound: Any = bound, prompt: StepInputs = prompt) -> None:
            prompt.input_ids[:] = rng.integers(0, vocabulary, (1, TOKENS))
            bound.step(prompt)

        yield Series(what | {"phase": "decode"}, decode, active_bytes(model, precision, depth), STEPS)
        yield Series(what | {"phase": "prompt"}, prefill)


def _transformers_series(name: str, model: LoadedModel, rng: np.random.Generator) -> Iterator[Series]:
    module: Any = model.module
    what = {"runs": f"transformers, {name}", "precision": "fp32", "depth": max(KEPT)}
    cache = DynamicCache(config=module.config)

    def tokens(count: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, model.spec.vocab_size, (1, count)))

    @torch.inference_mode()
    def prefill() -> None:
        module.set_experts_implementation(_TRANSFORMERS[name])
        module(
            input_ids=tokens(TOKENS),
            use_cache=True,
            logits_to_keep=1,
            past_key_values=DynamicCache(config=module.config),
        )

    @torch.inference_mode()
    def decode() -> None:
        module.set_experts_implementation(_TRANSFORMERS[name])
        for _ in range(STEPS):
            module(input_ids=tokens(1), past_key_values=cache, use_cache=True)
        cache.crop(-STEPS)

    with torch.inference_mode():
        module(input_ids=tokens(TOKENS), past_key_values=cache, use_cache=True)
    yield Series(what | {"phase": "decode"}, decode, active_bytes(model, "fp32", max(KEPT)), STEPS)
    yield Series(what | {"phase": "prompt"}, prefill)


def _difference(model: LoadedModel, engines: Engines, rng: np.random.Generator) -> float:
    """Of the logits of a prompt at full depth, over the largest of them."""
    module: Any = model.module
    tokens = rng.integers(0, model.spec.vocab_size, (1, TOKENS))
    with torch.inference_mode():
        wanted = module(input_ids=torch.from_numpy(tokens)).logits.numpy()
    found = engines.whole_pass(f"d{max(KEPT)}")({"input_ids": tokens, "attention_mask": np.ones_like(tokens)})
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def measure_engines(
    width: int, rounds: int, threads: int, precisions: list[str], operators: list[str], folder: Path
) -> dict[str, Any]:
    """Engines of all depths, with these kinds of operators, and transformers."""
    torch.set_num_threads(threads)
    rng = np.random.default_rng(1)
    model = make_model(width)
    series: list[Series] = []
    differences = {}
    marked = mark(model)
    for precision in precisions:
        place = folder / precision
        place.mkdir()
        written = write_engines(model, marked, precision, place, threads)
        for kind, engines in ((kind, written[kind]) for kind in operators):
            if precision == "fp32":
                differences[kind] = _difference(model, engines, rng)
            series += _engine_series(kind, engines, model, precision, rng)
    del marked
    gc.collect()
    for name in _TRANSFORMERS:
        series += _transformers_series(name, model, rng)
    bandwidth = _run(series, rounds, threads)
    return {
        "width": width,
        "vocabulary": model.spec.vocab_size,
        "largest_relative_difference_to_transformers": differences,
        "read_gb_per_s": {"median": median(bandwidth), "min": min(bandwidth), "max": max(bandwidth)},
        "rows": [_engine_row(one, series, bandwidth) for one in series],
    }


def _engine_row(one: Series, series: list[Series], bandwidth: list[float]) -> dict[str, Any]:
    """With its ratio to the same at full depth, and of transformers to it."""

    def like(**changed: Any) -> Series:
        wanted = one.what | changed
        return next(other for other in series if other.what == wanted)

    row = one.row(bandwidth) | {"over_full_depth": _ratios(one, like(depth=max(KEPT)))}
    for name in _TRANSFORMERS:
        reference = like(runs=f"transformers, {name}", precision="fp32", depth=max(KEPT))
        row[f"transformers_{name}_over_this"] = _ratios(reference, one)
    return row


def table(result: dict[str, Any]) -> str:
    """Ratios, for people."""

    def span(ratio: dict[str, float]) -> str:
        return f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"

    lines = ["| mixture | tokens | form | over native | active weights / read bandwidth |", "|---|---|---|---|---|"]
    for row in result.get("forms", ()):
        share = row.get("share_of_read_bandwidth")
        cells = (row["precision"], row["tokens"], row["form"], span(row["over_native"]), span(share) if share else "")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if "engines" not in result:
        return "\n".join(lines) + "\n"
    names = ("runs", "weights", "blocks", "phase", "over full depth", "transformers loop / this", "grouped_mm / this")
    lines += ["", f"| {' | '.join(names)} | active weights / read bandwidth |", "|---|---|---|---|---|---|---|---|"]
    for row in result["engines"]["rows"]:
        share = row.get("share_of_read_bandwidth")
        cells = (row["runs"], row["precision"], row["depth"], row["phase"], span(row["over_full_depth"]))
        others = [span(row[f"transformers_{name}_over_this"]) for name in _TRANSFORMERS]
        lines.append("| " + " | ".join(map(str, (*cells, *others, span(share) if share else ""))) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--form-width", type=int, default=1024, help="of the single mixture; MolmoE-1B has 2048")
    parser.add_argument("--width", type=int, default=512, help="of the decoder; MolmoE-1B has 2048")
    parser.add_argument("--precisions", nargs="+", default=["int4g32", "int8g32", "fp32"], help="of the engines")
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=OPERATORS, help="of the engines")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    before = describe()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        parts: dict[str, Any] = {}
        if "forms" in args.parts:
            (folder / "forms").mkdir()
            library = find_or_build(folder / "library")
            parts["forms"] = measure_forms(args.form_width, args.rounds, args.threads, folder / "forms", library)
            gc.collect()
        if "engines" in args.parts:
            chosen = (args.precisions, args.operators, folder)
            parts["engines"] = measure_engines(args.width, args.rounds, args.threads, *chosen)
    result = {
        "question": "how fast are mixtures of experts: which form, what does depth save, how far from transformers?",
        "shape": {"past_tokens": TOKENS, "prompt_tokens": TOKENS, "threads": args.threads, "rounds": args.rounds},
        **parts,
        "before": before,
        "after": describe(),
    }
    write_atomically(args.out / "bench_moe.json", dump_json(result) + "\n")
    write_atomically(args.out / "bench_moe.md", table(result))
    print(table(result))


if __name__ == "__main__":
    main()

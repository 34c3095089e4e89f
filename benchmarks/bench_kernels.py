"""Are the operators of `blockexport_kernels.ort_cpu` faster than ONNX Runtime's own?

One graph for each side holds the same operator many times, each with weights of its own, so that no weights are found
in a cache; both graphs refer to one file, which ONNX Runtime's side also copies and packs when its session opens. The
time of a run is divided by the number of operators: dispatch, quantising the activations and all else is in it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from environment import describe

from blockexport.core.jsonio import dump_json, write_atomically
from blockexport_kernels.ort_cpu.library import DOMAIN, find_or_build, path_of

SHAPES = ((896, 4864), (4864, 896), (896, 1152), (896, 32768))
LARGEST = (896, 151936)
FORMATS = ((4, 32), (4, 128), (8, 32), (8, 128), (16, 0), (32, 0))  # bits, block; 32: fp32, 16: bf16
COLD_BYTES = {
    1: 128 * 2**20,
    128: 24 * 2**20,
}  # rows of activations -> weights in a graph; with many, time is arithmetic
PROBE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Case:
    """One operator: (rows, k) times (n, k)^T."""

    bits: int
    block: int
    k: int
    n: int
    rows: int

    @property
    def weight_bytes(self) -> int:
        """Codes and scales that one operator reads."""
        if not self.block:
            return self.n * self.k * self.bits // 8
        return self.n * -(-self.k // self.block) * (self.block * self.bits // 8 + 4)

    @property
    def num_copies(self) -> int:
        """Operators in a graph."""
        return max(2, -(-COLD_BYTES[self.rows] // self.weight_bytes))


def _weights(case: Case, rng: np.random.Generator, copy: int) -> dict[str, np.ndarray]:
    if not case.block:
        kind = np.float32 if case.bits == 32 else ml_dtypes.bfloat16
        return {f"w{copy}": rng.standard_normal((case.n, case.k), dtype=np.float32).astype(kind, copy=False)}
    blocks = -(-case.k // case.block)
    codes = rng.integers(0, 256, (case.n, blocks, case.block * case.bits // 8), dtype=np.uint8)
    return {f"b{copy}": codes, f"s{copy}": rng.random((case.n, blocks), dtype=np.float32) * 0.02}


def _operator(case: Case, ours: bool) -> tuple[str, str, dict[str, int]]:
    """Domain, name and attributes."""
    if not case.block:
        # As the engines are exported: ONNX Runtime multiplies by a transposed weight directly.
        return (DOMAIN, "MatMul", {}) if ours else ("com.microsoft", "FusedMatMul", {"transB": 1})
    attributes = {"K": case.k, "N": case.n, "bits": case.bits, "block_size": case.block}
    if ours:
        return DOMAIN, "MatMulNBits", attributes
    return "com.microsoft", "MatMulNBits", {**attributes, "accuracy_level": 4}


def _graph(case: Case, copies: list[dict[str, np.ndarray]], ours: bool) -> ir.Model:
    a = ir.Value(name="a", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([case.rows, case.k]))
    domain, name, attributes = _operator(case, ours)
    nodes, initializers = [], []
    for number, arrays in enumerate(copies):
        tensors = [ir.tensor(array, name=key) for key, array in arrays.items()]
        weights = [ir.Value(name=t.name, type=ir.TensorType(t.dtype), shape=t.shape, const_value=t) for t in tensors]
        initializers += weights
        y = ir.Value(name=f"y{number}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([case.rows, case.n]))
        settings = [ir.AttrInt64(key, value) for key, value in attributes.items()]
        if case.bits == 16 and not ours:
            # ONNX Runtime widens constants when a session opens, and reads fp32 from then on.
            nodes.append(ir.node("Cast", weights, {"to": ir.DataType.FLOAT}))
            weights = [nodes[-1].outputs[0]]
        nodes.append(ir.Node(domain, name, [a, *weights], attributes=settings, outputs=[y]))
    outputs = [node.outputs[0] for node in nodes if node.op_type == name]
    opsets = {"": 21, "com.microsoft": 1, DOMAIN: 1}
    graph = ir.Graph([a], outputs, nodes=nodes, initializers=initializers, opset_imports=opsets, name="operators")
    return ir.Model(graph, ir_version=10)


class Side:
    """A session with its inputs and outputs bound."""

    def __init__(self, path: Path, library: Path | None, a: np.ndarray, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Else this side's threads would still spin when the other is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if library is not None:
            options.register_custom_ops_library(str(library))
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input("a", ort.OrtValue.ortvalue_from_numpy(a))
        self._outputs = []
        for output in self._session.get_outputs():
            value = ort.OrtValue.ortvalue_from_numpy(np.zeros(output.shape, np.float32))
            self._binding.bind_ortvalue_output(output.name, value)
            self._outputs.append(value)

    def run(self) -> None:
        """All operators once."""
        self._session.run_with_iobinding(self._binding)

    def result(self) -> np.ndarray:
        """Of the last operator."""
        return np.asarray(self._outputs[-1].numpy())


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _compare(case: Case, library: Path, threads: int, rounds: int, read: Callable[[], float]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    copies = [_weights(case, rng, copy) for copy in range(case.num_copies)]
    a = rng.standard_normal((case.rows, case.k), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for name in ("ours", "onnxruntime"):
            path = Path(folder) / f"{name}.onnx"
            ir.save(_graph(case, copies, name == "ours"), path, external_data="weights.bin")
            sides[name] = Side(path, library if name == "ours" else None, a, threads)
        del copies
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        read_gb_s = []
        for number in range(rounds):
            read_gb_s.append(read())
            for name in sorted(sides, reverse=bool(number % 2)):
                sides[name].run()
                seconds[name].append(_seconds(sides[name].run) / case.num_copies)
        largest = float(np.abs(sides["ours"].result()).max())
        difference = float(np.abs(sides["ours"].result() - sides["onnxruntime"].result()).max()) / largest
    return _row(case, seconds, read_gb_s, difference)


def _row(case: Case, seconds: dict[str, list[float]], read_gb_s: list[float], difference: float) -> dict[str, Any]:
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["onnxruntime"], strict=True)]
    row: dict[str, Any] = {**asdict(case), "num_copies": case.num_copies, "largest_relative_difference": difference}
    row["read_gb_s"] = {"median": median(read_gb_s), "min": min(read_gb_s), "max": max(read_gb_s)}
    row["ratio_onnxruntime_to_ours"] = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
    for name, samples in seconds.items():
        row[name] = {
            "us": median(samples) * 1e6,
            "weights_gb_s": case.weight_bytes / median(samples) / 1e9,
            "gop_s": 2 * case.rows * case.k * case.n / median(samples) / 1e9,
        }
    return row


def _print(row: dict[str, Any]) -> None:
    unit = "weights_gb_s" if row["rows"] == 1 else "gop_s"
    ratio = row["ratio_onnxruntime_to_ours"]
    print(
        f"{row['bits']:2} bit block {row['block']:3} {row['k']:5} x {row['n']:6} rows {row['rows']:3}: "
        f"ratio {ratio['median']:.2f} [{ratio['min']:.2f}-{ratio['max']:.2f}]  "
        f"ours {row['ours']['us']:8.0f} us {row['ours'][unit]:6.1f} {unit}  "
        f"onnxruntime {row['onnxruntime']['us']:8.0f} us {row['onnxruntime'][unit]:6.1f}  "
        f"memory {row['read_gb_s']['median']:.0f} GB/s  differ {row['largest_relative_difference']:.1e}",
        flush=True,
    )


def measure(library: Path, threads: int, rounds: int, formats: list[tuple[int, int]]) -> dict[str, Any]:
    """All shapes in each of the formats; bandwidth of memory is measured in every round."""
    before = describe()
    parts = np.array_split(np.ones(PROBE_BYTES // 8, np.int64), threads)
    rows = []
    with ThreadPoolExecutor(threads) as pool:

        def read() -> float:
            return PROBE_BYTES / _seconds(lambda: list(pool.map(np.bitwise_xor.reduce, parts))) / 1e9

        read()
        for bits, block in formats:
            shapes = SHAPES + ((LARGEST,) if (bits, block) == (4, 32) else ())
            cases = [Case(bits, block, k, n, count) for k, n in shapes for count in (1, 128)]
            for case in cases:
                if case.rows > 1 and case.n > 32768:
                    continue  # a prompt sends one row through the head
                rows.append(_compare(case, library, threads, rounds, read))
                _print(rows[-1])
    return {
        "question": "are the operators of blockexport_kernels.ort_cpu faster than those of ONNX Runtime?",
        "path": path_of(library),
        "threads": threads,
        "rounds": rounds,
        "rows": rows,
        "before": before,
        "after": describe(),
    }


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bits", type=int, choices=(4, 8, 16, 32), help="only formats of so many bits")
    args = parser.parse_args()
    formats = [(bits, block) for bits, block in FORMATS if args.bits in {None, bits}]
    with tempfile.TemporaryDirectory() as cache:
        result = measure(find_or_build(Path(cache)), args.threads, args.rounds, formats)
    write_atomically(args.out / "bench_kernels.json", dump_json(result) + "\n")


if __name__ == "__main__":
    main()

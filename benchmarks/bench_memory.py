"""What four levels loaded at once hold in memory against the deepest alone, for each way of sharing weights.

A random decoder in the shape of Qwen2.5-0.5B (`--model small` for a tenth of it), levels of 24, 18, 12 and 6 blocks,
fp32 and int4. Each figure is of a fresh process that opens the levels, runs each once on a prompt of 8 tokens and reads
its PSS; that of the process before anything was opened stands beside. Every way gives freed memory back after each
level, as `open_session` does, and, where it is the caller who maps the bundle's file, pages that only packing has read.
Then the time to the first usable level of a fresh process, with the bundle's own graphs and with packed ones, file
pages warm for both: the packed entry is checked against its digests in one variant and not in another.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from environment import describe

from blockexport.core.jsonio import dump_json, write_atomically

DEPTHS = (24, 18, 12, 6)
PRECISIONS = ("fp32", "int4")
WAYS = {
    "default": "each session packs its own",
    "native": "our operators, which read weights where they lie",
    "no packing": "`session.disable_prepacking`",
    "packed cache": "packed once into a file that all levels map (`PackedCache`)",
    "add_initializer": "weights handed to each session as shared values",
    "container": "the same, and a prepacked-weights container through the C interface",
    "one at a time": "a level is closed before the next is opened",
}
# Whatever the other ways give must be what the default gives, to the last bit; these run other kernels.
_OTHER_KERNELS = ("no packing", "native")
_SIZES = {
    "large": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "vocab_size": 151936,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "small": {
        "hidden_size": 448,
        "intermediate_size": 1216,
        "vocab_size": 16000,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
    },
}
_PROMPT_TOKENS = 8
_CAPACITY_TOKENS = 64


# ---------------------------------------------------------------- the bundles


def _make_bundles(size: str, folder: Path) -> None:
    """Write one folder of graphs and weights for each precision; kept if it is there."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from blockexport.core.precision import Precision
    from blockexport.export.lower import ort
    from blockexport.export.trace import trace
    from blockexport.models.loaded import as_loaded
    from blockexport.quantization.graph import quantise_graph

    torch.manual_seed(0)
    config = Qwen2Config(num_hidden_layers=DEPTHS[0], tie_word_embeddings=True, **_SIZES[size])
    marked = ort.lower(trace(as_loaded(Qwen2ForCausalLM(config).eval())))
    _write_bundle(marked, folder / "fp32")
    _write_bundle(quantise_graph(marked, Precision.parse("int4")).model, folder / "int4")


def _write_bundle(stock: Any, folder: Path) -> None:
    from blockexport.bundle.layout import WEIGHTS_FILE
    from blockexport.bundle.weights import write_weights
    from blockexport.export.cut import cut
    from blockexport.export.graph_file import shared_tensors, to_bytes
    from blockexport.export.lower.native import use_native_operators
    from blockexport.export.trace import block_unit

    folder.mkdir(parents=True)
    last = DEPTHS[0] - 1
    marked = {"stock": stock, "native": use_native_operators(stock)}
    tensors = {name: tensor for graph in marked.values() for name, tensor in shared_tensors(graph).items()}
    locations = write_weights(folder / WEIGHTS_FILE, tensors)
    for depth in DEPTHS:
        kept = {round(index * last / (depth - 1)) for index in range(depth)}
        skipped = [block_unit(block) for block in range(DEPTHS[0]) if block not in kept]
        for operators, graph in marked.items():
            (folder / _graph(depth, operators)).write_bytes(to_bytes(cut(graph, skipped), locations))


def _graph(depth: int, operators: str = "stock") -> str:
    return f"d{depth}.{operators}.onnx"


# ---------------------------------------------------------------- one process


def _pss_mb() -> dict[str, float]:
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    sizes = {words[0].rstrip(":"): int(words[1]) / 1e3 for words in lines}
    return {"pss": sizes["Pss"], "private": sizes["Anonymous"]}


def _inputs(session: Any) -> dict[str, Any]:
    fixed = {
        "input_ids": np.random.default_rng(0).integers(0, 1000, (1, _PROMPT_TOKENS)),
        "position_ids": np.arange(_PROMPT_TOKENS)[None],
        "total_tokens": np.array(_PROMPT_TOKENS, np.int32),
        "logits_index": np.array([[_PROMPT_TOKENS - 1]]),
    }
    made: dict[str, Any] = {}
    for value in session.get_inputs():
        if value.name.startswith("last_slot"):
            made[value.name] = np.array([_PROMPT_TOKENS - 1], np.int32)
        elif value.name in fixed:
            made[value.name] = fixed[value.name]
        else:
            made[value.name] = np.zeros((1, value.shape[1], _CAPACITY_TOKENS, value.shape[3]), np.float32)
    return made


def _open_levels(folder: Path, way: str, depths: tuple[int, ...]) -> dict[str, Any]:
    """Open levels in one of the ways and run each once; seconds of each, and a checksum of the logits."""
    import onnxruntime

    from blockexport.backends.onnxruntime.external_data import read_external
    from blockexport.backends.onnxruntime.session import give_back_memory

    mapped = None
    shared: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    if way in ("add_initializer", "container"):
        from prepacked_container import Container, Mapped

        mapped = Mapped(folder / "weights.safetensors", read_external(folder / _graph(depths[0])))
        weights = mapped.arrays
    if way == "add_initializer":
        shared = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}
    container = Container(weights) if way == "container" else None
    held, seconds, sums = [], [], []
    peak = _pss_mb()
    for depth in depths:
        if way == "one at a time":
            held.clear()
        started = time.perf_counter()
        path = folder / _graph(depth, "native" if way == "native" else "stock")
        if container is not None:
            held.append(container.open(path))
            give_back_memory()
            seconds.append(time.perf_counter() - started)
            logits = container.run(held[-1], _inputs(_signature(path)), "logits", _num_logits(path))
            sums.append(float(logits.astype(np.float64).sum()))
            continue
        options = _options(way, shared)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        give_back_memory()
        seconds.append(time.perf_counter() - started)
        sums.append(float(session.run(["logits"], _inputs(session))[0].astype(np.float64).sum()))
        held.append(session)
        del session
        gc.collect()
        peak = max(peak, _pss_mb(), key=lambda sizes: sizes["pss"])
    if mapped is not None:
        mapped.let_go()
    # Of levels that are closed again, the largest is what has to fit.
    sizes = peak if way == "one at a time" else _pss_mb()
    return {"seconds": seconds, "sums": sums, **sizes}


def _options(way: str, shared: dict[str, Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if way == "no packing":
        options.add_session_config_entry("session.disable_prepacking", "1")
    if way == "native":
        from blockexport.backends.onnxruntime.operators import native_library

        options.register_custom_ops_library(str(native_library()))
    for name, value in shared.items():
        options.add_initializer(name, value)
    return options


def _signature(path: Path) -> Any:
    """A session without optimisation and packing would cost memory; the file itself says what it takes."""
    import onnx_ir as ir

    class Signature:
        def get_inputs(self) -> list[Any]:
            return list(ir.load(path).graph.inputs)

    return Signature()


def _num_logits(path: Path) -> int:
    """Of one position, which is all that `_inputs` asks for."""
    import onnx_ir as ir

    shape = ir.load(path).graph.outputs[0].shape
    assert shape is not None
    return int(shape[-1])


def _child(folder: Path, way: str, depths: tuple[int, ...]) -> None:
    # Counted before, not as a cost of the way.
    import onnx_ir  # noqa: F401
    import onnxruntime  # noqa: F401

    before = _pss_mb()
    after = _open_levels(folder, way, depths)
    print(json.dumps(after | {"before_pss": before["pss"]}))


def _in_a_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    value: dict[str, Any] = json.loads(done.stdout)
    return value


# ---------------------------------------------------------------- the measurement


def _memory_row(folders: dict[str, Path], way: str) -> dict[str, Any]:
    folder = folders["packed" if way == "packed cache" else "plain"]
    one = _in_a_process(str(folder), way, str(DEPTHS[0]))
    four = _in_a_process(str(folder), way, ",".join(map(str, DEPTHS)))
    if "failed" in one or "failed" in four:
        return {"way": way, "failed": one.get("failed", four.get("failed"))}
    return {
        "way": way,
        "pss_deepest_mb": one["pss"],
        "pss_all_mb": four["pss"],
        "private_all_mb": four["private"],
        "before_mb": four["before_pss"],
        "opening_all_seconds": sum(four["seconds"]),
        "sums": four["sums"],
    }


def _first_level_seconds(folders: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Seconds from before the deepest level is opened to its first logits, in fresh processes, ways taking turns."""
    samples: dict[str, list[float]] = {"plain": [], "native": [], "packed": [], "packed, digests compared": []}
    for number in range(rounds + 1):
        for name in sorted(samples, reverse=bool(number % 2)):
            folder = folders["packed" if name.startswith("packed") else "plain"]
            seconds = _in_a_process(str(folder), name, "first")["seconds"]
            if number:
                samples[name].append(seconds)
    plain = median(samples["plain"])
    return {
        "seconds": samples,
        "ratio_to_plain": {name: median(values) / plain for name, values in samples.items()},
    }


def _first_child(folder: Path, way: str) -> None:
    import onnxruntime  # noqa: F401

    from blockexport.backends.onnxruntime.operators import native_library
    from blockexport.backends.onnxruntime.session import open_session
    from blockexport.bundle.disk import file_sha256

    # Compiled once a host, which is not what is measured.
    library = native_library() if way == "native" else None

    started = time.perf_counter()
    if way.endswith("compared"):
        for name in ("packed.bin", _graph(DEPTHS[0])):
            file_sha256(folder / name)
    session = open_session(folder / _graph(DEPTHS[0], "stock" if library is None else "native"), library=library)
    session.run(["logits"], _inputs(session))
    print(json.dumps({"seconds": time.perf_counter() - started}))


def measure(size: str, bundles: Path, rounds: int) -> dict[str, Any]:
    """All rows; bundles that are in the folder already are used again."""
    from blockexport.backends.onnxruntime.packing import pack_graphs
    from blockexport.runtime.packed_entry import allocated_bytes

    if not all((bundles / size / precision).is_dir() for precision in PRECISIONS):
        _make_bundles(size, bundles / size)
    before = describe()
    result: dict[str, Any] = {"question": __doc__.splitlines()[0], "model": size, "depths": DEPTHS, "ways": WAYS}
    for precision in PRECISIONS:
        plain = bundles / size / precision
        with tempfile.TemporaryDirectory(dir=bundles) as name:
            packed = Path(name)
            started = time.perf_counter()
            pack_graphs({_graph(depth): plain / _graph(depth) for depth in DEPTHS}, packed)
            packing_seconds = time.perf_counter() - started
            folders = {"plain": plain, "packed": packed}
            result[precision] = {
                "weights_bytes": (plain / "weights.safetensors").stat().st_size,
                "disk_ratio_four_levels_to_one": _disk_bytes(plain, DEPTHS) / _disk_bytes(plain, DEPTHS[:1]),
                "packed_bytes": allocated_bytes(packed),
                "packing_seconds": packing_seconds,
                "memory": _with_ratios([_memory_row(folders, way) for way in WAYS]),
                "first_level": _first_level_seconds(folders, rounds),
            }
    return result | {"before": before, "after": describe()}


def _disk_bytes(folder: Path, depths: tuple[int, ...]) -> int:
    """The weights and the graphs of some levels."""
    graphs = [_graph(depth, operators) for depth in depths for operators in ("stock", "native")]
    return sum((folder / name).stat().st_size for name in ("weights.safetensors", *graphs))


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add what the question asks for: all levels against the deepest alone as everybody opens it."""
    base = rows[0]["pss_deepest_mb"]
    for row in rows:
        if "failed" not in row:
            row["ratio_to_deepest"] = row["pss_all_mb"] / base
            row["ratio_own_deepest"] = row["pss_all_mb"] / row["pss_deepest_mb"]
            if row["sums"] and row["way"] not in _OTHER_KERNELS:
                row["same_logits"] = row["sums"] == rows[0]["sums"]
    return rows


def to_markdown(result: dict[str, Any]) -> str:
    """The tables of the result."""
    lines = [f"# {result['question']}", "", f"Model: {result['model']}, levels {result['depths']}.", ""]
    for precision in PRECISIONS:
        part = result[precision]
        weights_mb, packed_mb = part["weights_bytes"] / 1e6, part["packed_bytes"] / 1e6
        disk = part["disk_ratio_four_levels_to_one"]
        lines += [
            f"## {precision}",
            "",
            f"Weights {weights_mb:.0f} MB; the packed cache takes {packed_mb:.0f} MB more on disk.",
            f"On disk four levels, with both kinds of graphs, take {disk:.4f} times what one does.",
            "",
            "| way | deepest, PSS MB | four levels, PSS MB | of it private | four / deepest by default | same logits |",
            "|---|---|---|---|---|---|",
        ]
        for row in part["memory"]:
            if "failed" in row:
                lines.append(f"| {row['way']} | failed: {row['failed']} | | | | |")
                continue
            same = {True: "yes", False: "NO", None: "-"}[row.get("same_logits")]
            lines.append(
                f"| {row['way']} | {row['pss_deepest_mb']:.0f} | {row['pss_all_mb']:.0f} | {row['private_all_mb']:.0f}"
                f" | {row['ratio_to_deepest']:.2f} | {same} |"
            )
        ratios = part["first_level"]["ratio_to_plain"]
        said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items() if name != "plain")
        packing = part["packing_seconds"] / median(part["first_level"]["seconds"]["plain"])
        lines += ["", f"Time to the first logits of the deepest level, as a ratio to plain: {said}."]
        lines += [f"Packing, once for a host: {packing:.1f} times as long as opening the deepest level plainly.", ""]
    lines += [f"{way}: {what}." for way, what in result["ways"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, write the result."""
    if "--child" in sys.argv:
        folder, way, depths = sys.argv[sys.argv.index("--child") + 1 :]
        if depths == "first":
            _first_child(Path(folder), way)
        else:
            _child(Path(folder), way, tuple(map(int, depths.split(","))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(_SIZES), default="large")
    parser.add_argument("--bundles", type=Path, help="where the bundles are kept; a temporary folder unless given")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as temporary:
        bundles = args.bundles or Path(temporary)
        bundles.mkdir(parents=True, exist_ok=True)
        result = measure(args.model, bundles, args.rounds)
    write_atomically(args.out / "bench_memory.json", dump_json(result) + "\n")
    write_atomically(args.out / "bench_memory.md", to_markdown(result))
    print(to_markdown(result))


if __name__ == "__main__":
    main()

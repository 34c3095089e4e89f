"""What four compiled levels opened at once hold in memory against the deepest alone, and what a step of each takes.

A random decoder of four blocks with 1024 channels, fp32, levels of 4, 3, 2 and 1 blocks, compiled by AOTInductor over
one weight file. Memory is the PSS of a fresh process that opens levels and runs each, less what it was before it opened
the first; no other process has the weights mapped meanwhile, which would take its part of their pages off.
"""

import argparse
import json
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

_HIDDEN = 1024
_CAPACITY, _PROMPT_TOKENS, _STEPS = 256, 64, 50


def _build(folder: Path) -> dict[str, Any]:
    from blockexport.gpu_report.models import SMALL_LADDER, small_decoder
    from blockexport.pipeline.build import build

    bundle = build(small_decoder(_HIDDEN).module, SMALL_LADDER, backends=["onnxruntime", "aotinductor"], out=folder)
    names = [level.name for level in SMALL_LADDER.levels]
    return {"levels": names, "weights_mb": bundle.manifest.weights.size_bytes / 1e6}


def _measure(folder: Path, levels: list[str]) -> dict[str, Any]:
    """Open levels in this process; to be called in a fresh one."""
    from blockexport.bundle.reader import open_bundle
    from blockexport.core.engine import empty_rows
    from blockexport.runtime.compiled import open_packages

    bundle = open_bundle(folder, verify=False)
    layout = {block: (row.num_heads, row.head_dim) for block, row in enumerate(bundle.manifest.model.kv)}
    rows = empty_rows(layout, 1, _CAPACITY, np.dtype(np.float32))
    code, before = open_packages(bundle, threads=1), _pss_mb()
    opened = {level: code.opener.decoder(code.paths[level]).bind(rows) for level in levels}
    step_ms = {level: _step_ms(decoder) for level, decoder in opened.items()}
    return {"levels": levels, "pss_mb": _pss_mb() - before, "step_ms": step_ms}


def _pss_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("Pss:"))


def _step_ms(decoder: Any) -> float:
    from blockexport.core.engine import StepInputs

    decoder.step(StepInputs.prompt(np.arange(_PROMPT_TOKENS)[None], np.array([_PROMPT_TOKENS])))
    inputs = StepInputs.following(np.array([[0]]), np.array([_PROMPT_TOKENS]))
    times = []
    for index in range(_STEPS):
        inputs.input_ids.fill(index)
        begin = time.perf_counter()
        decoder.step(inputs)
        times.append((time.perf_counter() - begin) * 1e3)
    return median(times)


def _in_fresh_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Build, then measure one level and all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--levels", nargs="+", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.build or given.measure:
        print(json.dumps(_build(given.build) if given.build else _measure(given.measure, given.levels)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = f"{name}/bundle"
        built = _in_fresh_process("--build", folder)
        levels = built["levels"]
        rows = [_in_fresh_process("--measure", folder, "--levels", *chosen) for chosen in (levels[:1], levels)]
    ratio = rows[1]["pss_mb"] / rows[0]["pss_mb"]
    result = {"environment": describe(), "weights_mb": built["weights_mb"], "rows": rows, "four_over_one": ratio}
    write_atomically(given.out / "bench_aotinductor.json", dump_json(result) + "\n")
    for row in rows:
        steps = ", ".join(f"{level} {value:.2f} ms" for level, value in row["step_ms"].items())
        print(f"{len(row['levels'])} levels: {row['pss_mb']:.0f} MB, {built['weights_mb']:.0f} MB of weights; {steps}")
    print(f"four levels take {ratio:.3f} of one")


if __name__ == "__main__":
    main()

"""What compilers make of the kernels, each in a process of its own: Triton for GPUs, and torch around the operators."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
OPERATORS = ("decode_attention", "residual_rmsnorm", "kv_backfill", "dequant_gemv")


def run(script: str, *arguments: str, folder: Path, **variables: str) -> Any:
    """What a script of this folder prints, as JSON; Triton starts with an empty cache."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env={**os.environ, "TRITON_CACHE_DIR": str(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# What a program may have on consumer GPUs from capability 8.6 on; an H100 has 227 KiB.
SHARED_BYTES = 99 * 1024


# Those that multiply tiles hold them in shared memory, and twice as much of fp32.
@pytest.mark.parametrize(
    ("dtype", "capability", "only"),
    [("bfloat16", "90", ()), ("float32", "89", ("decode_attention", "kv_backfill"))],
)
def test_kernels_compile_to_machine_code(tmp_path: Path, dtype: str, capability: str, only: tuple[str, ...]) -> None:
    made = run("compile_kernels.py", dtype, capability, *only, folder=tmp_path, TRITON_INTERPRET="0")
    assert {name.split(":")[0].split()[0] for name in made} == set(only or OPERATORS)
    assert all(sizes["cubin_bytes"] > 0 for sizes in made.values())
    assert max(sizes["shared_bytes"] for sizes in made.values()) <= SHARED_BYTES


def test_compilers_of_graphs_see_launches_and_what_they_write(tmp_path: Path) -> None:
    seen = run("trace_operators.py", folder=tmp_path, TRITON_INTERPRET="0")
    assert {name: trace["kernels"] for name, trace in seen.items()} == {
        "decode_attention": ["_attend_kernel", "_combine_kernel"],
        "residual_rmsnorm": ["_residual_rmsnorm_kernel"],
        "kv_backfill": ["_inverse_rms_kernel", "_backfill_kernel"],
        "dequant_gemv": ["_dequant_gemv_kernel"],
    }
    assert {name: len(trace["written"]) for name, trace in seen.items()} == {
        "decode_attention": 2,
        "residual_rmsnorm": 1,
        "kv_backfill": 1,
        "dequant_gemv": 0,
    }


def test_compiled_graphs_carry_the_operators_without_a_break(tmp_path: Path) -> None:
    same = run("compiled_graphs.py", folder=tmp_path, TRITON_INTERPRET="1")
    assert set(same) == {f"{name}, {how}" for name in OPERATORS for how in ("eager", "aot_eager", "autocast")}
    assert all(same.values()), same

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


# The least shared memory that a program may have: 99 KiB on consumer GPUs from 8.6 on, 227 KiB on an H100.
@pytest.mark.parametrize(
    ("dtype", "capability", "shared_bytes"), [("bfloat16", 90, 99 * 1024), ("float32", 89, 99 * 1024)]
)
def test_every_kernel_compiles_to_machine_code(tmp_path: Path, dtype: str, capability: int, shared_bytes: int) -> None:
    made = run("compile_kernels.py", dtype, str(capability), folder=tmp_path, TRITON_INTERPRET="0")
    assert {name.split(":")[0].split()[0] for name in made} == set(OPERATORS)
    assert all(sizes["cubin_bytes"] > 0 for sizes in made.values())
    assert max(sizes["shared_bytes"] for sizes in made.values()) <= shared_bytes


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

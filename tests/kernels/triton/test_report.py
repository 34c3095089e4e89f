import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch

from blockexport_kernels.triton.report import run_checks
from blockexport_kernels.triton.speed import dequant_gemv
from blockexport_kernels.triton.speed.timing import OURS, allowed_difference

KERNELS = ("decode_attention", "residual_rmsnorm", "kv_backfill", "dequant_gemv")


@pytest.fixture(scope="module")
def compared() -> dict:
    script = Path(__file__).parent / "compare_contenders.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("work", "libraries"),
    [
        ("decode_attention", {"flash", "math"}),
        ("hole", {"flash", "math"}),
        ("residual_rmsnorm", {"torch", "torch.compile"}),
        ("kv_backfill", {"torch", "torch.compile"}),
        ("dequant_gemv", {"bf16 product"}),
    ],
)
def test_contenders_do_the_same_work(compared, work: str, libraries: set[str]) -> None:
    found, not_run = compared["apart"][work]
    assert found.pop(OURS) == 0
    assert set(found) == libraries, not_run
    # Weights and norms of the libraries are rounded to bf16 too, by the interpreter or by torch.
    assert max(found.values()) <= 8 * torch.finfo(torch.bfloat16).eps


def test_an_interpreted_report_has_numerics_and_no_times(compared) -> None:
    statuses = {result["id"]: result["status"] for result in compared["report"]}
    numerics, times = ({f"triton.{kernel}.{part}" for kernel in KERNELS} for part in ("numerics", "speed"))
    assert {name for name, status in statuses.items() if status == "pass"} == numerics
    assert {name for name, status in statuses.items() if status == "not_run"} == times


def test_without_a_gpu_nothing_is_claimed() -> None:
    results = run_checks(torch.device("cpu"))
    assert {(result["status"], result["why"]) for result in results} == {("not_run", "no CUDA device")}


def test_scales_and_zeros_for_torchs_int4_product_stand_for_the_same_weights() -> None:
    """Its processor form takes codes apart otherwise, and has the same scales and zeros."""
    case = dequant_gemv.Case(16, 2, dtype=torch.bfloat16)
    made = dequant_gemv.make(case, torch.device("cpu"))
    codes = torch.stack([made.made.codes & 15, made.made.codes >> 4], -1).flatten(1).int()
    packed = torch._convert_weight_to_int4pack_for_cpu(codes, 8)
    scales_zeros = dequant_gemv.scales_and_zeros(made.made)
    got = torch._weight_int4pack_mm_for_cpu(made.made.inputs, packed, 32, scales_zeros)
    expected = torch.nn.functional.linear(made.made.inputs, made.dense)
    assert float((got - expected).norm() / expected.norm()) <= allowed_difference(torch.bfloat16)

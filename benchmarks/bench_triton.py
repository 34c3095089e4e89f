"""Are the kernels of `blockexport_kernels.triton` right on this GPU, and faster than the best that torch has?

Each kernel is compared with the library forms of the same work, whichever run here: scaled_dot_product_attention on
each of its backends, addition and rms_norm compiled, cuBLAS in bf16, torch's int4 product. A run is one CUDA graph over
inputs that exceed the last cache fourfold, timed by the GPU's own events, round after round in rotating order; outputs
are poisoned before and looked at behind. A copy of 512 MiB is timed in the same rounds: bandwidth is a share of it.

Without a GPU there is nothing to measure; the script says so and ends with status 0, for `make bench` to pass it over.
"""

import argparse
from pathlib import Path
from typing import Any

from environment import describe

from blockexport.core.jsonio import dump_json, write_atomically


def _why_not() -> str | None:
    """What keeps kernels from running here, in the words of whoever says so."""
    try:
        import torch
        import triton  # noqa: F401  (whether it can be imported is the question)
    except ImportError as error:
        return str(error)
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def measure(rounds: int) -> dict[str, Any]:
    """All checks, printed as they come."""
    import torch
    import triton

    from blockexport_kernels.triton.report import iterate_checks

    before, results = describe(), []
    for result in iterate_checks(torch.device("cuda"), rounds=rounds):
        results.append(result)
        print(f"{result['id']}: {result['status']} {result['why']}", flush=True)
        for row in result["metrics"].get("rows", []):
            _print(row)
    return {
        "question": "are the kernels of blockexport_kernels.triton right, and faster than what torch has?",
        "gpu": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda},
        "rounds": rounds,
        "results": results,
        "before": before,
        "after": describe(),
    }


def _print(row: dict[str, Any]) -> None:
    print(f"  {row['name']}, copy {row['copy_gb_s']['median']:.0f} GB/s")
    for name, us in row["us"].items():
        ratio = row["ratio_to_ours"].get(name, {"median": 1.0, "min": 1.0, "max": 1.0})
        share = row["share_of_copy"][name]["median"]
        print(
            f"    {name:14} {us['median']:8.1f} us  {share:4.0%} of the copy's bandwidth  "
            f"{ratio['median']:.2f} [{ratio['min']:.2f}-{ratio['max']:.2f}] times ours"
        )
    for name, why in row["not_run"].items():
        print(f"    {name:14} not run: {why}")


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    why = _why_not()
    if why is not None:
        print(f"not run: {why}")
        return
    write_atomically(args.out / "bench_triton.json", dump_json(measure(args.rounds)) + "\n")


if __name__ == "__main__":
    main()

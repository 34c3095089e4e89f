"""Does a load generator that knows nothing of us get its answers?

guidellm (from PyPI, in a virtual environment of its own) asks the real server for streamed completions: at constant
rates, then with many streams at a time. What it counts and measures is its own; latencies are given as multiples of
the median at the lowest rate.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from environment import describe
from server_client import profiled_bundle, serving

from blockexport.core.jsonio import dump_json, read_json, write_atomically

PROMPT_TOKENS, OUTPUT_TOKENS = 64, 32


def drive(guidellm: str, url: str, tokenizer: Path, profile: str, seconds: float) -> dict[str, Any]:
    """What guidellm reports of one run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            guidellm,
            "run",
            *("--backend", f"kind=openai_http,target={url},request_format=/v1/completions"),
            *("--profile", profile),
            *("--constraint", f"kind=max_duration,seconds={seconds}"),
            *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
            *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"),
            *("--output", f"kind=json,path={report}"),
            "--disable-console",
        ]
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, env=offline, stdout=subprocess.DEVNULL, timeout=seconds + 120)
        (benchmark,) = read_json(report)["benchmarks"]
    metrics = benchmark["metrics"]
    return {
        "profile": profile,
        "requests": metrics["request_totals"],
        "output_tokens": metrics["output_token_count"]["successful"]["total_sum"],
        "latency_s": {name: metrics["request_latency"]["successful"]["percentiles"][name] for name in ("p50", "p95")},
    }


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each rate, and one for all streams at once."""
    profiles = [f"kind=constant,rate={rate:g}" for rate in args.rates]
    profiles.append(f"kind=concurrent,streams={args.streams}")
    rows = []
    with (
        profiled_bundle(args.bundle, args.threads) as bundle,
        serving(bundle, args.port, "--threads", str(args.threads), "--max-rows", "16") as server,
    ):
        for profile in profiles:
            rows.append(drive(args.guidellm, server.url, bundle / "tokenizer", profile, args.seconds))
            print(rows[-1], flush=True)
    unit = rows[0]["latency_s"]["p50"]
    for row in rows:
        row["latency_over_lowest"] = {name: value / unit for name, value in row.pop("latency_s").items()}
    return rows


def main() -> None:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="profiled on this host; the demo, built and profiled now, without")
    parser.add_argument("--guidellm", default="guidellm", help="its executable")
    parser.add_argument("--rates", type=float, nargs="+", default=[2, 4, 8], help="requests in a second")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--port", type=int, default=18432)
    args = parser.parse_args()
    result: dict[str, Any] = {"before": describe(), "prompt_tokens": PROMPT_TOKENS, "max_tokens": OUTPUT_TOKENS}
    if shutil.which(args.guidellm) is None:
        result["not_run"] = f"no executable {args.guidellm}; install guidellm in a venv and give its path by --guidellm"
        print(result["not_run"])
    else:
        version = subprocess.run([args.guidellm, "--version"], check=True, capture_output=True, text=True)
        result["guidellm"] = version.stdout.split()[-1]
        result["rows"] = run_all(args)
    result["after"] = describe()
    write_atomically(args.out / "bench_guidellm.json", dump_json(result) + "\n")


if __name__ == "__main__":
    main()

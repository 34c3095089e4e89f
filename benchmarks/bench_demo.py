"""The demo's ladder as a table: what each depth costs in quality and gains in speed on this host.

Speeds are ratios of the medians of interleaved decode steps, so the host's own speed is in none of them.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from environment import describe

from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.pipeline.demo import MODEL, run_demo


def _row(level: dict[str, Any], deepest: dict[str, Any]) -> list[str]:
    quality = level["quality"]
    prefill = deepest["prefill_ms"] / level["prefill_ms"]
    return [
        level["name"],
        str(level["depth"]),
        f"{quality['bits_per_byte']['value']:.2f}",
        f"{100 * quality['exact_match']['value']:.0f} %",
        f"{prefill:.1f}x",
        f"{level['speedup']:.1f}x",
    ]


def table(levels: list[dict[str, Any]]) -> str:
    """The ladder as Markdown."""
    head = ("level", "blocks", "bits per byte", "tasks solved", "prompt", "each token")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(_row(level, levels[0]))} |" for level in levels]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the demo and write its ladder as JSON and as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    before = describe()
    with tempfile.TemporaryDirectory() as folder:
        levels = run_demo(Path(folder), lambda _what, _share: None).levels
    result = {
        "question": "what does each depth of the demo cost in quality and gain in speed?",
        "model": MODEL,
        "levels": levels,
        "before": before,
        "after": describe(),
    }
    write_atomically(args.out / "bench_demo.json", dump_json(result) + "\n")
    write_atomically(args.out / "bench_demo.md", table(levels))
    print(table(levels))


if __name__ == "__main__":
    main()

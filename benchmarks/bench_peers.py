"""How fast does a level decode and prefill next to what else runs such a model on this machine?

One process for each contender loads one precision at one depth. Processes then take turns, in an order that rotates, at
continuing the same random prompts greedily: a first round that does not count, then `--rounds` that do. Prefill is the
time to the first token, decoding the rate of those behind it; loading, converting and tokenising are in neither. In
fp32 the first tokens are compared with those of transformers.

README.md says how to install the peers. What was converted and built stays in `--work`, for the next run.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from contenders import CONTENDERS, OURS, Contender, NotRunError, Places, Running
from environment import describe
from machine import read_gb_per_s, wait_until_idle
from peers_report import save_plot, to_markdown

from blockexport.core.jsonio import dump_json, write_atomically

SHAPE = Path(__file__).with_name("qwen_shape.py")
VOCABULARY = 150_000  # the ids above are special
PROMPT_TOKENS = 128
NEW_TOKENS = 64
REFERENCE = "transformers eager"


def measure_group(precision: str, depth: int, places: Places, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All contenders of one precision at one depth, in turns."""
    contenders = [contender for contender in CONTENDERS if contender.precision == precision]
    with ExitStack() as stack:
        running, not_run = _start(contenders, depth, places, args, stack)
        rounds = _take_turns(running, not_run, args)
        measured = {name: _figures(name, process, rounds) for name, process in running.items()}
    return [
        {
            "precision": precision,
            "depth": depth,
            "name": contender.name,
            "peer": contender.peer,
            "format": contender.format,
            **(measured.get(contender.name) or {"not_run": not_run[contender.name]}),
        }
        for contender in contenders
    ]


def _start(
    contenders: Sequence[Contender], depth: int, places: Places, args: argparse.Namespace, stack: ExitStack
) -> tuple[dict[str, Running], dict[str, str]]:
    """Processes by name, each warm; and why the others are missing."""
    running: dict[str, Running] = {}
    not_run: dict[str, str] = {}
    for contender in contenders:
        try:
            process = stack.enter_context(Running(contender, depth, args.threads, places))
            process.round(_prompt(0), NEW_TOKENS)
            running[contender.name] = process
        except NotRunError as error:
            not_run[contender.name] = str(error)
        said = not_run.get(contender.name, "ready")
        print(f"{contender.precision}, {depth} blocks, {contender.name}: {said}", flush=True)
    return running, not_run


def _prompt(turn: int) -> list[int]:
    """Never the same twice: OpenVINO GenAI remembers prompts."""
    rng = random.Random(turn)
    return [rng.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)]


def _take_turns(running: dict[str, Running], not_run: dict[str, str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """What each contender answered in each round; one that breaks moves from `running` to `not_run`."""
    rounds: list[dict[str, Any]] = []
    for turn in range(args.rounds):
        answers: dict[str, Any] = {}
        for name in _rotated(list(running), turn):
            state = {"began_idle": wait_until_idle(args.idle_wait_s), "load_average": os.getloadavg()[0]}
            try:
                answers[name] = running[name].round(_prompt(turn + 1), NEW_TOKENS) | state
            except NotRunError as error:
                not_run[name] = str(error)
                del running[name]
        rounds.append(answers)
    return rounds


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % max(1, len(names))
    return names[first:] + names[:first]


def _figures(name: str, process: Running, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    answers = [answers[name] for answers in rounds]
    figures: dict[str, Any] = {
        **process.ready,
        "disk_bytes": sum(file.stat().st_size for file in process.model.rglob("*") if file.is_file()),
        "peak_pss_bytes": process.peak_pss_bytes,
        "rounds": answers,
        "decode_tokens_per_s": _summary([answer["decode_tokens_per_s"] for answer in answers]),
        "prefill_ms": _summary([answer["prefill_ms"] for answer in answers]),
        "began_idle": sum(answer["began_idle"] for answer in answers),
    }
    if all(OURS in answers for answers in rounds):
        ours = [answers[OURS] for answers in rounds]
        pairs = list(zip(ours, answers, strict=True))
        figures["decode_ours_to_this"] = _summary(
            [o["decode_tokens_per_s"] / a["decode_tokens_per_s"] for o, a in pairs]
        )
        figures["prefill_this_to_ours"] = _summary([a["prefill_ms"] / o["prefill_ms"] for o, a in pairs])
    if all(REFERENCE in answers for answers in rounds):
        figures["same_first_tokens"] = sum(
            answers[REFERENCE]["first_tokens"] == answers[name]["first_tokens"] for answers in rounds
        )
    return figures


def _summary(samples: list[float]) -> dict[str, float]:
    return {"median": median(samples), "min": min(samples), "max": max(samples)}


def prepare(args: argparse.Namespace, work: Path) -> Places:
    """Checkpoints for all depths, and a bundle for each precision that none was given for."""
    given = {"ours": sys.executable, "hf": sys.executable} | dict(args.peer)
    bundles = {precision: Path(folder) for precision, folder in args.bundle}
    missing = [precision for precision in args.precisions if precision not in bundles]
    # Apart, for what it needs of memory would stay with this process.
    command = [sys.executable, str(SHAPE), "--out", str(work), "--depths", *map(str, args.depths)]
    subprocess.run([*command, "--precisions", *missing], check=True)
    return Places(
        interpreters=given,
        checkpoints={depth: work / f"d{depth}" for depth in args.depths},
        bundles=bundles | {precision: work / f"bundle-{precision}" for precision in missing},
        work=work,
    )


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One precision and depth after another: all at once would not fit memory."""
    places = prepare(args, work)
    before = describe()
    rows, read_gb_s = [], []
    for precision in args.precisions:
        for depth in args.depths:
            read_gb_s.append(read_gb_per_s(args.threads))
            rows += measure_group(precision, depth, places, args)
    read_gb_s.append(read_gb_per_s(args.threads))
    return {
        "question": "how fast does a level decode and prefill next to what else runs such a model?",
        "model": "random weights in the shape of Qwen2.5-0.5B",
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "threads": args.threads,
        "num_rounds": args.rounds,
        "read_gb_s": _summary(read_gb_s),
        "rows": rows,
        "before": before,
        "after": describe(),
    }


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not value:
        msg = f"{text!r} is no NAME=PATH"
        raise argparse.ArgumentTypeError(msg)
    return name, value


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="keeps models between runs; a temporary folder when left out")
    parser.add_argument(
        "--peer", type=_pair, action="append", default=[], help="genai, ov, llama or hf=PATH/bin/python"
    )
    parser.add_argument("--bundle", type=_pair, action="append", default=[], help="PRECISION=FOLDER; else it is built")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "int8", "int4"), default=["fp32", "int8", "int4"])
    parser.add_argument("--depths", type=int, nargs="+", choices=(24, 18, 12, 6), default=[24, 12])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--idle-wait-s", type=float, default=60.0, help="wait so long for an idle machine")
    return parser.parse_args()


def main() -> None:
    """Parse the command line, measure, write the result."""
    args = _parse()
    if not args.peer:
        print("no peer was given; README.md says how to install them and run this")
        return
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(args, args.work or Path(temporary))
    write_atomically(args.out / "bench_peers.json", dump_json(result) + "\n")
    write_atomically(args.out / "bench_peers.md", to_markdown(result))
    save_plot(args.out / "bench_peers.png", result)
    print(to_markdown(result))


if __name__ == "__main__":
    main()

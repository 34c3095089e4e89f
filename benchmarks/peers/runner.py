"""What every runner does: convert a checkpoint once, or load a model and answer rounds until its input ends.

A runner is run by the interpreter of its peer's own virtual environment, so this file needs nothing but the standard
library. A loaded model is a function that continues a prompt greedily and calls back with each token as soon as it is
there. Rounds come and answers go as one JSON object a line; whatever a library prints goes to standard error.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

OnToken = Callable[[int], None]
Continue = Callable[[Sequence[int], int, OnToken], None]
"""Called with a prompt, how many new tokens to give, and whom to tell each."""


@dataclass(frozen=True)
class Request:
    """What to load.

    Attributes:
        model: the checkpoint, what `convert` made of it, or a bundle.
        format: what the peer calls the precision of its weights.
        depth: blocks that run.
        threads: threads that may compute.
        context_tokens: room for prompt and answer.
    """

    model: Path
    format: str
    depth: int
    threads: int
    context_tokens: int = 512


Load = Callable[[Request], tuple[Continue, Mapping[str, Any]]]
"""Gives the loaded model and the settings worth writing down."""
Convert = Callable[[Path, str, Path], None]
"""Called with a checkpoint, a format, and the folder to fill."""


def main(packages: Sequence[str], load: Load, convert: Convert | None = None) -> None:
    """Parse the command line and do what it says.

    Args:
        packages: distributions whose versions a result names.
        load: loads a model.
        convert: makes a model of a checkpoint; None where checkpoints are loaded as they are.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--convert-to", type=Path, help="fill this folder instead of serving")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--format", required=True)
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    # Nothing here has business on a network, and no peer may wait for one.
    os.environ["HF_HUB_OFFLINE"] = "1"
    if args.convert_to is None:
        _serve(load, Request(args.model, args.format, args.depth, args.threads), packages)
    elif convert is not None:
        args.convert_to.mkdir(parents=True, exist_ok=True)
        convert(args.model, args.format, args.convert_to)


def _serve(load: Load, request: Request, packages: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    started = time.perf_counter()
    model, settings = load(request)
    ready = {
        "load_s": time.perf_counter() - started,
        "versions": {name: metadata.version(name) for name in packages},
        "settings": dict(settings),
    }
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        print(json.dumps(_round(model, **json.loads(line))), file=answers)


def _round(model: Continue, prompt: list[int], new_tokens: int) -> dict[str, Any]:
    tokens: list[int] = []
    marks: list[float] = []

    def on_token(token: int) -> None:
        marks.append(time.perf_counter())
        tokens.append(token)

    started = time.perf_counter()
    model(prompt, new_tokens, on_token)
    if len(tokens) != new_tokens:
        msg = f"{len(tokens)} tokens came instead of {new_tokens}"
        raise RuntimeError(msg)
    return {
        "prefill_ms": (marks[0] - started) * 1e3,
        "decode_tokens_per_s": (new_tokens - 1) / (marks[-1] - marks[0]),
        "first_tokens": tokens[:8],
    }

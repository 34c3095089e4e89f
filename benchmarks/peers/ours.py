"""blockexport: one level of a bundle, through the same call that a user makes; the format says whose operators run."""

from collections.abc import Mapping, Sequence
from typing import Any

from runner import Continue, OnToken, Request, main

import blockexport


def load(request: Request) -> tuple[Continue, Mapping[str, Any]]:
    """Open the bundle's level of that depth."""
    level = f"d{request.depth}"
    runtime = blockexport.load(request.model, threads=request.threads, warm_up=[level], operators=request.format)

    def generate(prompt: Sequence[int], new_tokens: int, on_token: OnToken) -> None:
        runtime.generate(prompt, new_tokens, level=level, stop_tokens=[], on_token=lambda _row, token: on_token(token))

    entry = next(entry for entry in runtime.bundle.manifest.levels if entry.name == level)
    return generate, {"precision": str(entry.precision), "operators": runtime.engines.operators(level)}


if __name__ == "__main__":
    main(("onnxruntime", "numpy"), load)

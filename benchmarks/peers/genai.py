"""onnxruntime-genai: its model builder, and its generator."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
from runner import Continue, OnToken, Request, main

# The head for the last position only, and one copy of the tied weights: both make it faster.
OPTIONS = ("prune_lm_head=true", "shared_embeddings=true")


def convert(checkpoint: Path, weights: str, out: Path) -> None:
    """Build in the precision that `weights` begins with, and the block size behind the `g`."""
    precision, _, block = weights.partition("g")
    options = [*OPTIONS, *([f"block_size={block}"] if block else [])]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out)]
    cache = out / "cache"
    command += ["-p", precision, "-e", "cpu", "-c", str(cache), "--extra_options", *options]
    subprocess.run(command, check=True)


def load(request: Request) -> tuple[Continue, Mapping[str, Any]]:
    """Load what the builder made."""
    config = og.Config(str(request.model))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": request.threads}}}}))
    model = og.Model(config)

    def generate(prompt: Sequence[int], new_tokens: int, on_token: OnToken) -> None:
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=request.context_tokens, past_present_share_buffer=True)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        for _ in range(new_tokens):
            generator.generate_next_token()
            on_token(int(generator.get_next_tokens()[0]))

    return generate, {"options": OPTIONS, "past_present_share_buffer": True}


if __name__ == "__main__":
    main(("onnxruntime-genai", "onnxruntime"), load, convert)

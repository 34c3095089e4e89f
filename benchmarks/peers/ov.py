"""OpenVINO GenAI: exported by optimum-intel, run by its LLM pipeline."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as og
from runner import Continue, OnToken, Request, main


def convert(checkpoint: Path, weights: str, out: Path) -> None:
    """Export with `optimum-cli`: `int4g64` has blocks of 64 and an int8 head, `int4g64_all` a head of 4 bits."""
    name, _, block = weights.removesuffix("_all").partition("g")
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "--model", str(checkpoint)]
    command += ["--task", "text-generation-with-past", "--weight-format", name]
    if block:
        command += ["--group-size", block, "--ratio", "1.0", "--sym"]
    if weights.endswith("_all"):
        command.append("--all-layers")
    subprocess.run([*command, str(out)], check=True)


class _Streamer(og.StreamerBase):
    """Hands tokens on."""

    def __init__(self, on_token: OnToken) -> None:
        super().__init__()
        self._on_token = on_token

    def write(self, token: int | Sequence[int]) -> og.StreamingStatus:
        for one in [token] if isinstance(token, int) else token:
            self._on_token(one)
        return og.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is held back."""


def load(request: Request) -> tuple[Continue, Mapping[str, Any]]:
    """Load an exported folder; fp32 weights run in fp32, all else at OpenVINO's default, which may be bf16."""
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": request.threads}
    if request.format == "fp32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    pipeline = og.LLMPipeline(str(request.model), "CPU", **settings)

    def generate(prompt: Sequence[int], new_tokens: int, on_token: OnToken) -> None:
        config = og.GenerationConfig(max_new_tokens=new_tokens, ignore_eos=True, do_sample=False)
        pipeline.generate(ov.Tensor(np.array([prompt], np.int64)), config, _Streamer(on_token))

    return generate, settings


if __name__ == "__main__":
    main(("openvino", "openvino-genai", "optimum-intel"), load, convert)

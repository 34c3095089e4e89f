"""Engines of a bundle that is still being written, for the gates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.decoder import OrtDecoder
from blockexport.backends.onnxruntime.single_pass import OrtSinglePass
from blockexport.core.engine import StepInputs, empty_rows
from blockexport.core.model import ModelSpec
from blockexport.core.quality import Forward


class DraftEngines:
    """Opens graphs by path; what a `Runtime` does by level name once there is a manifest.

    Args:
        folder: where the graphs and the weights lie.
        spec: the model.
    """

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._decoders: dict[Path, OrtDecoder] = {}
        self._single_pass: dict[Path, OrtSinglePass] = {}

    def layout(self, kept: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Per kept block, (kv_heads, head_dim)."""
        return {block: (self._spec.kv[block].num_heads, self._spec.kv[block].head_dim) for block in kept}

    def decoder(self, path: Path) -> OrtDecoder:
        """The opened decoder."""
        if path not in self._decoders:
            self._decoders[path] = OrtDecoder(path)
        return self._decoders[path]

    def single_pass(self, path: Path) -> OrtSinglePass:
        """The opened encoder or vision model."""
        if path not in self._single_pass:
            self._single_pass[path] = OrtSinglePass(path)
        return self._single_pass[path]

    def open(self, path: Path, kept: Sequence[int]) -> Forward:
        """Batch inputs, text padded on the right, to the engine's output at every position."""
        if self._spec.kind != "decoder":
            return self.single_pass(path).forward
        decoder, layout = self.decoder(path), self.layout(kept)

        def forward(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            tokens = inputs["input_ids"]
            lengths = inputs["attention_mask"].sum(1)
            rows = empty_rows(layout, *tokens.shape, np.dtype(np.float32))
            return decoder.bind(rows).step(StepInputs.prompt(tokens, lengths, all_logits=True))

        return forward

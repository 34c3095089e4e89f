"""The engines of one ladder, each opened when it is first used."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.decoder import OrtDecoder
from blockexport.backends.onnxruntime.single_pass import OrtSinglePass
from blockexport.bundle.reader import Bundle
from blockexport.core.engine import StepInputs
from blockexport.core.model import ModelSpec
from blockexport.core.quality import Forward
from blockexport.errors import RequestError
from blockexport.runtime.kv_cache import KvCache

BACKEND = "onnxruntime"


@dataclass(frozen=True, slots=True)
class LevelFile:
    """Where a level's graph lies, and the blocks it keeps."""

    path: Path
    kept: tuple[int, ...]


class Engines:
    """Opens levels and allocates caches for them; also those of a bundle that is still being written.

    Args:
        spec: the model.
        files: the graphs by level name, deepest first.
        threads: threads within an operator; 0 lets the backend choose.
    """

    def __init__(self, spec: ModelSpec, files: Mapping[str, LevelFile], *, threads: int = 0) -> None:
        self.spec = spec
        self.threads = threads
        self._files = files
        self._names = tuple(files)
        self._decoders: dict[str, OrtDecoder] = {}
        self._single_pass: dict[str, OrtSinglePass] = {}

    @classmethod
    def of_bundle(cls, bundle: Bundle, *, threads: int = 0) -> Self:
        """The engines of a bundle on disk."""
        files = {
            level.name: LevelFile(bundle.engine_path(level.name, BACKEND), level.kept)
            for level in bundle.manifest.levels
        }
        return cls(bundle.manifest.model, files, threads=threads)

    def rung(self, level: str) -> int:
        """How many levels are deeper.

        Raises:
            RequestError: there is no such level.
        """
        if level not in self._files:
            msg = f"no level {level!r}; this bundle has {', '.join(self._names)}"
            raise RequestError(msg)
        return self._names.index(level)

    def layout(self, level: str) -> dict[int, tuple[int, int]]:
        """Per kept block of a level, (kv_heads, head_dim)."""
        rows = self.spec.kv
        return {block: (rows[block].num_heads, rows[block].head_dim) for block in self._files[level].kept}

    def new_cache(self, batch: int, capacity_tokens: int) -> KvCache:
        """An empty cache for all levels.

        Raises:
            RequestError: there is not enough memory.
        """
        # Of the levels that keep a block, the shallowest comes last.
        rungs = {block: rung for rung, file in enumerate(self._files.values()) for block in file.kept}
        return KvCache(self.layout(self._names[0]), rungs, batch, capacity_tokens)

    def unload(self, level: str) -> None:
        """Close a level; it is opened again when it is next used."""
        self._decoders.pop(level, None)
        self._single_pass.pop(level, None)

    @property
    def opened(self) -> tuple[str, ...]:
        """Names of the levels that are open."""
        return tuple(name for name in self._names if name in self._decoders or name in self._single_pass)

    def decoder(self, level: str) -> OrtDecoder:
        """The opened decoder of a level.

        Raises:
            BundleError: this host cannot open the level's engine.
        """
        if level not in self._decoders:
            self._decoders[level] = OrtDecoder(self._files[level].path, threads=self.threads)
        return self._decoders[level]

    def single_pass(self, level: str) -> OrtSinglePass:
        """The opened encoder or vision model of a level.

        Raises:
            BundleError: this host cannot open the level's engine.
        """
        if level not in self._single_pass:
            self._single_pass[level] = OrtSinglePass(self._files[level].path, threads=self.threads)
        return self._single_pass[level]

    def whole_pass(self, level: str) -> Forward:
        """Batch inputs, text padded on the right, to the level's output at every position."""
        if self.spec.kind != "decoder":
            return self.single_pass(level).forward

        def forward(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            tokens = inputs["input_ids"]
            cache = self.new_cache(*tokens.shape)
            step = StepInputs.prompt(tokens, inputs["attention_mask"].sum(1), all_logits=True)
            return self.decoder(level).bind(cache.rows).step(step)

        return forward

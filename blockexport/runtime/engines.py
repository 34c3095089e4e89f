"""The engines of one ladder, each opened when it is first used."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.decoder import OrtDecoder
from blockexport.backends.onnxruntime.operators import STOCK, Operators
from blockexport.backends.onnxruntime.single_pass import OrtSinglePass
from blockexport.bundle.layout import VISION_PREFIX
from blockexport.bundle.manifest import LevelEntry
from blockexport.bundle.reader import Bundle
from blockexport.core.engine import DecoderRunner, LevelOpener, SinglePassRunner, StepInputs
from blockexport.core.model import ModelSpec
from blockexport.core.pictures import ImageTokens, Pictures
from blockexport.core.quality import Forward
from blockexport.errors import BundleError, RequestError
from blockexport.runtime.kv_cache import KvCache
from blockexport.runtime.others import OtherLevels
from blockexport.runtime.packed_entry import PackedLevels

BACKEND = "onnxruntime"
_Runner = TypeVar("_Runner")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LevelFile:
    """Where a level's graph lies, and the blocks it keeps.

    Attributes:
        path: the graph.
        kept: blocks.
        library: operators that the graph needs beyond the backend's own.
        stock: what to use instead should this one not open, or not give the recorded answers on this host.
        opener: of another backend, whose file this is.
    """

    path: Path
    kept: tuple[int, ...]
    library: Path | None = None
    stock: "LevelFile | None" = None
    opener: LevelOpener | None = None

    def decoder(self, threads: int) -> DecoderRunner:
        """Open a decoder level."""
        if self.opener is not None:
            return self.opener.decoder(self.path)
        return OrtDecoder(self.path, threads=threads, library=self.library)

    def single_pass(self, threads: int) -> SinglePassRunner:
        """Open an encoder or vision level."""
        if self.opener is not None:
            return self.opener.single_pass(self.path)
        return OrtSinglePass(self.path, threads=threads, library=self.library)


Proof = Callable[["Engines", str], bool]
"""Told the engines and a level that was just opened; whether it gives the answers it should."""


class Engines:
    """Opens levels and allocates caches for them; also those of a bundle that is still being written.

    Args:
        spec: the model.
        files: the graphs by level name, deepest first.
        threads: threads within an operator; 0 lets the backend choose.
        prove: asked about each level that is not run by the backend's own operators on the processor, when it is
            opened; None to trust them.
        vision: the engines of the vision side, for a model that reads pictures.
    """

    def __init__(
        self,
        spec: ModelSpec,
        files: Mapping[str, LevelFile],
        *,
        threads: int = 0,
        prove: Proof | None = None,
        vision: "Engines | None" = None,
    ) -> None:
        self.spec = spec
        self.threads = threads
        self.vision = vision
        self._files = dict(files)
        self._prove = prove
        self._packed: PackedLevels | None = None
        self.names = tuple(files)
        self._decoders: dict[str, DecoderRunner] = {}
        self._single_pass: dict[str, SinglePassRunner] = {}

    @classmethod
    def of_bundle(
        cls,
        bundle: Bundle,
        *,
        threads: int = 0,
        operators: Operators = STOCK,
        packed: PackedLevels | None = None,
        prove: Proof | None = None,
        others: OtherLevels | None = None,
    ) -> Self:
        """The engines of a bundle on disk; levels that have no graph for the operators use the backend's own.

        Args:
            bundle: where the graphs are.
            threads: threads within an operator; 0 lets the backend choose.
            operators: whose operators run.
            packed: weights packed for the backend's own operators, shared by all levels.
            prove: see the class.
            others: what runs levels in place of the graphs on the processor.
        """

        def locate(level: LevelEntry, prefix: str = "") -> LevelFile:
            name = f"{prefix}{level.name}"
            graph = bundle.engine_path(name, BACKEND, STOCK.target)
            stock = LevelFile(graph, level.kept)
            if packed is not None and not prefix:
                stock = LevelFile(packed.path(graph), level.kept, stock=stock)
            if others is not None and name in others.paths:
                return LevelFile(others.paths[name], level.kept, stock=stock, opener=others.opener)
            if operators.library is None or all(engine.target != operators.target for engine in level.engines):
                return stock
            path = bundle.engine_path(name, BACKEND, operators.target)
            return LevelFile(path, level.kept, operators.library, stock)

        manifest, vision, side = bundle.manifest, None, bundle.manifest.model.vision_side
        if manifest.vision is not None and side is not None:
            files = {level.name: locate(level, VISION_PREFIX) for level in manifest.vision.levels}
            vision = cls(side, files, threads=threads, prove=prove)
        files = {level.name: locate(level) for level in manifest.levels}
        engines = cls(manifest.model, files, threads=threads, prove=prove, vision=vision)
        # An entry of the cache is not removed while somebody holds it.
        engines._packed = packed
        return engines

    def rung(self, level: str) -> int:
        """How many levels are deeper.

        Raises:
            RequestError: there is no such level.
        """
        if level not in self._files:
            msg = f"no level {level!r}; this bundle has {', '.join(self.names)}"
            raise RequestError(msg)
        return self.names.index(level)

    def layout(self, level: str) -> dict[int, tuple[int, int]]:
        """Per kept block of a level, (kv_heads, head_dim)."""
        return self.spec.kv_layout(self._files[level].kept)

    def new_cache(self, batch: int, capacity_tokens: int) -> KvCache:
        """An empty cache for all levels.

        Raises:
            RequestError: there is not enough memory.
        """
        # Of the levels that keep a block, the shallowest comes last.
        rungs = {block: rung for rung, file in enumerate(self._files.values()) for block in file.kept}
        return KvCache(self.layout(self.names[0]), rungs, batch, capacity_tokens)

    def unload(self, level: str) -> None:
        """Close a level; it is opened again when it is next used."""
        self._decoders.pop(level, None)
        self._single_pass.pop(level, None)

    @property
    def opened(self) -> tuple[str, ...]:
        """Names of the levels that are open."""
        return tuple(name for name in self.names if name in self._decoders or name in self._single_pass)

    def decoder(self, level: str) -> DecoderRunner:
        """The opened decoder of a level.

        Raises:
            BundleError: this host cannot open the level's engine.
        """
        if level not in self._decoders:
            self._decoders[level] = self._open(level, LevelFile.decoder)
            if self._has_failed(level):
                self._decoders[level] = self._open(level, LevelFile.decoder)
        return self._decoders[level]

    def single_pass(self, level: str) -> SinglePassRunner:
        """The opened encoder or vision model of a level.

        Raises:
            BundleError: this host cannot open the level's engine.
        """
        if level not in self._single_pass:
            self._single_pass[level] = self._open(level, LevelFile.single_pass)
            if self._has_failed(level):
                self._single_pass[level] = self._open(level, LevelFile.single_pass)
        return self._single_pass[level]

    def operators(self, level: str) -> str:
        """Whose operators run a level: `native`, `stock`, or another backend's kind."""
        file = self._files[level]
        if file.opener is not None:
            return file.opener.kind
        return "stock" if file.library is None else "native"

    def _open(self, level: str, how: Callable[[LevelFile, int], _Runner]) -> _Runner:
        file = self._files[level]
        try:
            return how(file, self.threads)
        except BundleError as error:
            if file.stock is None:
                raise
            self._fall_back(level, str(error))
            return self._open(level, how)

    def _has_failed(self, level: str) -> bool:
        """Whether a level that was just opened is wrong on this host; its stock graph is then used from now on."""
        kind = self.operators(level)
        if kind == "stock" or self._prove is None or self._prove(self, level):
            return False
        self._fall_back(level, f"{kind} operators do not give the recorded answers on this host")
        return True

    def _fall_back(self, level: str, why: str) -> None:
        _log.warning("level %s: %s; stock operators are used", level, why)
        stock = self._files[level].stock
        assert stock is not None
        self._files[level] = stock

    def encode(self, pictures: Pictures | None, level: str | None = None) -> ImageTokens | None:
        """Image tokens of pictures; None for none.

        Args:
            pictures: of one batch of prompts.
            level: level of the vision side; None for the deepest.

        Raises:
            BundleError: this host cannot open the vision side's engine.
            RequestError: there is no such level, or the model reads text only.
        """
        if pictures is None or not len(pictures.images):
            return None
        if self.vision is None:
            msg = f"pictures were given, but {self.spec.name} reads text only; leave pictures out"
            raise RequestError(msg)
        name = self.vision.names[0 if level is None else self.vision.rung(level)]
        return pictures.image_tokens(self.vision.single_pass(name).forward(pictures.engine_inputs))

    def run_prompt(
        self,
        level: str,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        pictures: Pictures | None,
        vision_level: str | None = None,
    ) -> NDArray[np.float32]:
        """Logits (batch, seq, vocab) of prompts (batch, seq), padded on the right, in a cache of their own.

        Raises:
            BundleError: this host cannot open an engine.
            RequestError: there is no such level, or not enough memory.
        """
        image_tokens = self.encode(pictures, vision_level)
        shifts = None if pictures is None else pictures.shifts
        step = StepInputs.prompt(tokens, lengths, all_logits=True, image_tokens=image_tokens, shifts=shifts)
        return self.decoder(level).bind(self.new_cache(*tokens.shape).rows).step(step)

    def whole_pass(self, level: str) -> Forward:
        """Batch inputs, text padded on the right, to the level's output at every position."""
        if self.spec.kind != "decoder":
            return self.single_pass(level).forward

        def forward(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            tokens, lengths = inputs["input_ids"], inputs["attention_mask"].sum(1)
            pictures = Pictures.of_batch(inputs, None if self.spec.vision is None else self.spec.vision.grid)
            return self.run_prompt(level, tokens, lengths, pictures)

        return forward

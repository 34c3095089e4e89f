"""Every gate of a build that looks at engines: parity with the eager reference, audit, quality."""

import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blockexport.backends.onnxruntime.operators import STOCK, Operators, choose_operators
from blockexport.bundle.manifest import ParityRecord
from blockexport.core.masks import DepthLadder
from blockexport.core.parity import ParityCase
from blockexport.core.quality import Forward, Quality
from blockexport.errors import BackendUnavailableError
from blockexport.export.audit import audit
from blockexport.models.loaded import LoadedModel
from blockexport.pipeline.gates import GateKeeper
from blockexport.pipeline.sources import Source
from blockexport.runtime.engines import Engines, LevelFile
from blockexport.runtime.proof import check_level

Paths = Mapping[tuple[str, str], Path]
"""Where the graph of a level and lowering target lies."""


class Prover:
    """Runs the engines of a bundle that is being written.

    One thread a level: small operators gain little from more, levels run side by side, and figures do not depend on
    how many cores the building machine has.

    Args:
        model: the model.
        ladder: the levels.
        paths: every graph.
        keeper: told each verdict.
        prefix: of level names in verdicts.
        vision: runs the vision side of the same bundle, for a model that reads pictures.
    """

    def __init__(
        self,
        model: LoadedModel,
        ladder: DepthLadder,
        paths: Paths,
        keeper: GateKeeper,
        *,
        prefix: str = "",
        vision: "Prover | None" = None,
    ) -> None:
        self._model = model
        self._ladder = ladder
        self._paths = paths
        self._keeper = keeper
        self._prefix = prefix
        self._vision = vision
        self._stock = self._engines(STOCK)

    def parity(
        self, sources: Mapping[str, Source], seed: int, on_level: Callable[[str, float], None]
    ) -> tuple[dict[str, tuple[ParityCase, ...]], dict[str, tuple[ParityRecord, ...]]]:
        """Hold every engine to the eager reference.

        Args:
            sources: by level, what it was cut from.
            seed: of the inputs.
            on_level: told the level and the share that is done.

        Returns:
            The reference's answers and the engines' verdicts, by level.
        """
        opened = [self._stock, *self._native()]
        # An oracle holds the model twice more: levels of one precision follow one another and share theirs.
        oracle_of = functools.lru_cache(maxsize=1)(lambda source: source.oracle(self._model, seed))
        levels = sorted(self._ladder.levels, key=lambda level: str(sources[level.name].precision))
        cases, records = {}, {}
        for index, level in enumerate(levels):
            on_level(level.name, index / len(levels))
            cases[level.name] = oracle_of(sources[level.name]).record(level.mask)
            records[level.name] = tuple(
                record.model_copy(update={"operators": engines.operators(level.name)})
                for engines in opened
                for record in check_level(engines, level.name, cases[level.name])
            )
            self._keeper.parity(f"{self._prefix}{level.name}", records[level.name])
        return cases, records

    def _native(self) -> list[Engines]:
        """Engines with our own operators, if this host can compile these; hosts that can prove them when they load."""
        try:
            return [self._engines(choose_operators("native"))]
        except BackendUnavailableError:
            return []

    def audit(self) -> None:
        """Nothing of a skipped block in any graph."""
        masks = {level.name: level.mask for level in self._ladder.levels}
        findings: dict[str, list[str]] = {name: [] for name in masks}
        for (level, _target), path in self._paths.items():
            findings[level] += audit(path, masks[level], self._model.spec.block_path)
        for level, found in findings.items():
            self._keeper.audit(f"{self._prefix}{level}", found)

    def quality(self, measure: Callable[[Forward], Quality | None]) -> dict[str, Quality | None]:
        """Quality of every level on ONNX Runtime's own operators, measured side by side.

        Args:
            measure: runs the data through a level.
        """
        names = [level.name for level in self._ladder.levels]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda name: measure(self._stock.whole_pass(name)), names))
        for name, quality in zip(names, found, strict=True):
            self._keeper.quality(name, quality)
        return dict(zip(names, found, strict=True))

    def _engines(self, operators: Operators) -> Engines:
        files = {
            level.name: LevelFile(self._paths[level.name, operators.target], level.kept, operators.library)
            for level in self._ladder.levels
        }
        vision = None if self._vision is None else self._vision._engines(operators)  # noqa: SLF001  (of one class)
        return Engines(self._model.spec, files, threads=1, vision=vision)

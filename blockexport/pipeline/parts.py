"""What a bundle has a ladder of: the model itself, and the vision side of one that reads pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import onnx_ir as ir

from blockexport.bundle.manifest import EngineEntry, LevelEntry, ParityRecord
from blockexport.core.masks import DepthLadder
from blockexport.core.precision import Precision
from blockexport.core.quality import Quality
from blockexport.export.cut import cut
from blockexport.export.lower import ort
from blockexport.export.trace import block_unit
from blockexport.models.loaded import LoadedModel
from blockexport.pipeline.precisions import level_precisions
from blockexport.pipeline.sources import Source
from blockexport.pipeline.trace_cache import marked_graph


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One ladder and what its levels are cut from.

    Attributes:
        model: the model, or its vision side.
        ladder: the levels.
        sources: by level name.
        prefix: of level names where those of several parts stand together.
    """

    model: LoadedModel
    ladder: DepthLadder
    sources: dict[str, Source]
    prefix: str = ""

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        ladder: DepthLadder,
        precision: Precision | Mapping[str, Precision],
        cache_folder: Path | None,
        prefix: str = "",
    ) -> Self:
        """Trace, lower and quantise one part.

        Args:
            model: the model, or its vision side.
            ladder: the levels.
            precision: of the weights, for all levels or by name.
            cache_folder: where traces are kept between builds.
            prefix: see the class.
        """
        precisions = level_precisions(precision, ladder)
        marked = marked_graph(model, ort.TARGET, ort.lower, cache_folder)
        if prefix:
            _set_apart(marked, model, prefix)
        made = {chosen: Source.of(marked, chosen) for chosen in dict.fromkeys(precisions.values())}
        return cls(model, ladder, {name: made[chosen] for name, chosen in precisions.items()}, prefix)

    def graphs(self) -> dict[tuple[str, str], ir.Model]:
        """The graph of each level and lowering target."""
        return {
            (level.name, target): cut(graph, [block_unit(block) for block in level.mask.skipped])
            for level in self.ladder.levels
            for target, graph in self.sources[level.name].graphs.items()
        }

    def entries(
        self,
        engines: Mapping[tuple[str, str], EngineEntry],
        parity: Mapping[str, tuple[ParityRecord, ...]],
        quality: Mapping[str, Quality | None],
    ) -> tuple[LevelEntry, ...]:
        """The levels as the manifest lists them."""
        return tuple(
            LevelEntry(
                name=level.name,
                depth=level.depth,
                kept=level.kept,
                skipped=level.mask.skipped,
                engines=tuple(engine for (name, _target), engine in engines.items() if name == level.name),
                precision=self.sources[level.name].precision,
                parity=parity[level.name],
                quality=found.to_json() if (found := quality.get(level.name)) else {},
            )
            for level in self.ladder.levels
        )


def _set_apart(marked: ir.Model, model: LoadedModel, prefix: str) -> None:
    """Rename constants that are no weights: tracing numbers them, in every part from the same start."""
    module = model.module
    weights = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    weights |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    for name in [name for name in marked.graph.initializers if name not in weights]:
        value = marked.graph.initializers.pop(name)
        value.name = f"{prefix}{name}"
        marked.graph.register_initializer(value)

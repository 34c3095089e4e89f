"""Marked graphs, each traced once a session, and engines cut from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.weights import write_weights
from blockexport.core.masks import DepthMask
from blockexport.export.cut import cut
from blockexport.export.graph_file import save, shared_tensors
from blockexport.export.lower.ort import lower
from blockexport.export.trace import block_unit, trace
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.testing.tiny_models import tiny_model

torch.set_num_threads(1)

NUM_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Lowered:
    """One tiny model and its marked graph."""

    model: LoadedModel
    marked: ir.Model

    @property
    def layout(self) -> dict[int, tuple[int, int]]:
        """Per block, (kv_heads, head_dim)."""
        return {block: (row.num_heads, row.head_dim) for block, row in enumerate(self.model.spec.kv)}

    def level(self, *kept: int) -> ir.Model:
        """The graph of one depth."""
        return cut(self.marked, [block_unit(block) for block in DepthMask.from_kept(kept, NUM_BLOCKS).skipped])

    def write(
        self,
        folder: Path,
        *kept: int,
        change: Callable[[dict[str, NDArray[Any]]], None] | None = None,
        edit: Callable[[ir.Model], None] | None = None,
    ) -> Path:
        """Write one depth beside its weights, which `change` may alter, as may `edit` the graph."""
        tensors: dict[str, NDArray[Any]] = {
            name: np.array(array) for name, array in shared_tensors(self.level(*range(NUM_BLOCKS))).items()
        }
        if change is not None:
            change(tensors)
        folder.mkdir(exist_ok=True)
        locations = write_weights(folder / WEIGHTS_FILE, tensors)
        graph = self.level(*kept)
        if edit is not None:
            edit(graph)
        path = folder / f"d{len(kept)}.ort.onnx"
        save(graph, path, locations)
        return path


@cache
def _lowered(architecture: str) -> Lowered:
    model = wrap_module(tiny_model(architecture, NUM_BLOCKS))
    return Lowered(model, lower(trace(model)))


@pytest.fixture(scope="session")
def lowered() -> Callable[[str], Lowered]:
    """`lowered(architecture)` gives a tiny model of four blocks and its marked graph."""
    return _lowered


@pytest.fixture(scope="session")
def layout_of() -> Callable[[Lowered, tuple[int, ...]], Mapping[int, tuple[int, int]]]:
    """The cache rows of some blocks."""
    return lambda lowered, kept: {block: lowered.layout[block] for block in kept}

"""A decode step of one level, compiled ahead of time and recorded as a CUDA graph, on rows that all levels share."""

from pathlib import Path

import torch

from blockexport.backends.aotinductor.compile import SUFFIX, compile_program
from blockexport.backends.aotinductor.package import Package
from blockexport.backends.aotinductor.weights import SharedWeights
from blockexport.core.masks import DepthMask
from blockexport.core.model import ModelSpec
from blockexport.core.signature import CACHE_PARTS, last_slot_name, past_name
from blockexport.export.lower.aten import AtenProgram, lower
from blockexport.export.trace import MarkedProgram, block_unit

_ONE_TOKEN = {"batch": 1, "seq": 1, "kept_positions": 1}
"""A captured step has fixed shapes, so the compiler may know them; what a row can hold is one of them."""


class StepInputs:
    """Tensors of a step of one row, the same for every level: changed in place, never replaced.

    Args:
        spec: the model.
        capacity: tokens a row can hold.
        dtype: of keys and values.
        device: where they lie.
    """

    def __init__(self, spec: ModelSpec, capacity: int, dtype: torch.dtype, device: str = "cuda") -> None:
        self.capacity = capacity
        self.tensors: dict[str, torch.Tensor] = {
            "input_ids": torch.zeros(1, 1, dtype=torch.long, device=device),
            "position_ids": torch.zeros(1, 1, dtype=torch.long, device=device),
            "total_tokens": torch.zeros((), dtype=torch.int32, device=device),
            "logits_index": torch.zeros(1, 1, dtype=torch.long, device=device),
        }
        slot = torch.zeros(1, dtype=torch.int32, device=device)
        for block, row in enumerate(spec.kv):
            self.tensors[last_slot_name(block)] = slot
            for part in CACHE_PARTS:
                shape = (1, row.num_heads, capacity, row.head_dim)
                self.tensors[past_name(block, part)] = torch.randn(shape, dtype=dtype, device=device)
        self._slot = slot

    def set(self, token: int, position: int) -> None:
        """The token to be run, and its place."""
        self.tensors["input_ids"].fill_(token)
        self.tensors["position_ids"].fill_(position)
        self.tensors["total_tokens"].fill_(position + 1)
        self._slot.fill_(position)


def lower_step(marked: MarkedProgram, mask: DepthMask, capacity: int) -> AtenProgram:
    """The step of one level: one row of so many tokens, one token more."""
    return lower(marked, [block_unit(block) for block in mask.skipped], sizes=_ONE_TOKEN | {"capacity": capacity})


class CompiledStep:
    """A compiled step, run as a CUDA graph.

    Args:
        program: from `lower_step`.
        inputs: shared by all levels.
        folder: where the package is written.
        name: of the level.

    Attributes:
        logits: (1, 1, vocab), written by every run.
    """

    def __init__(self, program: AtenProgram, inputs: StepInputs, folder: Path, name: str) -> None:
        path = folder / f"{name}{SUFFIX}"
        compile_program(program.program, path)
        self._package = Package(path, program.signature, SharedWeights.over(program.weights))
        self._arguments = [inputs.tensors[value.name] for value in program.signature.inputs]
        self._graph: torch.cuda.CUDAGraph | None = None
        self.logits = self._package.run(self._arguments)

    def record(self) -> None:
        """Record the step; what runs afterwards is the recording."""
        for _ in range(3):
            self._package.run(self._arguments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self._package.run(self._arguments)
        self._graph = graph

    def run(self) -> None:
        """Queue a step."""
        if self._graph is None:
            self.logits = self._package.run(self._arguments)
        else:
            self._graph.replay()

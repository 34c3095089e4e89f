"""Attention in both directions as ONNX operators, against what defines it: prompts, chunks, steps, in place."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from blockexport.export import ops
from blockexport.export.lower import ort
from blockexport.export.trace import MarkedProgram

CAPACITY = 9
NAMES = ("query", "key", "value", "past_key", "past_value", "last_slot", "total_tokens", "mutual")


class Attending(nn.Module):
    def __init__(self, window: int, softcap: float) -> None:
        super().__init__()
        self._options = (0.3, window, softcap)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *arrays, mutual = inputs
        found: tuple[torch.Tensor, ...] = ops.cached_attention(*arrays, *self._options, mutual)
        return found


def inputs_of(batch: int, seq: int, last: list[int], total: int, seed: int) -> tuple[torch.Tensor, ...]:
    source = torch.Generator().manual_seed(seed)
    new = [torch.randn(batch, heads, seq, 4, generator=source) for heads in (4, 2, 2)]
    past = [torch.randn(batch, 2, CAPACITY, 4, generator=source) for _ in range(2)]
    flags = torch.rand(batch, seq, generator=source) < 0.6
    return (*new, *past, torch.tensor(last, dtype=torch.int32), torch.tensor(total, dtype=torch.int32), flags)


@pytest.mark.parametrize(("window", "softcap"), [(ops.NO_WINDOW, ops.NO_SOFTCAP), (2, 0.5)])
def test_it_is_what_the_operator_means(window: int, softcap: float, tmp_path: Path) -> None:
    module, auto = Attending(window, softcap), Dim.DYNAMIC
    new, past = {0: auto, 2: auto}, {0: auto, 2: auto}
    shapes = ((new, new, new, past, past, {0: auto}, {}, {0: auto, 1: auto}),)
    program = torch.export.export(module, inputs_of(2, 3, [2, 2], 3, 0), dynamic_shapes=shapes, strict=False)
    lowered = ort.lower(MarkedProgram(program, NAMES, ("attended", "present_key", "present_value"), {}, {}))
    assert "Attention" in {node.op_type for node in lowered.graph}
    ir.save(lowered, tmp_path / "attention.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "attention.onnx"), providers=["CPUExecutionProvider"])
    # A ragged prompt, a chunk and a step behind a past, each row at its own length.
    for case, inputs in enumerate(
        (inputs_of(3, 5, [4, 2, 0], 5, 1), inputs_of(1, 4, [6], 7, 2), inputs_of(2, 1, [6, 3], 7, 3))
    ):
        wanted = module(*inputs)
        found = run_in_place(session, dict(zip(NAMES, map(torch.Tensor.numpy, inputs), strict=True)))
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours == pytest.approx(theirs.numpy(), abs=1e-5), case


def run_in_place(session: Any, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
    for name in ("key", "value"):
        row = arrays[f"past_{name}"]
        binding.bind_output(f"present_{name}", "cpu", 0, np.float32, list(row.shape), row.ctypes.data)
    binding.bind_output("attended", "cpu")
    session.run_with_iobinding(binding)
    return binding.get_outputs()[-1].numpy(), arrays["past_key"], arrays["past_value"]

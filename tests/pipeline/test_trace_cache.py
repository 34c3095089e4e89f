"""A trace from the cache is the trace that was put there, and the cache holds no weights."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from blockexport.export.graph_file import shared_tensors
from blockexport.export.lower import ort
from blockexport.export.trace import MarkedProgram
from blockexport.models.loaded import wrap_module
from blockexport.pipeline.trace_cache import marked_graph
from blockexport.testing.tiny_models import tiny_model


def no_lowering(_: MarkedProgram) -> ir.Model:
    pytest.fail("the cache was not used")


@pytest.mark.slow
def test_what_comes_back_is_what_went_in(tmp_path: Path) -> None:
    # Of the weights of experts the graph holds another layout than the model.
    model = wrap_module(tiny_model("olmoe", 2, num_experts=16))
    first = marked_graph(model, ort.TARGET, ort.lower, tmp_path)
    again = marked_graph(model, ort.TARGET, no_lowering, tmp_path)
    wanted, found = shared_tensors(first), shared_tensors(again)
    assert any(name.endswith(".interleaved") for name in wanted)
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor)
    (entry,) = (tmp_path / "traces").iterdir()
    assert entry.stat().st_size < sum(tensor.nbytes for tensor in wanted.values()) / 4

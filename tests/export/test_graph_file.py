from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.weights import write_weights
from blockexport.errors import ExportError
from blockexport.export.graph_file import save, shared_tensors, signature_of, to_bytes

KEPT = (0, 2)


def test_weights_are_references_into_the_one_file_and_nothing_large_is_inside(
    lowered: Callable, tmp_path: Path
) -> None:
    path = lowered("llama").write(tmp_path, *KEPT)
    stored = (tmp_path / WEIGHTS_FILE).read_bytes()
    tensors = shared_tensors(lowered("llama").level(*KEPT))
    outside = 0
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            assert tensor.ByteSize() < 200
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        assert where["location"] == WEIGHTS_FILE
        begin, length = int(where["offset"]), int(where["length"])
        assert begin % 64 == 0
        assert stored[begin : begin + length] == tensors[tensor.name].tobytes()
        outside += 1
    assert outside == len(tensors) > 0


def test_equal_graphs_are_equal_bytes_without_a_word_of_this_machine(lowered: Callable, tmp_path: Path) -> None:
    level = lowered("llama")
    locations = write_weights(tmp_path / WEIGHTS_FILE, shared_tensors(level.level(0, 1, 2, 3)))
    first, second = (to_bytes(level.level(*KEPT), locations) for _ in range(2))
    assert first == second
    for word in (b"site-packages", b".py", str(Path.home()).encode() + b"/", str(Path(__file__).parents[2]).encode()):
        assert word not in first
    save(level.level(*KEPT), tmp_path / "level.onnx", locations)
    assert (tmp_path / "level.onnx").read_bytes() == first


@pytest.mark.parametrize("architecture", ["llama", pytest.param("vit", marks=pytest.mark.slow)])
def test_the_signature_is_that_of_the_file(architecture: str, lowered: Callable, tmp_path: Path) -> None:
    level = lowered(architecture)
    signature = signature_of(level.level(*KEPT))
    graph = onnx.load(level.write(tmp_path, *KEPT), load_external_data=False).graph
    assert [spec.name for spec in signature.inputs] == [value.name for value in graph.input]
    assert [spec.name for spec in signature.outputs] == [value.name for value in graph.output]
    for spec, value in zip((*signature.inputs, *signature.outputs), (*graph.input, *graph.output), strict=True):
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        assert list(spec.shape) == axes
        assert spec.dtype == ir.DataType(value.type.tensor_type.elem_type).numpy().name
    first = signature.inputs[0]
    assert first.shape == (("batch", "seq") if architecture == "llama" else ("batch", 1, 8, 8))


def one_initializer(array: Any) -> ir.Model:
    value = ir.Value(name="w", const_value=None if array is None else ir.tensor(array, name="w"))
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def test_an_initializer_without_a_value_is_refused() -> None:
    with pytest.raises(ExportError, match="initializer w of the graph has no value"):
        shared_tensors(one_initializer(None))


def test_small_constants_stay_in_the_graph() -> None:
    assert shared_tensors(one_initializer(np.zeros(16, np.float32))) == {}
    assert list(shared_tensors(one_initializer(np.zeros(17, np.float32)))) == ["w"]
    assert b"external_data" not in to_bytes(one_initializer(np.zeros(16, np.float32)), {})


def test_a_value_without_shape_or_type_has_no_signature() -> None:
    graph = ir.Graph([ir.Value(name="x")], [], nodes=[], opset_imports={"": 23})
    with pytest.raises(ExportError, match="graph value x has no shape or type"):
        signature_of(ir.Model(graph, ir_version=10))

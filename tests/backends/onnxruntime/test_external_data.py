from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from blockexport.backends.onnxruntime.external_data import edit_external, read_external
from blockexport.errors import BundleError


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """One initializer inside, one outside at an offset and of a size that take several bytes to write down."""
    inside = ir.Tensor(np.arange(3, dtype=np.float32), name="inside")
    outside = ir.ExternalTensor(
        "data.bin", 1 << 35, 70_000 * 4, ir.DataType.FLOAT, shape=ir.Shape([700, 100]), name="w"
    )
    values = [
        ir.Value(name=t.name, shape=t.shape, type=ir.TensorType(t.dtype), const_value=t) for t in (inside, outside)
    ]
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=values, name="g", opset_imports={"": 23}), ir_version=10)
    model.metadata_props["kept"] = "as it is"
    (tmp_path / "graph.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    return tmp_path / "graph.onnx"


def test_only_tensors_that_lie_elsewhere_are_read(graph: Path) -> None:
    (tensor,) = read_external(graph).values()
    assert (tensor.name, tensor.shape, tensor.dtype) == ("w", (700, 100), onnx.TensorProto.FLOAT)
    assert tensor.entries == {"location": "data.bin", "offset": str(1 << 35), "length": "280000"}


def test_all_else_stays_as_it_was(graph: Path) -> None:
    before = onnx.load(graph, load_external_data=False)
    added = {"location": "other.bin", "offset": "7", "length": "280000", "prepacked_0": "k|" + "9" * 300}
    after = onnx.load_from_string(edit_external(graph, lambda tensor: added))
    (changed,) = [tensor for tensor in after.graph.initializer if tensor.external_data]
    assert {entry.key: entry.value for entry in changed.external_data} == added
    for model in (before, after):
        for tensor in model.graph.initializer:
            del tensor.external_data[:]
    assert before == after


def test_no_change_gives_the_same_model(graph: Path) -> None:
    edited = onnx.load_from_string(edit_external(graph, lambda tensor: tensor.entries))
    assert edited == onnx.load(graph, load_external_data=False)


def test_every_cut_off_file_is_refused_or_holds_no_more_than_the_whole(graph: Path) -> None:
    whole = graph.read_bytes()
    messages = []
    for size in range(1, len(whole)):
        graph.write_bytes(whole[:size])
        try:
            assert set(read_external(graph)) <= {"w"}
        except BundleError as error:
            messages.append(str(error))
    assert len(messages) > len(whole) / 2
    assert all("graph.onnx is not an ONNX file" in message for message in messages)


def test_bytes_of_another_kind_are_refused(graph: Path) -> None:
    for content in (b"\xff" * 40, b"3" * 40, b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"):
        graph.write_bytes(content)
        with pytest.raises(BundleError, match="not an ONNX file"):
            read_external(graph)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gone\.onnx"):
        read_external(tmp_path / "gone.onnx")

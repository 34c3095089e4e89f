"""Splitting heads is copied out of a graph where it can be, and only there."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from blockexport.export.heads import keep_heads_packed

BATCH, SEQ, HEADS, DIM = 2, 3, 4, 6


def _value(name: str, shape: list[int | str], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _shape_constant(name: str, *sizes: int) -> ir.Value:
    tensor = ir.Tensor(np.array(sizes, np.int64), name=name)
    return ir.Value(name=name, shape=ir.Shape([len(sizes)]), type=ir.TensorType(tensor.dtype), const_value=tensor)


def _rotary(perm: list[int], joined: int = HEADS * DIM) -> ir.Model:
    """Heads split and swapped before a rotary embedding, swapped back and joined after it."""
    packed = _value("packed", ["batch", "seq", HEADS * DIM])
    tables = [_value(name, ["batch", "seq", DIM // 2]) for name in ("cos", "sin")]
    split_shape, join_shape = _shape_constant("split", 0, 0, HEADS, DIM), _shape_constant("join", 0, 0, joined)
    split = ir.node("Reshape", [packed, split_shape], name="split")
    swap = ir.node("Transpose", [split.outputs[0]], {"perm": perm}, name="swap")
    rotary = ir.node("RotaryEmbedding", [swap.outputs[0], *tables], {"num_heads": HEADS}, name="rotary")
    back = ir.node("Transpose", [rotary.outputs[0]], {"perm": perm}, name="back")
    join = ir.node("Reshape", [back.outputs[0], join_shape], name="join")
    join.outputs[0].name, join.outputs[0].shape = "result", ir.Shape(["batch", "seq", joined])
    join.outputs[0].type = packed.type
    end = ir.node("Identity", [join.outputs[0]], name="end")
    end.outputs[0].name, end.outputs[0].shape, end.outputs[0].type = "y", join.outputs[0].shape, packed.type
    graph = ir.Graph(
        [packed, *tables],
        end.outputs,
        nodes=[split, swap, rotary, back, join, end],
        initializers=[split_shape, join_shape],
        opset_imports={"": 23},
        name="g",
    )
    return ir.Model(graph, ir_version=10)


def _run(model: ir.Model) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    sizes = {"batch": BATCH, "seq": SEQ}
    feeds = {
        value.name: rng.standard_normal([sizes.get(size, size) for size in value.shape]).astype(np.float32)
        for value in session.get_inputs()
    }
    output: np.ndarray = session.run(None, feeds)[0]
    return output


def test_a_rotary_embedding_takes_packed_heads() -> None:
    before, after = _rotary([0, 2, 1, 3]), _rotary([0, 2, 1, 3])
    keep_heads_packed(after)
    assert Counter(node.op_type for node in after.graph) == {"RotaryEmbedding": 1, "Identity": 1}
    np.testing.assert_array_equal(_run(after), _run(before))


@pytest.mark.parametrize("model", [_rotary([0, 1, 2, 3])], ids=["other axes"])
def test_whatever_else_looks_alike_stays(model: ir.Model) -> None:
    before = [node.op_type for node in model.graph]
    keep_heads_packed(model)
    assert [node.op_type for node in model.graph] == before


def test_a_value_that_others_read_stays_split() -> None:
    model = _rotary([0, 2, 1, 3])
    back = next(node for node in model.graph if node.name == "back")
    swapped = back.outputs[0]
    swapped.name, swapped.type = "swapped", model.graph.outputs[0].type
    swapped.shape = ir.Shape(["batch", "seq", HEADS, DIM])
    model.graph.outputs.append(swapped)
    keep_heads_packed(model)
    assert "swapped" in [value.name for value in model.graph.outputs]
    assert swapped.producer() is back

"""Clean-up may change how a graph computes, never what it computes, nor what a weight is called."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx import parser

from blockexport.export.simplify import simplify, use_weights_as_stored

SHARED_WEIGHT = "{" + ",".join(str(i) for i in range(12)) + "}"
# Two blocks that happen to have equal weights, one of them used transposed; shape arithmetic; a repeated subexpression.
TEXT = f"""
<ir_version: 10, opset_import: ["" : 23]>
level (float[n, 4] x) => (float[n, 3] y)
<float[3, 4] w0 = {SHARED_WEIGHT}, float[3, 4] w1 = {SHARED_WEIGHT}>
{{
  a = Transpose <perm = [1, 0]> (w0)
  b = Transpose <perm = [1, 0]> (w1)
  first = MatMul (x, a)
  second = MatMul (x, b)
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [1]> ()
  three = Add (one, two)
  width = Sub (three, one)
  scale = Cast <to = 1> (width)
  left = Mul (first, scale)
  right = Mul (second, scale)
  again = Mul (second, scale)
  both = Add (left, right)
  unused = Exp (both)
  y = Add (both, again)
}}
"""


def graph_of(text: str) -> ir.Model:
    model = ir.from_proto(parser.parse_model(text))
    for block in range(2):
        value = model.graph.initializers.pop(f"w{block}")
        value.name = f"model.layers.{block}.w"
        model.graph.register_initializer(value)
    return model


def run(model: ir.Model, x: Any) -> Any:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_weights_keep_names_layouts_and_their_number() -> None:
    model = graph_of(TEXT)
    simplify(model)
    weights = {name: value for name, value in model.graph.initializers.items() if "layers" in name}
    assert sorted(weights) == ["layers.0.w", "layers.1.w"]
    for value in weights.values():
        assert np.array_equal(value.const_value.numpy(), np.arange(12, dtype=np.float32).reshape(3, 4))


def test_what_is_computed_twice_or_for_nothing_goes() -> None:
    model = graph_of(TEXT)
    simplify(model)
    operators = [node.op_type for node in model.graph]
    assert "Exp" not in operators
    assert "Sub" not in operators
    assert "Cast" not in operators
    assert operators.count("Mul") < 3


def test_transposed_weights_are_multiplied_as_they_are_stored() -> None:
    model = graph_of(TEXT)
    simplify(model)
    use_weights_as_stored(model)
    assert "Transpose" not in [node.op_type for node in model.graph]
    assert {node.op_type for node in model.graph} >= {"FusedMatMul"}


def test_the_result_stays_the_same() -> None:
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    wanted = run(graph_of(TEXT), x)
    model = graph_of(TEXT)
    simplify(model)
    assert np.allclose(run(model, x), wanted, rtol=1e-6)
    use_weights_as_stored(model)
    assert np.allclose(run(model, x), wanted, rtol=1e-6)

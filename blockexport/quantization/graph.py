"""A marked graph with quantised weights: every matrix that a linear layer or the embedding reads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from blockexport.core.precision import Precision
from blockexport.quantization.blockwise import QuantisedMatrix, quantise, usable_block_size

_DOMAIN = "com.microsoft"
# Integer activations inside the operator, its fast path; weights are integers already.
_ACCURACY_INT8 = 4
_BIAS_INPUT = 5
_LINEAR = ("MatMul", "FusedMatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class QuantisedGraph:
    """A graph and what its integers stand for.

    Attributes:
        model: still with boundary markers.
        matrices: by the checkpoint's name of the weight.
        transposed: names of weights stored as (inputs, outputs), which were transposed before they were quantised.
    """

    model: ir.Model
    matrices: dict[str, QuantisedMatrix]
    transposed: frozenset[str]


def quantise_graph(marked: ir.Model, precision: Precision) -> QuantisedGraph:
    """Quantise the weights of a marked graph, which stays as it is.

    A weight is quantised for all its readers or not at all. Weights whose rows no block size divides, batched expert
    weights, convolutions and tables of positions stay fp32.

    Args:
        marked: full-depth graph for ONNX Runtime, with boundary markers.
        precision: of the weights.
    """
    model = marked.clone()
    matrices: dict[str, QuantisedMatrix] = {}
    transposed = set()
    for name, weight in list(model.graph.initializers.items()):
        readers = _readers(weight)
        if readers is None:
            continue
        is_transposed = any(_is_stored_inputs_first(node) for node in readers)
        tensor = weight.const_value
        assert tensor is not None
        columns = tensor.shape.numpy()[0 if is_transposed else 1]
        block_size = usable_block_size(columns, precision.block_size)
        if block_size is None:
            continue
        array = tensor.numpy().T if is_transposed else tensor.numpy()
        matrices[name] = quantise(array, precision.model_copy(update={"block_size": block_size}))
        transposed |= {name} if is_transposed else set()
        parts = _Parts(model.graph, f"{name}.{precision}", matrices[name])
        for node in readers:
            _replace_embedding(node, parts) if node.op_type == "Gather" else _replace_linear(node, parts)
        del model.graph.initializers[name]
    model.opset_imports.setdefault(_DOMAIN, 1)
    return QuantisedGraph(model, matrices, frozenset(transposed))


def _readers(weight: ir.Value) -> list[ir.Node] | None:
    """The nodes that read a matrix, if all of them can read integers instead."""
    tensor = weight.const_value
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    uses = list(weight.uses())
    linear = [usage.node for usage in uses if _reads_as_linear(*usage)]
    embeddings = [usage.node for usage in uses if _reads_as_embedding(*usage)]
    if not uses or len(linear) + len(embeddings) < len(uses):
        return None
    first = {_is_stored_inputs_first(node) for node in linear} | ({False} if embeddings else set())
    return linear + embeddings if len(first) == 1 else None


def _reads_as_linear(node: ir.Node, index: int) -> bool:
    if node.op_type not in _LINEAR or index != 1 or _number(node, "transA", 0):
        return False
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        is_row = bias is None or (bias.shape is not None and len(bias.shape) == 1)
        return is_row and _number(node, "alpha", 1) == 1 and _number(node, "beta", 1) == 1
    return not _number(node, "transBatchA", 0) and not _number(node, "transBatchB", 0)


def _reads_as_embedding(node: ir.Node, index: int) -> bool:
    """Positions and token types are looked up in small tables, and are added, not multiplied: these stay."""
    indices = node.inputs[1] if node.op_type == "Gather" else None
    return index == 0 and indices is not None and indices.name == "input_ids" and _number(node, "axis", 0) == 0


def _is_stored_inputs_first(node: ir.Node) -> bool:
    return node.op_type in _LINEAR and not _number(node, "transB", 0)


def _number(node: ir.Node, name: str, default: float) -> float:
    """An attribute that is a number."""
    return float(node.attributes[name].value) if name in node.attributes else default


class _Parts:
    """The initializers of one quantised weight, called after it, so that the audit sees whose they are."""

    def __init__(self, graph: ir.Graph, name: str, matrix: QuantisedMatrix) -> None:
        self.graph = graph
        self.matrix = matrix
        self._name = name

    def get(self, part: str, array: NDArray[Any]) -> ir.Value:
        name = f"{self._name}.{part}"
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    @property
    def scales(self) -> list[ir.Value]:
        """Scales, and zero points where there are any."""
        values = [self.get("scales", self.matrix.scales)]
        if self.matrix.zero_points is not None:
            values.append(self.get("zero_points", self.matrix.zero_points))
        return values


def _replace_linear(node: ir.Node, parts: _Parts) -> None:
    matrix = parts.matrix
    attributes = {
        "K": matrix.scales.shape[1] * matrix.block_size,
        "N": len(matrix.packed),
        "bits": matrix.bits,
        "block_size": matrix.block_size,
        "accuracy_level": _ACCURACY_INT8,
    }
    inputs = [node.inputs[0], parts.get("packed", matrix.packed), *parts.scales]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        # Between scales and bias come zero points and a column order.
        inputs += [None] * (_BIAS_INPUT - len(inputs)) + [node.inputs[2]]
    output = _replace(node, "MatMulNBits", inputs, attributes)
    factor = _number(node, "alpha", 1)
    if factor != 1:
        _scale(parts.graph, output, factor)


def _replace_embedding(node: ir.Node, parts: _Parts) -> None:
    matrix = parts.matrix
    # The same bytes as a linear layer's, in another shape: the weight file holds them once.
    rows = parts.get("rows", matrix.packed.reshape(len(matrix.packed), -1))
    attributes = {"bits": matrix.bits, "block_size": matrix.block_size, "quantize_axis": 1, "gather_axis": 0}
    _replace(node, "GatherBlockQuantized", [rows, node.inputs[1], *parts.scales], attributes)


def _replace(node: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, int]) -> ir.Value:
    new = ir.node(op_type, inputs, attributes, domain=_DOMAIN, name=node.name)
    new.metadata_props.update(node.metadata_props)
    old, output = node.outputs[0], new.outputs[0]
    output.name, output.shape, output.type = old.name, old.shape, old.type
    graph = node.graph
    assert graph is not None
    graph.insert_after(node, new)
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return output


def _scale(graph: ir.Graph, value: ir.Value, factor: float) -> None:
    """Multiply a value by the factor that the node which made it had as an attribute."""
    readers = list(value.uses())
    constant = ir.Tensor(np.float32(factor), name=f"{value.name}.factor")
    scalar = ir.Value(name=constant.name, shape=ir.Shape([]), type=ir.TensorType(constant.dtype), const_value=constant)
    graph.register_initializer(scalar)
    producer = value.producer()
    assert producer is not None
    scaled = ir.node("Mul", [value, scalar], name=f"{producer.name}.scaled")
    output = scaled.outputs[0]
    output.name, output.shape, output.type = f"{value.name}.scaled", value.shape, value.type
    graph.insert_after(producer, scaled)
    for usage in readers:
        usage.node.replace_input_with(usage.idx, output)
    if value.is_graph_output():
        graph.outputs[graph.outputs.index(value)] = output
        output.name, value.name = value.name, f"{value.name}.unscaled"

"""A marked graph with quantised weights: every matrix that a linear layer, an expert or the embedding reads."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from blockexport.core.precision import Precision
from blockexport.quantization.blockwise import QuantisedMatrix, quantise, usable_block_size
from blockexport.quantization.experts import quantise_experts, router_weights
from blockexport.quantization.parts import Parts, replace

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

    A weight is quantised for all its readers or not at all. Weights whose rows no block size divides, those by which
    tokens choose experts, convolutions and tables of positions stay fp32.

    Args:
        marked: full-depth graph for ONNX Runtime, with boundary markers.
        precision: of the weights.
    """
    model = marked.clone()
    matrices = quantise_experts(model.graph, precision)
    routers = router_weights(model.graph, _LINEAR)
    transposed = set()
    for name, weight in list(model.graph.initializers.items()):
        readers = _readers(weight)
        if readers is None or name in routers:
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
        parts = Parts(model.graph, f"{name}.{precision}", matrices[name])
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


def _replace_linear(node: ir.Node, parts: Parts) -> None:
    matrix = parts.matrix
    attributes = {
        "K": matrix.scales.shape[1] * matrix.block_size,
        "N": len(matrix.packed),
        "bits": matrix.bits,
        "block_size": matrix.block_size,
        "accuracy_level": _ACCURACY_INT8,
    }
    inputs = [node.inputs[0], parts.packed, *parts.scales]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        # Between scales and bias come zero points and a column order.
        inputs += [None] * (_BIAS_INPUT - len(inputs)) + [node.inputs[2]]
    output = replace(node, "MatMulNBits", inputs, attributes)
    factor = _number(node, "alpha", 1)
    if factor != 1:
        _scale(parts.graph, output, factor)


def _replace_embedding(node: ir.Node, parts: Parts) -> None:
    matrix = parts.matrix
    # The same bytes as a linear layer's, in another shape: the weight file holds them once.
    rows = parts.get("rows", matrix.packed.reshape(len(matrix.packed), -1))
    attributes = {"bits": matrix.bits, "block_size": matrix.block_size, "quantize_axis": 1, "gather_axis": 0}
    replace(node, "GatherBlockQuantized", [rows, node.inputs[1], *parts.scales], attributes)


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

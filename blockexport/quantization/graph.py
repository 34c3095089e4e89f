"""A marked graph with smaller weights: every matrix that a linear layer, an expert or the embedding reads."""

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from blockexport.core.precision import Precision
from blockexport.quantization.bf16 import Bf16Matrix
from blockexport.quantization.bf16_nodes import Bf16Nodes
from blockexport.quantization.blockwise import QuantisedMatrix, quantise, usable_block_size
from blockexport.quantization.experts import quantise_experts, router_weights
from blockexport.quantization.integer_nodes import IntegerNodes
from blockexport.quantization.nodes import DOMAIN, number

_LINEAR = ("MatMul", "FusedMatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class QuantisedGraph:
    """A graph and what its weights stand for.

    Attributes:
        model: still with boundary markers.
        matrices: by the checkpoint's name of the weight.
        transposed: names of weights that the checkpoint has as (inputs, outputs); here outputs come first.
    """

    model: ir.Model
    matrices: dict[str, QuantisedMatrix | Bf16Matrix]
    transposed: frozenset[str]


def quantise_graph(marked: ir.Model, precision: Precision) -> QuantisedGraph:
    """Store the weights of a marked graph, which stays as it is, as integers or in bf16.

    A weight is changed for all its readers or not at all. Weights by which tokens choose experts, convolutions and
    tables of positions stay fp32. So do stacked experts that were to be bf16, and what was to be integers in rows that
    no block size divides.

    Args:
        marked: full-depth graph for ONNX Runtime, with boundary markers.
        precision: of the weights; not fp32.
    """
    model = marked.clone()
    matrices: dict[str, QuantisedMatrix | Bf16Matrix] = {}
    if precision.is_quantised:
        matrices |= quantise_experts(model.graph, precision)
    routers = router_weights(model.graph, _LINEAR)
    transposed = set()
    for name, weight in list(model.graph.initializers.items()):
        readers = _readers(weight)
        if readers is None or name in routers:
            continue
        is_transposed = any(_is_stored_inputs_first(node) for node in readers)
        tensor = weight.const_value
        assert tensor is not None
        matrix = _store(tensor.numpy().T if is_transposed else tensor.numpy(), precision)
        if matrix is None:
            continue
        matrices[name] = matrix
        transposed |= {name} if is_transposed else set()
        nodes = _nodes(model.graph, f"{name}.{precision}", matrix)
        for node in readers:
            nodes.replace_embedding(node) if node.op_type == "Gather" else nodes.replace_linear(node)
        del model.graph.initializers[name]
    model.opset_imports.setdefault(DOMAIN, 1)
    return QuantisedGraph(model, matrices, frozenset(transposed))


def _store(matrix: NDArray[Any], precision: Precision) -> QuantisedMatrix | Bf16Matrix | None:
    """A matrix (outputs, inputs) as it will lie in the weight file; None if it has to stay fp32."""
    if not precision.is_quantised:
        return Bf16Matrix.of(matrix)
    block_size = usable_block_size(matrix.shape[1], precision.block_size)
    if block_size is None:
        return None
    return quantise(matrix, precision.model_copy(update={"block_size": block_size}))


def _nodes(graph: ir.Graph, name: str, matrix: QuantisedMatrix | Bf16Matrix) -> IntegerNodes | Bf16Nodes:
    if isinstance(matrix, QuantisedMatrix):
        return IntegerNodes(graph, name, matrix)
    return Bf16Nodes(graph, name, matrix)


def _readers(weight: ir.Value) -> list[ir.Node] | None:
    """The nodes that read a matrix, if all of them can read another form of it."""
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
    if node.op_type not in _LINEAR or index != 1 or number(node, "transA", 0):
        return False
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        is_row = bias is None or (bias.shape is not None and len(bias.shape) == 1)
        return is_row and number(node, "alpha", 1) == 1 and number(node, "beta", 1) == 1
    return not number(node, "transBatchA", 0) and not number(node, "transBatchB", 0)


def _reads_as_embedding(node: ir.Node, index: int) -> bool:
    """Positions and token types are looked up in small tables, and are added, not multiplied: these stay."""
    indices = node.inputs[1] if node.op_type == "Gather" else None
    return index == 0 and indices is not None and indices.name == "input_ids" and number(node, "axis", 0) == 0


def _is_stored_inputs_first(node: ir.Node) -> bool:
    return node.op_type in _LINEAR and not number(node, "transB", 0)

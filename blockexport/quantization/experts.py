"""Mixtures of experts with quantised weights: ONNX Runtime's `QMoE` in place of `MoE`, and routers left as they are."""

import math

import numpy as np
import onnx_ir as ir

from blockexport.core.expert_weights import source_of
from blockexport.core.precision import Precision
from blockexport.quantization.blockwise import QuantisedMatrix, quantise, usable_block_size
from blockexport.quantization.nodes import DOMAIN, replace
from blockexport.quantization.parts import Parts

_ACCURACY_INT8 = 4
_GATE_UP, _DOWN = 2, 4
# Inputs of QMoE: between these lie biases and a third matrix, which gated experts do not have.
_NUM_INPUTS = 13
_FIRST, _SECOND, _ZERO_POINTS = 2, 5, 11


def quantise_experts(graph: ir.Graph, precision: Precision) -> dict[str, QuantisedMatrix]:
    """Quantise the weights of all experts, in place; those whose rows no block size divides stay as they are.

    Args:
        graph: marked, for ONNX Runtime.
        precision: of the weights.

    Returns:
        By the checkpoint's name, the matrices of all experts one behind the other.
    """
    found: dict[str, QuantisedMatrix] = {}
    for node in list(graph):
        if node.op_type == "MoE":
            found |= _quantise(graph, node, precision)
    return found


def _quantise(graph: ir.Graph, node: ir.Node, precision: Precision) -> dict[str, QuantisedMatrix]:
    weights = [node.inputs[_GATE_UP], node.inputs[_DOWN]]
    tensors = [weight.const_value for weight in weights if weight is not None and weight.const_value is not None]
    assert len(tensors) == len(weights)
    block_size = usable_block_size(math.gcd(*(tensor.shape.numpy()[2] for tensor in tensors)), precision.block_size)
    if block_size is None:
        return {}
    chosen = precision.model_copy(update={"block_size": block_size})
    found = {}
    inputs: list[ir.Value | None] = [*node.inputs[:_FIRST], *[None] * (_NUM_INPUTS - _FIRST)]
    for number, (tensor, place) in enumerate(zip(tensors, (_FIRST, _SECOND), strict=True)):
        array = tensor.numpy()
        num_experts, num_rows, width = array.shape
        name = str(tensor.name)
        matrix = quantise(array.reshape(-1, width), chosen)
        parts = Parts(graph, f"{name}.{precision}", matrix, stack=num_experts)
        inputs[place : place + 2] = [parts.packed, parts.scales[0]]
        inputs[_ZERO_POINTS + number] = parts.scales[1] if matrix.zero_points is not None else None
        source = source_of(name)
        found[source or name] = matrix if source is None else _in_halves(matrix, num_experts, num_rows)
        del graph.initializers[name]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    attributes |= {"expert_weight_bits": precision.bits, "block_size": block_size}
    attributes |= {"accuracy_level": _ACCURACY_INT8, "weights_prepacked": 0}
    while inputs[-1] is None:
        inputs.pop()
    replace(node, ir.node("QMoE", inputs, attributes, domain=DOMAIN, name=node.name))
    return found


def _in_halves(matrix: QuantisedMatrix, num_experts: int, num_rows: int) -> QuantisedMatrix:
    """Rows that lie in turn, back in the order of the checkpoint."""
    in_turn = np.arange(num_experts * num_rows).reshape(num_experts, num_rows // 2, 2)
    order = in_turn.swapaxes(1, 2).ravel()
    zero_points = None if matrix.zero_points is None else matrix.zero_points[order]
    return QuantisedMatrix(matrix.packed[order], matrix.scales[order], zero_points, matrix.bits)


def router_weights(graph: ir.Graph, linear: tuple[str, ...]) -> set[str]:
    """Names of the matrices by which tokens choose experts: small, and rounding them changes what is chosen.

    Args:
        graph: with routers that take the largest of something.
        linear: types of nodes that multiply by a matrix.
    """
    names = set()
    seen: set[ir.Node] = set()
    stack = [node.inputs[0] for node in graph if node.op_type == "TopK"]
    while stack:
        value = stack.pop()
        node = value.producer() if value is not None else None
        if node is None or node in seen or node.op_type == "Shape":
            continue
        seen.add(node)
        if node.op_type in linear:
            names |= {str(weight.name) for weight in node.inputs if weight is not None and weight.is_initializer()}
        else:
            stack += node.inputs
    return names

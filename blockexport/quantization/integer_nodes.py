"""Linear layers and embeddings that read integers: ONNX Runtime's `MatMulNBits` and `GatherBlockQuantized`."""

import onnx_ir as ir

from blockexport.quantization.blockwise import QuantisedMatrix
from blockexport.quantization.nodes import DOMAIN, number, replace, scale
from blockexport.quantization.parts import Parts

# Integer activations inside the operator, its fast path; weights are integers already.
_ACCURACY_INT8 = 4
_BIAS_INPUT = 5


class IntegerNodes:
    """Readers of one quantised weight.

    Args:
        graph: where they are.
        name: of the weight.
        matrix: the weight.
    """

    def __init__(self, graph: ir.Graph, name: str, matrix: QuantisedMatrix) -> None:
        self._parts = Parts(graph, name, matrix)

    def replace_linear(self, node: ir.Node) -> None:
        """Let a product read the integers."""
        matrix = self._parts.matrix
        attributes = {
            "K": matrix.scales.shape[1] * matrix.block_size,
            "N": len(matrix.packed),
            "bits": matrix.bits,
            "block_size": matrix.block_size,
            "accuracy_level": _ACCURACY_INT8,
        }
        inputs = [node.inputs[0], self._parts.packed, *self._parts.scales]
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            # Between scales and bias come zero points and a column order.
            inputs += [None] * (_BIAS_INPUT - len(inputs)) + [node.inputs[2]]
        output = replace(node, ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=node.name))
        factor = number(node, "alpha", 1)
        if factor != 1:
            scale(self._parts.graph, output, factor)

    def replace_embedding(self, node: ir.Node) -> None:
        """Let a gather read the integers."""
        matrix = self._parts.matrix
        # The same bytes as a linear layer's, in another shape: the weight file holds them once.
        rows = self._parts.get("rows", matrix.packed.reshape(len(matrix.packed), -1))
        inputs = [rows, node.inputs[1], *self._parts.scales]
        attributes = {"bits": matrix.bits, "block_size": matrix.block_size, "quantize_axis": 1, "gather_axis": 0}
        replace(node, ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=node.name))

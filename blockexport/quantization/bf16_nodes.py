"""Linear layers and embeddings that read bf16, widened to fp32 before anything is computed."""

import onnx_ir as ir

from blockexport.quantization.bf16 import Bf16Matrix
from blockexport.quantization.nodes import DOMAIN, initializer, number, replace, scale


class Bf16Nodes:
    """Readers of one weight in bf16, which a linear layer and a tied embedding share as one tensor.

    Args:
        graph: where they are.
        name: of the weight.
        matrix: the weight.
    """

    def __init__(self, graph: ir.Graph, name: str, matrix: Bf16Matrix) -> None:
        self._graph = graph
        self._weight = initializer(graph, name, matrix.values)

    def replace_linear(self, node: ir.Node) -> None:
        """Let a product read the weight through a cast; it has outputs first, whatever the checkpoint has."""
        widen = ir.node("Cast", [self._weight], {"to": ir.DataType.FLOAT}, name=f"{node.name}.widen")
        widened = widen.outputs[0]
        widened.name, widened.shape = f"{node.name}.weight", self._weight.shape
        widened.type = ir.TensorType(ir.DataType.FLOAT)
        product = ir.node("FusedMatMul", [node.inputs[0], widened], {"transB": 1}, domain=DOMAIN, name=node.name)
        has_bias = node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None
        if has_bias:
            made = product.outputs[0]
            made.name, made.shape, made.type = f"{node.name}.product", node.outputs[0].shape, node.outputs[0].type
            replace(node, ir.node("Add", [made, node.inputs[2]], name=f"{node.name}.bias"), [widen, product])
            return
        output = replace(node, product, [widen])
        factor = number(node, "alpha", 1)
        if factor != 1:
            scale(self._graph, output, factor)

    def replace_embedding(self, node: ir.Node) -> None:
        """Gather rows in bf16, and widen these only."""
        gather = ir.node("Gather", [self._weight, node.inputs[1]], name=node.name)
        rows = gather.outputs[0]
        rows.name, rows.shape, rows.type = f"{node.name}.rows", node.outputs[0].shape, self._weight.type
        replace(node, ir.node("Cast", [rows], {"to": ir.DataType.FLOAT}, name=f"{node.name}.widen"), [gather])

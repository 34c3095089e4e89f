"""The tensors of a quantised weight in a graph, and the nodes that read them."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from blockexport.quantization.blockwise import QuantisedMatrix

_DOMAIN = "com.microsoft"


class Parts:
    """The initializers of one quantised weight, called after it, so that the audit sees whose they are.

    Args:
        graph: gets them.
        name: what their names begin with.
        matrix: the weight.
        stack: of several weights that lie one behind the other, how many there are.
    """

    def __init__(self, graph: ir.Graph, name: str, matrix: QuantisedMatrix, stack: int | None = None) -> None:
        self.graph = graph
        self.matrix = matrix
        self._name = name
        self._stack = stack

    def get(self, part: str, array: NDArray[Any]) -> ir.Value:
        """An initializer, made when it is first asked for."""
        name = f"{self._name}.{part}"
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        if self._stack is not None:
            array = array.reshape(self._stack, len(array) // self._stack, -1)
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    @property
    def packed(self) -> ir.Value:
        """The integers."""
        return self.get("packed", self.matrix.packed)

    @property
    def scales(self) -> list[ir.Value]:
        """Scales, and zero points where there are any."""
        values = [self.get("scales", self.matrix.scales)]
        if self.matrix.zero_points is not None:
            values.append(self.get("zero_points", self.matrix.zero_points))
        return values


def replace(
    node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, int | float | str]
) -> ir.Value:
    """Put an operator of ONNX Runtime in a node's place; returns its output, which keeps the name."""
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

"""The tensors of a quantised weight in a graph."""

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from blockexport.quantization.blockwise import QuantisedMatrix
from blockexport.quantization.nodes import initializer


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
        if self._stack is not None:
            array = array.reshape(self._stack, len(array) // self._stack, -1)
        return initializer(self.graph, f"{self._name}.{part}", array)

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

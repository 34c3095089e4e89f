"""What all nodes that read a weight in another form than fp32 have in common."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

DOMAIN = "com.microsoft"


def number(node: ir.Node, name: str, default: float) -> float:
    """An attribute that is a number."""
    return float(node.attributes[name].value) if name in node.attributes else default


def initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """The initializer of a name, which the first call adds to the graph."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(node: ir.Node, last: ir.Node, before: Sequence[ir.Node] = ()) -> ir.Value:
    """Put nodes in the place of one, whose output the last of them takes over, with its name.

    Returns:
        The output.
    """
    old, output = node.outputs[0], last.outputs[0]
    for new in (*before, last):
        new.metadata_props.update(node.metadata_props)
    output.name, output.shape, output.type = old.name, old.shape, old.type
    graph = node.graph
    assert graph is not None
    graph.insert_after(node, [*before, last])
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return output


def scale(graph: ir.Graph, value: ir.Value, factor: float) -> None:
    """Multiply a value by the factor that the node which made it had as an attribute."""
    readers = list(value.uses())
    scalar = initializer(graph, f"{value.name}.factor", np.array(factor, np.float32))
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

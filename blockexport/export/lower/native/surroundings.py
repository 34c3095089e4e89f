"""What stands before and behind a linear layer, done on the way: a node costs more than its arithmetic."""

import onnx_ir as ir

from blockexport.export.lower.native.replace import DOMAIN, number, only_reader, replace

_LINEAR = frozenset({"MatMul", "MatMulNBits"})
_DEFAULT_EPSILON = 1e-5


def _is_ours(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type in _LINEAR


def take_in_residuals(graph: ir.Graph) -> None:
    """Let a product add the residual stream to itself, where nothing else reads the product."""
    for node in list(graph):
        if not _is_ours(node) or len(node.outputs) > 1 or number(node, "gated", 0):
            continue
        addition = only_reader(node.outputs[0], "Add")
        residual = None if addition is None else _residual_of(addition, node.outputs[0])
        if addition is None or residual is None:
            continue
        attributes = _attributes(node) | {"residual": 1}
        replace(addition.outputs, node.op_type, [*node.inputs, residual], attributes, at=addition, names_from=node)


def _residual_of(addition: ir.Node, product: ir.Value) -> ir.Value | None:
    others = [value for value in addition.inputs if value is not product]
    if len(others) != 1 or others[0] is None or others[0].const_value is not None:
        return None
    is_same_shape = product.shape is not None and others[0].shape == product.shape
    return others[0] if is_same_shape else None


def take_in_norms(graph: ir.Graph) -> None:
    """Let products normalise the rows they read, where nothing else reads the normalised rows."""
    for norm in list(graph):
        if norm.op_type != "RMSNormalization" or norm.domain:
            continue
        rows, weight = norm.inputs
        readers = [reader for reader, index in norm.outputs[0].uses() if index == 0 and _is_ours(reader)]
        is_all = len(readers) == len(norm.outputs[0].uses()) and not norm.outputs[0].is_graph_output()
        if not readers or not is_all or weight is None or number(norm, "axis", -1) not in {-1, _last_axis(rows)}:
            continue
        epsilon = number(norm, "epsilon", _DEFAULT_EPSILON)
        for reader in readers:
            attributes = _attributes(reader) | {"rms_epsilon": epsilon}
            inputs = [rows, *reader.inputs[1:], weight]
            replace(reader.outputs, reader.op_type, inputs, attributes, at=reader, names_from=reader)


def _last_axis(rows: ir.Value | None) -> int:
    return len(rows.shape) - 1 if rows is not None and rows.shape is not None else -1


def _attributes(node: ir.Node) -> dict[str, int | float]:
    return {name: attribute.value for name, attribute in node.attributes.items()}

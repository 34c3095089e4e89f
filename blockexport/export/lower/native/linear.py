"""Linear layers and quantised embeddings: products of our own that read weights as the weight file has them."""

from collections.abc import Iterable

import onnx_ir as ir

from blockexport.export.lower.native.replace import number, only_reader, replace

_STOCK_BIAS_INPUT = 5
_LAYOUT = ("K", "bits", "block_size")
_DENSE_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.BFLOAT16})


def replace_embeddings(graph: ir.Graph) -> None:
    """Replace every gather of rows of a quantised matrix."""
    for node in list(graph):
        if node.op_type == "GatherBlockQuantized":
            _replace_embedding(node)


def replace_linear_layers(graph: ir.Graph) -> None:
    """Replace every product with a weight: one operator for a gated pair, one for all others of the same rows."""
    for readers in _by_input(node for node in graph if _is_linear(node)):
        _replace_siblings(readers)


def _is_linear(node: ir.Node) -> bool:
    """A product with a weight whose rows are outputs, the one layout our operators read."""
    if node.op_type == "MatMulNBits":
        return True
    weight = _dense_weight(node) if node.op_type == "FusedMatMul" else None
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return False
    usual = {"transA": 0, "transB": 1, "alpha": 1.0, "transBatchA": 0, "transBatchB": 0}
    is_plain = all(number(node, name, 1.0 if name == "alpha" else 0) == value for name, value in usual.items())
    return is_plain and weight.const_value.dtype in _DENSE_TYPES


def _dense_weight(node: ir.Node) -> ir.Value | None:
    """What a product multiplies by: as it is stored, if all that stands between is a cast to fp32."""
    weight = node.inputs[1]
    cast = weight.producer() if weight is not None else None
    is_cast = cast is not None and cast.op_type == "Cast" and number(cast, "to", 0) == ir.DataType.FLOAT
    return cast.inputs[0] if cast is not None and is_cast else weight


def _by_input(nodes: Iterable[ir.Node]) -> list[list[ir.Node]]:
    """Nodes that multiply the same activations by weights of the same layout, in graph order."""
    groups: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in nodes:
        layout = tuple(number(node, name, 0) for name in _LAYOUT)
        has_zeros = len(node.inputs) > 3 and node.inputs[3] is not None
        weight = _weights(node)[0]
        kind = weight.dtype if weight is not None else None
        groups.setdefault((id(node.inputs[0]), node.op_type, kind, layout, has_zeros), []).append(node)
    return list(groups.values())


def _replace_siblings(nodes: list[ir.Node]) -> None:
    pairs = [(gate, up) for gate in nodes for up in nodes if _product_of_gated(gate, up) is not None]
    for gate, up in pairs:
        _replace_gated(gate, up)
    others = [node for node in nodes if all(node not in pair for pair in pairs)]
    for alike in (
        [node for node in others if _bias_of(node) is None],
        [node for node in others if _bias_of(node) is not None],
    ):
        if alike:
            _replace_products(alike)


def _attributes(node: ir.Node) -> dict[str, int]:
    if node.op_type != "MatMulNBits":
        return {}
    layout = {name: node.attributes[name].as_int() for name in _LAYOUT}
    return layout | ({"zero_points": 1} if len(_weights(node)) > 2 else {})


def _replace_embedding(node: ir.Node) -> None:
    scales, graph = node.inputs[2], node.graph
    assert scales is not None
    assert scales.shape is not None
    assert graph is not None
    num_rows, num_blocks = scales.shape.numpy()
    layout = {name: node.attributes[name].as_int() for name in ("bits", "block_size")}
    layout["K"] = num_blocks * layout["block_size"]
    rows = node.inputs[0]
    assert rows is not None
    assert rows.const_value is not None
    # The shape in which a linear layer reads the same bytes, under the same name, so that a tied head shares it.
    name = str(rows.name).removesuffix("rows") + "packed"
    blocks = graph.initializers.get(name)
    if blocks is None:
        tensor = ir.Tensor(rows.const_value.numpy().reshape(num_rows, num_blocks, -1), name=name)
        kind = ir.TensorType(tensor.dtype)
        blocks = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=kind, const_value=tensor)
        graph.register_initializer(blocks)
    replace(node.outputs, "GatherNBits", [blocks, *node.inputs[1:]], layout, at=node, names_from=node)


def _op_type(node: ir.Node) -> str:
    return "MatMulNBits" if node.op_type == "MatMulNBits" else "MatMul"


def _weights(node: ir.Node) -> list[ir.Value | None]:
    """Weight, and for quantised ones scales and, if there are any, zero points."""
    if node.op_type != "MatMulNBits":
        return [_dense_weight(node)]
    return [*node.inputs[1:3], *(zeros for zeros in node.inputs[3:4] if zeros is not None)]


def _bias_of(node: ir.Node) -> ir.Value | None:
    """What is added to every row: an input of the node, or of an addition that is all that reads it."""
    if node.op_type == "MatMulNBits" and len(node.inputs) > _STOCK_BIAS_INPUT:
        return node.inputs[_STOCK_BIAS_INPUT]
    addition = _addition(node)
    return None if addition is None else _constant_row(addition)


def _addition(node: ir.Node) -> ir.Node | None:
    has_own = node.op_type == "MatMulNBits" and len(node.inputs) > _STOCK_BIAS_INPUT
    addition = None if has_own else only_reader(node.outputs[0], "Add")
    return addition if addition is not None and _constant_row(addition) is not None else None


def _constant_row(addition: ir.Node) -> ir.Value | None:
    rows = [value for value in addition.inputs if value is not None and value.const_value is not None]
    return rows[0] if len(rows) == 1 and len(rows[0].const_value.shape) == 1 else None  # type: ignore[union-attr]


def _product_of_gated(gate: ir.Node, up: ir.Node) -> ir.Node | None:
    """The node that makes silu(gate) * up, if nothing else reads what leads to it."""
    if gate is up or _bias_of(gate) is not None or _bias_of(up) is not None:
        return None
    value = gate.outputs[0]
    readers = {node.op_type: node for node, _ in value.uses()}
    if sorted(readers) != ["Mul", "Sigmoid"] or len(value.uses()) != 2:
        return None
    silu, sigmoid = readers["Mul"], readers["Sigmoid"]
    product = only_reader(silu.outputs[0], "Mul")
    is_gated = product is not None and set(product.inputs) == {silu.outputs[0], up.outputs[0]}
    is_silu = set(silu.inputs) == {value, sigmoid.outputs[0]} and only_reader(sigmoid.outputs[0], "Mul") is silu
    return product if is_gated and is_silu and only_reader(up.outputs[0], "Mul") is product else None


def _replace_gated(gate: ir.Node, up: ir.Node) -> None:
    product = _product_of_gated(gate, up)
    assert product is not None
    inputs = [gate.inputs[0], *_weights(gate), *_weights(up)]
    attributes = _attributes(gate) | {"gated": 1}
    replace(product.outputs, _op_type(gate), inputs, attributes, at=gate, names_from=gate)


def _replace_products(nodes: list[ir.Node]) -> None:
    """One node with an output for each of `nodes`, which all have a bias or have none."""
    first = nodes[0]
    inputs = [first.inputs[0]]
    for node in nodes:
        bias = _bias_of(node)
        inputs += [*_weights(node), *([] if bias is None else [bias])]
    attributes = _attributes(first) | ({} if _bias_of(first) is None else {"bias": 1})
    # Constants aside, all inputs are there where the first of the replaced products was.
    ends = [_with_bias(node).outputs[0] for node in nodes]
    replace(ends, _op_type(first), inputs, attributes, at=first, names_from=first)


def _with_bias(node: ir.Node) -> ir.Node:
    """The node whose output has the bias in it."""
    return _addition(node) or node

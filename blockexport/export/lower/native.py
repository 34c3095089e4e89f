"""Our own CPU operators in place of ONNX Runtime's, in a graph that was lowered for it.

They read weights where they lie in the weight file, so that several levels share one copy without packing, and stream
them at the speed of memory in a decode step. What each computes is said in `blockexport_kernels.ort_cpu.reference`.
"""

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes import common

from blockexport.export.lower.native_experts import native_experts

TARGET = "native"
DOMAIN = "blockexport.cpu"
_VERSION = 1
_STOCK_BIAS_INPUT = 5
_LAYOUT = ("K", "bits", "block_size")


def use_native_operators(stock: ir.Model) -> ir.Model:
    """Replace linear layers, mixtures of experts and quantised embeddings; the given graph stays as it is.

    Args:
        stock: a graph for ONNX Runtime's own operators, with or without boundary markers.
    """
    model = stock.clone()
    for node in list(model.graph):
        if node.op_type == "GatherBlockQuantized":
            _replace_embedding(node)
        elif (mixture := native_experts(node)) is not None:
            _replace([mixture.end], mixture.op_type, mixture.inputs, mixture.attributes, names_from=node)
    for readers in _by_input(node for node in model.graph if _is_linear(node)):
        _replace_siblings(readers)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    model.opset_imports[DOMAIN] = _VERSION
    return model


def _is_linear(node: ir.Node) -> bool:
    """A product with a weight whose rows are outputs, the one layout our operators read."""
    if node.op_type == "MatMulNBits":
        return True
    weight = node.inputs[1] if node.op_type == "FusedMatMul" else None
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return False
    usual = {"transA": 0, "transB": 1, "alpha": 1.0, "transBatchA": 0, "transBatchB": 0}
    is_plain = all(_number(node, name, 1.0 if name == "alpha" else 0) == value for name, value in usual.items())
    return is_plain and weight.const_value.dtype == ir.DataType.FLOAT


def _number(node: ir.Node, name: str, default: float) -> float:
    return float(node.attributes[name].value) if name in node.attributes else default


def _by_input(nodes: Iterable[ir.Node]) -> list[list[ir.Node]]:
    """Nodes that multiply the same activations by weights of the same layout, in graph order."""
    groups: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in nodes:
        layout = tuple(_number(node, name, 0) for name in _LAYOUT)
        has_zeros = len(node.inputs) > 3 and node.inputs[3] is not None
        groups.setdefault((id(node.inputs[0]), node.op_type, layout, has_zeros), []).append(node)
    return list(groups.values())


def _replace_siblings(nodes: list[ir.Node]) -> None:
    """One operator for a gated pair, one for what else multiplies the same activations."""
    pairs = [(gate, up) for gate in nodes for up in nodes if _product_of_gated(gate, up) is not None]
    for gate, up in pairs:
        _replace_gated(gate, up)
    others = [node for node in nodes if all(node not in pair for pair in pairs)]
    biases = {node: _bias_of(node) for node in others}
    is_uniform = len({bias is None for bias in biases.values()}) == 1
    if len(others) > 1 and is_uniform and others[0].op_type == "MatMulNBits":
        _replace_multi(others, biases)
        return
    for node in others:
        _replace_one(node)


def _layout(node: ir.Node) -> dict[str, int]:
    return {name: node.attributes[name].as_int() for name in _LAYOUT} if node.op_type == "MatMulNBits" else {}


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
    _replace([node], "GatherNBits", [blocks, *node.inputs[1:]], layout)


def _weights(node: ir.Node) -> list[ir.Value | None]:
    """Weight, and for quantised ones scales and zero points."""
    if node.op_type != "MatMulNBits":
        return [node.inputs[1]]
    return [*node.inputs[1:3], node.inputs[3] if len(node.inputs) > 3 else None]


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    readers = [node for node, _ in value.uses()]
    return readers[0] if len(readers) == 1 and readers[0].op_type == op_type and not value.is_graph_output() else None


def _bias_of(node: ir.Node) -> ir.Value | None:
    """What is added to every row: an input of the node, or of an addition that is all that reads it."""
    if node.op_type == "MatMulNBits" and len(node.inputs) > _STOCK_BIAS_INPUT:
        return node.inputs[_STOCK_BIAS_INPUT]
    addition = _addition(node)
    return None if addition is None else _constant_row(addition)


def _addition(node: ir.Node) -> ir.Node | None:
    has_own = node.op_type == "MatMulNBits" and len(node.inputs) > _STOCK_BIAS_INPUT
    addition = None if has_own else _only_reader(node.outputs[0], "Add")
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
    product = _only_reader(silu.outputs[0], "Mul")
    is_gated = product is not None and set(product.inputs) == {silu.outputs[0], up.outputs[0]}
    is_silu = set(silu.inputs) == {value, sigmoid.outputs[0]} and _only_reader(sigmoid.outputs[0], "Mul") is silu
    return product if is_gated and is_silu and _only_reader(up.outputs[0], "Mul") is product else None


def _replace_gated(gate: ir.Node, up: ir.Node) -> None:
    product = _product_of_gated(gate, up)
    assert product is not None
    first, second = _weights(gate), _weights(up)
    inputs = [gate.inputs[0], *first[:2], *second[:2]]
    op_type = "GatedMatMul"
    if gate.op_type == "MatMulNBits":
        op_type = "GatedMatMulNBits"
        inputs += [first[2], second[2]] if first[2] is not None else []
    _replace([product], op_type, inputs, _layout(gate), names_from=gate)


def _replace_multi(nodes: list[ir.Node], biases: dict[ir.Node, ir.Value | None]) -> None:
    has_bias = biases[nodes[0]] is not None
    has_zeros = _weights(nodes[0])[2] is not None
    inputs = [nodes[0].inputs[0]]
    for node in nodes:
        inputs += [value for value in (*_weights(node), biases[node]) if value is not None]
    flags = {"bias": int(has_bias), "zero_points": int(has_zeros)}
    _replace(
        [_last(node) for node in nodes], "MatMulNBitsMulti", inputs, _layout(nodes[0]) | flags, names_from=nodes[0]
    )


def _replace_one(node: ir.Node) -> None:
    op_type = "MatMulNBits" if node.op_type == "MatMulNBits" else "MatMul"
    inputs = [node.inputs[0], *_weights(node), _bias_of(node)]
    while inputs[-1] is None:
        inputs.pop()
    _replace([_last(node)], op_type, inputs, _layout(node), names_from=node)


def _last(node: ir.Node) -> ir.Node:
    """The node whose output has the bias in it."""
    return _addition(node) or node


def _replace(
    ends: list[ir.Node],
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: dict[str, int],
    names_from: ir.Node | None = None,
) -> None:
    """Put one node where all inputs are known, with an output for each of `ends`; what led to these goes unread."""
    source = names_from or ends[0]
    new = ir.node(op_type, inputs, attributes, domain=DOMAIN, version=_VERSION, num_outputs=len(ends), name=source.name)
    new.metadata_props.update(source.metadata_props)
    graph = source.graph
    assert graph is not None
    # Constants aside, all inputs are there where the first of the replaced products was.
    graph.insert_before(source, new)
    for end, output in zip(ends, new.outputs, strict=True):
        old = end.outputs[0]
        output.name, output.shape, output.type = old.name, old.shape, old.type
        old.name = f"{old.name}.stock"
        old.replace_all_uses_with(output, replace_graph_outputs=True)

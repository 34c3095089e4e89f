"""Attention heads stay packed: (batch, seq, heads * head_dim) from projection to attention and back.

A model's code splits and transposes heads around its rotary embedding. ONNX's operator and the attention operators take
packed heads, so these copies can go, and with them a third of a decoder's nodes.
"""

import onnx_ir as ir
from onnx_ir.passes import common


def keep_heads_packed(model: ir.Model) -> None:
    """Take out reshapes and transposes that only split heads; in place."""
    for node in list(model.graph):
        if node.op_type == "RotaryEmbedding" and node.domain == "":
            _rotate_packed(node)
    for node in list(model.graph):
        if node.op_type == "Reshape":
            _skip_round_trip(node)
    common.RemoveUnusedNodesPass()(model)


def _rotate_packed(rotary: ir.Node) -> None:
    """Rotate (batch, seq, heads * head_dim) where the heads were split and swapped before, and back after."""
    swap, swap_back = _before(rotary, "Transpose"), _after(rotary, "Transpose")
    split, join = _before(swap, "Reshape"), _after(swap_back, "Reshape")
    if split is None or join is None or "num_heads" not in rotary.attributes:
        return
    if any(node is None or not _swaps_heads_and_tokens(node) for node in (swap, swap_back)):
        return
    packed, result = split.inputs[0], join.outputs[0]
    if packed is not None and _same_shape(packed, result):
        rotary.replace_input_with(0, packed)
        rotary.outputs[0].shape = result.shape
        result.replace_all_uses_with(rotary.outputs[0])


def _before(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """The node that makes a node's first input, if it is of a type."""
    value = node.inputs[0] if node is not None else None
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == op_type else None


def _after(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """The only node that reads a node's first output, if it is of a type."""
    readers = [usage.node for usage in node.outputs[0].uses()] if node is not None else []
    return readers[0] if len(readers) == 1 and readers[0].op_type == op_type else None


def _swaps_heads_and_tokens(node: ir.Node) -> bool:
    return list(node.attributes["perm"].as_ints()) == [0, 2, 1, 3]


def _skip_round_trip(node: ir.Node) -> None:
    """Let whoever reads the last of several reshapes read what went into the first, if that has the same shape."""
    origin, result = node.inputs[0], node.outputs[0]
    while origin is not None:
        if _same_shape(origin, result):
            result.replace_all_uses_with(origin)
            return
        before = origin.producer()
        origin = before.inputs[0] if before is not None and before.op_type == "Reshape" else None


def _same_shape(first: ir.Value, second: ir.Value) -> bool:
    """Whether two values have one shape for certain: equal sizes, or the same symbol."""
    if first.shape is None or second.shape is None:
        return False
    sizes = list(zip(first.shape, second.shape, strict=False))
    known = all(isinstance(size, int) or size.value is not None for pair in sizes for size in pair)
    return known and len(first.shape) == len(second.shape) and all(a == b for a, b in sizes)

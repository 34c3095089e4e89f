"""Attention over the cache: one operator that rotates, appends and attends."""

import onnx_ir as ir

from blockexport.export.lower.native.replace import number, only_reader, replace

_ATTRIBUTES = ("num_heads", "kv_num_heads", "scale", "local_window_size", "softcap")
# query, key, value, past_key, past_value, last_slot, total_tokens: what our lowering gives the stock operator.
_NUM_INPUTS = 7


def replace_attention(graph: ir.Graph) -> None:
    """Replace every attention over a cache, with the rotary embeddings of queries and keys that only it reads."""
    for node in list(graph):
        if node.op_type != "GroupQueryAttention" or len(node.inputs) != _NUM_INPUTS:
            continue
        inputs = [*node.inputs, *_rotary_angles(node)]
        if len(inputs) > _NUM_INPUTS:
            inputs[:2] = [_rotary(node, index).inputs[0] for index in range(2)]
        attributes = {name: node.attributes[name].value for name in _ATTRIBUTES}
        replace(node.outputs, "CachedAttention", inputs, attributes, at=node, names_from=node)


def _rotary(node: ir.Node, index: int) -> ir.Node:
    value = node.inputs[index]
    assert value is not None
    producer = value.producer()
    assert producer is not None
    return producer


def _rotary_angles(node: ir.Node) -> list[ir.Value]:
    """Cosines and sines (batch, seq, half) that both queries and keys are rotated by; none if they are not."""
    angles: list[tuple[ir.Value, ...]] = []
    for value in node.inputs[:2]:
        assert value is not None
        rotary = value.producer()
        if rotary is None or rotary.op_type != "RotaryEmbedding" or only_reader(value, node.op_type) is None:
            return []
        cos_and_sin = tuple(given for given in rotary.inputs[1:] if given is not None)
        # A third input would be positions: then cosines are a table, and not one for each token.
        if len(cos_and_sin) != 2 or number(rotary, "interleaved", 0):
            return []
        angles.append(cos_and_sin)
    return list(angles[0]) if angles[0] == angles[1] else []

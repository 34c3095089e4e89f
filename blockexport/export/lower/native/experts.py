"""Our own operators for mixtures of experts, in place of ONNX Runtime's in a graph that was lowered for it.

They take a token's experts and weights as the model's router gives them, which the stock operator has to be told in the
form of logits (see `ort.py`).
"""

import onnx_ir as ir

from blockexport.export.lower.native.replace import replace

_LAYOUT = {"bits": "expert_weight_bits", "block_size": "block_size"}
# Inputs of the stock operators.
_ROUTER = 1
_DENSE_WEIGHTS = (2, 4)
_QUANTISED_WEIGHTS = (2, 3, 5, 6)
_ZERO_POINTS = (11, 12)


def replace_experts(graph: ir.Graph) -> None:
    """Replace every mixture of experts whose routing is known."""
    for node in list(graph):
        routed = _routing(node) if node.op_type in {"MoE", "QMoE"} else None
        if routed is not None:
            _replace(node, *routed)


def _replace(node: ir.Node, end: ir.Node, *routing: ir.Value) -> None:
    if node.op_type == "MoE":
        inputs = [node.inputs[0], *routing, *_inputs(node, _DENSE_WEIGHTS)]
        replace(end.outputs, "GatedExperts", inputs, {}, at=node, names_from=node)
        return
    inputs = [node.inputs[0], *routing, *_inputs(node, _QUANTISED_WEIGHTS)]
    inputs += [value for value in _inputs(node, _ZERO_POINTS) if value is not None]
    attributes = {ours: node.attributes[theirs].as_int() for ours, theirs in _LAYOUT.items()}
    scales = inputs[4]
    assert scales is not None
    assert scales.shape is not None
    attributes["K"] = scales.shape.numpy()[2] * attributes["block_size"]
    replace(end.outputs, "GatedExpertsNBits", inputs, attributes, at=node, names_from=node)


def _inputs(node: ir.Node, places: tuple[int, ...]) -> list[ir.Value | None]:
    return [node.inputs[place] if place < len(node.inputs) else None for place in places]


def _routing(node: ir.Node) -> tuple[ir.Node, ir.Value, ir.Value] | None:
    """The product with what the weights add up to, the experts, and their weights, before logarithms were taken."""
    router = node.inputs[_ROUTER]
    scatter = router.producer() if router is not None else None
    if scatter is None or scatter.op_type != "ScatterElements":
        return None
    experts, logarithms = scatter.inputs[1:3]
    logarithm = logarithms.producer() if logarithms is not None else None
    readers = [reader for reader, _ in node.outputs[0].uses()]
    if logarithm is None or logarithm.op_type != "Log" or [reader.op_type for reader in readers] != ["Mul"]:
        return None
    weights = logarithm.inputs[0]
    return (readers[0], experts, weights) if experts is not None and weights is not None else None

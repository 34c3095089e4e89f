"""Mixtures of experts: one opaque operator in the trace, and the layout of its weights in the weight file.

Transformers lets an experts module be computed by whatever function its configuration names; the trace names ours, as
it does for attention. ONNX Runtime's operators for experts want the rows of a gate and of what it gates in turn, a
checkpoint has one half after the other; the weight file has them in turn, under a name that says so, and all engines
read that one copy.
"""

from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import ExpertsInterface, _default_apply_gate, batched_mm_experts_forward

from blockexport.core.expert_weights import interleaved_name
from blockexport.export import ops

INTERLEAVE_OP = "InterleaveRows"
_IMPLEMENTATION = "blockexport"
_SILU = (nn.SiLU, type(ACT2FN["silu"]))


def open_experts(module: nn.Module) -> None:
    """Let every mixture in a module be traced as one operator; in place, configuration included."""
    ExpertsInterface.register(_IMPLEMENTATION, _forward)
    for part in module.modules():
        # Set by the decorator with which transformers marks classes of experts.
        if hasattr(part, "has_gate") and hasattr(part, "is_concatenated"):
            config: Any = part.config
            config._experts_implementation = _IMPLEMENTATION  # noqa: SLF001  (the public setter knows models only)


def _forward(
    experts: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    if not _is_plainly_gated(experts):
        # Slower, since it copies the weights that each token chose, but the same for every kind of expert.
        gathered: torch.Tensor = batched_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)
        return gathered
    weights = experts.gate_up_proj, experts.down_proj
    mixed: torch.Tensor = ops.gated_experts(hidden_states, top_k_index, top_k_weights, *weights)
    return mixed


def _is_plainly_gated(experts: Any) -> bool:
    """Whether these are down(silu(gate(x)) * up(x)) and nothing else, with weights as linear layers store them."""
    has_more = experts.has_bias or experts.has_post_expert_norm or experts.is_transposed
    is_usual_gate = experts.has_gate and type(experts)._apply_gate is _default_apply_gate  # noqa: SLF001
    return bool(is_usual_gate and experts.is_concatenated and not has_more and isinstance(experts.act_fn, _SILU))


def interleaved(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Weights (experts, 2 * inner, hidden) with rows of gates and of what they gate in turn; made when first read."""
    num_experts, num_rows, width = tensor.shape.numpy()
    name = interleaved_name(str(tensor.name))

    def make() -> ir.TensorProtocol:
        halves = tensor.numpy().reshape(num_experts, 2, num_rows // 2, width)
        return ir.tensor(halves.swapaxes(1, 2).reshape(num_experts, num_rows, width))

    return ir.LazyTensor(make, tensor.dtype, ir.Shape(tensor.shape.numpy()), cache=True, name=name)


def store_interleaved(model: ir.Model) -> None:
    """Have weights in the file as the operators want them, instead of laid out anew by the graph; in place."""
    for node in list(model.graph):
        if node.op_type != INTERLEAVE_OP:
            continue
        weight = node.inputs[0]
        assert weight is not None
        assert weight.const_value is not None
        tensor = interleaved(weight.const_value)
        value = ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=weight.type, const_value=tensor)
        model.graph.register_initializer(value)
        node.outputs[0].replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
    common.RemoveUnusedNodesPass()(model)

"""Lowering for ONNX Runtime: contrib operators for attention, with the cache updated in place, and for experts.

`GroupQueryAttention`, `MultiHeadAttention` and `MoE` are described in
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from typing import Any

import onnx_ir as ir
import torch
from torch.onnx import ops as onnx_ops

from blockexport.errors import ExportError
from blockexport.export import ops as _marked_ops  # noqa: F401  (registers the operators)
from blockexport.export.experts import INTERLEAVE_OP, store_interleaved
from blockexport.export.heads import keep_heads_packed
from blockexport.export.lower.mutual import mutual_attention
from blockexport.export.simplify import simplify, use_weights_as_stored
from blockexport.export.trace import MarkedProgram

TARGET = "ort"
# The first opset with RMSNormalization and RotaryEmbedding, which ONNX Runtime runs as one kernel each.
OPSET = 23
BOUNDARY_DOMAIN = "blockexport"
BOUNDARY_OP = "Boundary"


def _boundary(hidden_states: torch.Tensor, unit: str, side: str) -> torch.Tensor:
    marked: torch.Tensor = onnx_ops.symbolic(
        f"{BOUNDARY_DOMAIN}::{BOUNDARY_OP}",
        (hidden_states,),
        {"unit": unit, "side": side},
        dtype=hidden_states.dtype,
        shape=hidden_states.shape,
        version=1,
    )
    return marked


def _cached_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    last_slot: torch.Tensor,
    total_tokens: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
    mutual: torch.Tensor | None = None,
) -> Any:
    if mutual is not None:
        return mutual_attention(
            query, key, value, past_key, past_value, last_slot, total_tokens, scale, window, softcap, mutual
        )
    batch, num_heads, seq, head_dim = query.shape
    packed = [tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)]
    attributes: dict[str, Any] = {
        "num_heads": num_heads,
        "kv_num_heads": key.shape[1],
        "scale": scale,
        "local_window_size": window,
        "softcap": softcap,
    }
    return onnx_ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (*packed, past_key, past_value, last_slot, total_tokens),
        attributes,
        dtypes=(query.dtype, past_key.dtype, past_value.dtype),
        shapes=((batch, seq, num_heads * head_dim), past_key.shape, past_value.shape),
        version=1,
    )


def _full_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    batch, num_heads, seq, head_dim = query.shape
    packed: list[torch.Tensor | None] = [tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)]
    if attention_mask is not None:
        packed += [None, attention_mask.to(torch.int32)]
    attended: torch.Tensor = onnx_ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        packed,
        {"num_heads": num_heads, "scale": scale, "unidirectional": int(causal)},
        dtype=query.dtype,
        shape=(batch, seq, num_heads * head_dim),
        version=1,
    )
    return attended


def _gated_experts(
    hidden_states: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    # The operator routes by itself: a softmax over all experts, of which the largest are taken and made to add up to 1.
    # Whatever the model's router does is brought into that form by logarithms, and what its weights add up to.
    chosen = torch.full((experts.shape[0], gate_up.shape[0]), float("-inf")).scatter(1, experts, weights.log())
    rows = onnx_ops.symbolic(
        f"{BOUNDARY_DOMAIN}::{INTERLEAVE_OP}", (gate_up,), dtype=gate_up.dtype, shape=gate_up.shape, version=1
    )
    attributes: dict[str, Any] = {
        "k": experts.shape[1],
        "normalize_routing_weights": 1,
        "activation_type": "swiglu",
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "swiglu_fusion": 1,
    }
    mixed: torch.Tensor = onnx_ops.symbolic(
        "com.microsoft::MoE",
        (hidden_states, chosen, rows, None, down),
        attributes,
        dtype=hidden_states.dtype,
        shape=hidden_states.shape,
        version=1,
    )
    return mixed * weights.sum(1, keepdim=True)


_DECOMPOSITIONS = {
    torch.ops.blockexport.boundary.default: _boundary,
    torch.ops.blockexport.cached_attention.default: _cached_attention,
    torch.ops.blockexport.full_attention.default: _full_attention,
    torch.ops.blockexport.gated_experts.default: _gated_experts,
}


def lower(marked: MarkedProgram) -> ir.Model:
    """Lower a marked program to an ONNX model that still holds its boundary markers.

    Raises:
        ExportError: an operator of the model has no ONNX form.
    """
    program = marked.program.run_decompositions(_DECOMPOSITIONS)
    try:
        exported = torch.onnx.export(
            program,
            input_names=list(marked.input_names),
            output_names=list(marked.output_names),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            optimize=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        msg = f"lowering to target {TARGET!r} failed: {str(error).splitlines()[0]}; see the exporter's report"
        raise ExportError(msg) from error
    assert exported is not None
    model = exported.model
    simplify(model)
    use_weights_as_stored(model)
    store_interleaved(model)
    keep_heads_packed(model)
    _name_axes(model, marked)
    return model


def _name_axes(model: ir.Model, marked: MarkedProgram) -> None:
    """Give dynamic sizes names that say what they are; tracing numbers them."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        name = str(value.name).replace("present.", "past_key_values.")
        axes = marked.dynamic_axes.get(name) or marked.output_axes.get(name)
        if axes is not None and value.shape is not None:
            value.shape = ir.Shape([axes.get(axis, size) for axis, size in enumerate(value.shape)])

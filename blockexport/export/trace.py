"""Full-depth `torch.export` of a model, with every block's boundaries marked, attention and experts left open.

The trace is taken from the stock transformers model: its attention and its experts are replaced through transformers'
own interfaces for them, its cache by one that hands new keys and values on to that attention, its blocks get hooks.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from blockexport.core.model import KvSpec
from blockexport.core.signature import CACHE_PARTS, last_slot_name, past_name, present_name
from blockexport.errors import ExportError
from blockexport.export import ops
from blockexport.export.experts import open_experts
from blockexport.models.loaded import LoadedModel

_ATTENTION = "blockexport"
_MAX_REASON = 200
# Sample sizes are distinct and not 0 or 1, so that tracing specialises no dynamic axis.
_BATCH, _SEQ, _CAPACITY, _KEPT_POSITIONS = 2, 3, 8, 4


def block_unit(block: int) -> str:
    """Name of a block's boundary markers."""
    return f"block.{block}"


@dataclass(frozen=True, slots=True)
class MarkedProgram:
    """A traced model with boundary markers.

    Attributes:
        program: the exported program; its calls to `blockexport::*` are still opaque.
        input_names: graph inputs, in order.
        output_names: graph outputs, in order.
        dynamic_axes: per input name, axis to the name of its dynamic size.
        output_axes: the same for the first output; cache rows have the axes of their inputs.
    """

    program: torch.export.ExportedProgram
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_axes: dict[str, dict[int, str]]
    output_axes: dict[str, dict[int, str]]


class _Context:
    """What the attention of the model being traced needs besides its arguments."""

    # Per block: slot of the last new token, keys, values.
    past: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    present: dict[int, tuple[torch.Tensor, torch.Tensor]]
    total_tokens: torch.Tensor
    attention_mask: torch.Tensor | None = None


class _HandOverCache(Cache):
    """Returns new keys and values as they are: the attention operator keeps the past."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


def _attention_function(context: _Context, *, is_decoder: bool) -> Any:
    def cached(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        block = module.layer_idx
        last_slot, past_key, past_value = context.past[block]
        attended, present_key, present_value = ops.cached_attention(
            query,
            key,
            value,
            past_key,
            past_value,
            last_slot,
            context.total_tokens,
            _scale(kwargs, query),
            kwargs.get("sliding_window") or ops.NO_WINDOW,
            kwargs.get("softcap") or ops.NO_SOFTCAP,
        )
        context.present[block] = (present_key, present_value)
        return attended.unflatten(-1, (query.shape[1], query.shape[3])), None

    def single_pass(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        causal = bool(getattr(module, "is_causal", False))
        attended = ops.full_attention(query, key, value, context.attention_mask, _scale(kwargs, query), causal)
        return attended.unflatten(-1, (query.shape[1], query.shape[3])), None

    return cached if is_decoder else single_pass


def _scale(kwargs: dict[str, Any], query: torch.Tensor) -> float:
    scaling = kwargs.get("scaling")
    return float(query.shape[-1] ** -0.5 if scaling is None else scaling)


class _DecoderProgram(nn.Module):
    """The traced signature of a decoder: flat tensors in, logits and cache rows out."""

    def __init__(self, module: Any, context: _Context) -> None:
        super().__init__()
        self.model = module
        self._context = context

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        total_tokens: torch.Tensor,
        logits_index: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        context = self._context
        context.past = list(zip(past[::3], past[1::3], past[2::3], strict=True))
        context.present = {}
        context.total_tokens = total_tokens
        head: nn.Module = self.model.get_output_embeddings()

        def select(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            # Only the asked-for positions go through the head, the costliest matrix of a small model.
            hidden = args[0]
            batch, seq, width = hidden.shape
            rows = torch.arange(batch)[:, None] * seq + logits_index
            return (hidden.reshape(batch * seq, width)[rows],)

        handle = head.register_forward_pre_hook(select)
        try:
            output = self.model(
                input_ids=input_ids, position_ids=position_ids, past_key_values=_HandOverCache(), use_cache=True
            )
        finally:
            handle.remove()
        rows = [context.present[block] for block in sorted(context.present)]
        return output.logits, *(tensor for row in rows for tensor in row)


class _SinglePassProgram(nn.Module):
    """The traced signature of an encoder or vision model."""

    def __init__(self, module: nn.Module, context: _Context, output: str) -> None:
        super().__init__()
        self.model = module
        self._context = context
        self._output = output

    def forward(self, primary: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        self._context.attention_mask = attention_mask
        # The mask goes to the attention operator only; the model would expand it to (batch, 1, seq, seq).
        result: torch.Tensor = getattr(self.model(primary), self._output)
        return result


def trace(model: LoadedModel) -> MarkedProgram:
    """Trace a model at full depth.

    Args:
        model: a decoder, encoder or vision model; it is left as it was.

    Returns:
        The marked program, with batch, sequence and cache capacity dynamic.

    Raises:
        ExportError: the model's code depends on values, or does what `torch.export` cannot follow.
    """
    context = _Context()
    module = _private_copy(model)
    is_decoder = model.spec.kind == "decoder"
    AttentionInterface.register(_ATTENTION, _attention_function(context, is_decoder=is_decoder))
    _set_attention(module)
    open_experts(module)
    build = _decoder_case if is_decoder else _single_pass_case
    wrapper, args, names, axes, outputs = build(model, module, context)
    shapes = _shapes(names, axes, is_decoder)
    try:
        with _boundaries(model, module), torch.no_grad():
            program = torch.export.export(wrapper.eval(), args, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        # Whatever the model's own code does may fail under tracing, with errors of many packages.
        reason = " ".join(str(error).split())[:_MAX_REASON]
        msg = (
            f"{model.spec.architecture} cannot be traced: {type(error).__name__}: {reason}; "
            "a branch on values, such as dynamic RoPE scaling, has no static graph"
        )
        raise ExportError(msg) from error
    output_axes = {0: "batch"}
    if model.spec.kind == "decoder":
        output_axes[1] = "kept_positions"
    elif model.spec.kind == "encoder" and model.spec.output == "last_hidden_state":
        output_axes[1] = "seq"
    return MarkedProgram(program, names, outputs, axes, {outputs[0]: output_axes})


def _private_copy(model: LoadedModel) -> nn.Module:
    """A copy of the module tree around the same weights, so that tracing leaves the caller's model alone."""
    module = model.module
    shared: dict[int, Any] = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    copied: nn.Module = copy.deepcopy(module, shared)
    model.adapter.prepare_for_export(copied)
    return copied


def _set_attention(module: nn.Module) -> None:
    config: Any = module.config
    config._attn_implementation = _ATTENTION  # noqa: SLF001  (the setter checks against installed kernels only)


@contextmanager
def _boundaries(model: LoadedModel, module: nn.Module) -> Iterator[None]:
    handles = []
    for index, block in enumerate(model.adapter.blocks(module)):
        unit = block_unit(index)

        def enter(_: nn.Module, args: Any, kwargs: Any, unit: str = unit) -> Any:
            if args:
                return (ops.boundary(args[0], unit, "in"), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": ops.boundary(kwargs["hidden_states"], unit, "in")}

        def leave(_: nn.Module, args: Any, output: torch.Tensor, unit: str = unit) -> Any:
            return ops.boundary(output, unit, "out")

        handles += [block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_Case = tuple[nn.Module, tuple[torch.Tensor, ...], tuple[str, ...], dict[str, dict[int, str]], tuple[str, ...]]


def _decoder_case(model: LoadedModel, module: nn.Module, context: _Context) -> _Case:
    tokens = torch.ones(_BATCH, _SEQ, dtype=torch.long)
    arguments: dict[str, torch.Tensor] = {
        "input_ids": tokens,
        "position_ids": torch.arange(_SEQ).repeat(_BATCH, 1),
        "total_tokens": torch.tensor(_SEQ, dtype=torch.int32),
        "logits_index": torch.zeros(_BATCH, _KEPT_POSITIONS, dtype=torch.long),
    }
    axes = {
        "input_ids": {0: "batch", 1: "seq"},
        "position_ids": {0: "batch", 1: "seq"},
        "total_tokens": {},
        "logits_index": {0: "batch", 1: "kept_positions"},
    }
    outputs = ["logits"]
    dtype = next(module.parameters()).dtype
    for block, row in enumerate(model.spec.kv):
        arguments[last_slot_name(block)] = torch.full((_BATCH,), _SEQ - 1, dtype=torch.int32)
        axes[last_slot_name(block)] = {0: "batch"}
        for part in CACHE_PARTS:
            arguments[past_name(block, part)] = _empty_row(row, dtype)
            axes[past_name(block, part)] = {0: "batch", 2: "capacity"}
            outputs.append(present_name(block, part))
    return _DecoderProgram(module, context), tuple(arguments.values()), tuple(arguments), axes, tuple(outputs)


def _empty_row(row: KvSpec, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(_BATCH, row.num_heads, _CAPACITY, row.head_dim, dtype=dtype)


def _single_pass_case(model: LoadedModel, module: nn.Module, context: _Context) -> _Case:
    wrapper = _SinglePassProgram(module, context, model.spec.output)
    if model.spec.kind == "vision":
        pixels = torch.zeros(_BATCH, *model.spec.image_shape, dtype=next(module.parameters()).dtype)
        return wrapper, (pixels,), ("pixel_values",), {"pixel_values": {0: "batch"}}, (model.spec.output,)
    # Two arguments that are one tensor would be traced as one input.
    tokens, mask = (torch.ones(_BATCH, _SEQ, dtype=torch.long) for _ in range(2))
    axes = {name: {0: "batch", 1: "seq"} for name in ("input_ids", "attention_mask")}
    return wrapper, (tokens, mask), tuple(axes), axes, (model.spec.output,)


def _shapes(names: tuple[str, ...], axes: dict[str, dict[int, str]], is_decoder: bool) -> Any:
    dims = {size: Dim.DYNAMIC for per_input in axes.values() for size in per_input.values()}
    specs = [{axis: dims[size] for axis, size in axes[name].items()} for name in names]
    if not is_decoder:
        return tuple(specs)
    # torch.export wants the shapes of *past as one nested entry. What belongs to a block has its number in the name.
    num_fixed = sum("." not in name for name in names)
    return (*specs[:num_fixed], tuple(specs[num_fixed:]))

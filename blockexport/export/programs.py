"""What is traced: flat signatures around a transformers model, and the attention and cache that it meets inside."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from blockexport.core.model import KvSpec, VisionSpec
from blockexport.core.positions import NUM_AXES
from blockexport.core.signature import (
    CACHE_PARTS,
    IMAGE_FEATURES,
    IMAGE_MASKS,
    IMAGE_POSITIONS,
    POSITION_SHIFTS,
    last_slot_name,
    past_name,
    present_name,
)
from blockexport.export import ops
from blockexport.models.loaded import LoadedModel

# Sample sizes are distinct and not 0 or 1, so that tracing specialises no dynamic axis.
_BATCH, _SEQ, _CAPACITY, _KEPT_POSITIONS, _IMAGE_TOKENS = 2, 3, 8, 4, 5


class Context:
    """What the attention of the model being traced needs besides its arguments."""

    # Per block: slot of the last new token, keys, values.
    past: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    present: dict[int, tuple[torch.Tensor, torch.Tensor]]
    total_tokens: torch.Tensor
    attention_mask: torch.Tensor | None = None
    # Flags (batch, seq) of tokens that see one another.
    mutual: torch.Tensor | None = None


class _HandOverCache(Cache):
    """Returns new keys and values as they are: the attention operator keeps the past."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


def attention_function(context: Context, *, is_decoder: bool) -> Any:
    """What stands for attention in a trace: a function of transformers' interface around one of our operators."""

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
            context.mutual,
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

    def __init__(self, module: Any, context: Context, vision: VisionSpec | None, num_pictures: int) -> None:
        super().__init__()
        self.model = module
        self._context = context
        self._vision = vision
        self._num_pictures = num_pictures

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        total_tokens: torch.Tensor,
        logits_index: torch.Tensor,
        *rest: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        pictures, past = rest[: self._num_pictures], rest[self._num_pictures :]
        context = self._context
        context.past = list(zip(past[::3], past[1::3], past[2::3], strict=True))
        context.present = {}
        context.total_tokens = total_tokens
        if self._vision is not None and self._vision.mutual_tokens:
            # `isin` is lowered to a search that ONNX lacks.
            context.mutual = (input_ids[..., None] == torch.tensor(self._vision.mutual_tokens)).any(-1)
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
                **self._tokens(input_ids, position_ids, *pictures),
                past_key_values=_HandOverCache(),
                use_cache=True,
            )
        finally:
            handle.remove()
        rows = [context.present[block] for block in sorted(context.present)]
        return output.logits, *(tensor for row in rows for tensor in row)

    def _tokens(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, *pictures: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Tokens and their positions; as ids or, where image tokens join them, as embeddings."""
        if self._vision is None:
            return {"input_ids": input_ids, "position_ids": position_ids}
        features, positions, *shifts = pictures
        embeddings = self.model.get_input_embeddings()(input_ids)
        is_added = self._vision.joins == "add"
        joined = embeddings.index_put((positions[:, 0], positions[:, 1]), features, accumulate=is_added)
        # With shifts, (3, batch, seq): in time, row and column.
        return {"inputs_embeds": joined, "position_ids": sum(shifts, position_ids)}


class _SinglePassProgram(nn.Module):
    """The traced signature of an encoder or vision model, or of a vision side."""

    def __init__(self, module: nn.Module, context: Context, model: LoadedModel) -> None:
        super().__init__()
        self.model = module
        self._context = context
        self._adapter = model.adapter
        self._is_text = model.spec.kind == "encoder"
        self._output = model.spec.output

    def forward(self, primary: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        if self._is_text:
            # The mask goes to the attention operator only; the model would expand it to (batch, 1, seq, seq).
            (self._context.attention_mask,), masks = masks, ()
        result: torch.Tensor = getattr(self._adapter.run(self.model, primary, *masks), self._output)
        return result


Case = tuple[nn.Module, tuple[torch.Tensor, ...], tuple[str, ...], dict[str, dict[int, str]], tuple[str, ...]]
"""A program, example arguments, their names, their dynamic axes, and the names of the outputs."""


def decoder_case(model: LoadedModel, module: nn.Module, context: Context) -> Case:
    """What is traced of a decoder; `module` is a private copy of the model's."""
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
    pictures = _picture_arguments(model.spec.vision, dtype)
    for name, (argument, its_axes) in pictures.items():
        arguments[name], axes[name] = argument, its_axes
    for block, row in enumerate(model.spec.kv):
        arguments[last_slot_name(block)] = torch.full((_BATCH,), _SEQ - 1, dtype=torch.int32)
        axes[last_slot_name(block)] = {0: "batch"}
        for part in CACHE_PARTS:
            arguments[past_name(block, part)] = _empty_row(row, dtype)
            axes[past_name(block, part)] = {0: "batch", 2: "capacity"}
            outputs.append(present_name(block, part))
    program = _DecoderProgram(module, context, model.spec.vision, len(pictures))
    return program, tuple(arguments.values()), tuple(arguments), axes, tuple(outputs)


def _picture_arguments(vision: VisionSpec | None, dtype: torch.dtype) -> dict[str, tuple[torch.Tensor, dict[int, str]]]:
    """What a decoder takes besides if it reads pictures: example and dynamic axes by name."""
    if vision is None:
        return {}
    features = torch.zeros(_IMAGE_TOKENS, vision.hidden_size, dtype=dtype)
    arguments = {
        IMAGE_FEATURES: (features, {0: "image_tokens"}),
        IMAGE_POSITIONS: (torch.zeros(_IMAGE_TOKENS, 2, dtype=torch.long), {0: "image_tokens"}),
    }
    if vision.grid is not None:
        shifts = torch.zeros(NUM_AXES, _BATCH, _SEQ, dtype=torch.long)
        arguments[POSITION_SHIFTS] = (shifts, {1: "batch", 2: "seq"})
    return arguments


def _empty_row(row: KvSpec, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(_BATCH, row.num_heads, _CAPACITY, row.head_dim, dtype=dtype)


def single_pass_case(model: LoadedModel, module: nn.Module, context: Context) -> Case:
    """What is traced of an encoder, a vision model or a vision side; `module` is a private copy of the model's."""
    wrapper = _SinglePassProgram(module, context, model)
    if model.spec.kind == "vision":
        shapes = {"pixel_values": model.spec.image_shape}
        if model.spec.vision is not None and model.spec.vision.mask_shape:
            shapes[IMAGE_MASKS] = model.spec.vision.mask_shape
        dtype = next(module.parameters()).dtype
        pixels = tuple(torch.zeros(_BATCH, *shape, dtype=dtype) for shape in shapes.values())
        return wrapper, pixels, tuple(shapes), {name: {0: "batch"} for name in shapes}, (model.spec.output,)
    # Two arguments that are one tensor would be traced as one input.
    tokens, mask = (torch.ones(_BATCH, _SEQ, dtype=torch.long) for _ in range(2))
    axes = {name: {0: "batch", 1: "seq"} for name in ("input_ids", "attention_mask")}
    return wrapper, (tokens, mask), tuple(axes), axes, (model.spec.output,)

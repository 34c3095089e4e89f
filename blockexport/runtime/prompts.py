"""Inputs as callers have them to inputs as engines take them: prompts padded on the right, everything checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.core.model import ModelSpec
from blockexport.errors import RequestError

_PADDING = -1
Prompts = NDArray[np.integer[Any]] | Sequence[int] | Sequence[Sequence[int]]


def pack_prompts(
    prompts: Prompts, attention_mask: Any, spec: ModelSpec
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Bring prompts into the form of the engines.

    Args:
        prompts: one prompt (tokens,), or several: (batch, tokens) or ragged lists.
        attention_mask: (batch, tokens), nonzero for real tokens, padding on either side; None when all are real.
        spec: the model that the prompts are for.

    Returns:
        Tokens (batch, tokens) padded on the right, lengths (batch,), and where the real tokens were (batch, tokens).

    Raises:
        RequestError: no tokens, an empty row, a token outside the vocabulary, or more tokens than the context.
    """
    tokens, real = read_prompts(prompts, attention_mask, spec)
    return *pack_rows(tokens, real), real


def pack_rows(tokens: NDArray[np.int64], real: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Move the real tokens of each row to its front; (batch, longest) and their numbers (batch,)."""
    lengths = real.sum(1).astype(np.int64)
    # A stable sort on "is padding" moves the real tokens to the front and keeps their order.
    order = np.argsort(~real, axis=1, kind="stable")
    return np.take_along_axis(tokens, order, 1)[:, : lengths.max()], lengths


def read_prompts(prompts: Prompts, attention_mask: Any, spec: ModelSpec) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Check prompts and give them one shape, each token where the caller had it.

    Args:
        prompts: as `pack_prompts` takes them.
        attention_mask: as `pack_prompts` takes it.
        spec: the model that the prompts are for.

    Returns:
        Tokens (batch, tokens), with the model's padding where there is none, and where the real ones are.

    Raises:
        RequestError: no tokens, an empty row, a token outside the vocabulary, or more tokens than the context.
    """
    tokens, real = _as_matrix(prompts, attention_mask, spec.pad_token)
    if spec.vision is not None:
        # Batches with pictures are padded with -1 throughout.
        real = real & (tokens != _PADDING)
    lengths = real.sum(1).astype(np.int64)
    if tokens.size == 0 or not lengths.all():
        msg = "a prompt is empty; give at least one token for each row"
        raise RequestError(msg)
    if lengths.max() > spec.context_tokens > 0:
        msg = f"the prompt has {lengths.max()} tokens, but {spec.name} places {spec.context_tokens}; shorten it"
        raise RequestError(msg)
    num_ids = spec.vocab_size + spec.num_extra_tokens
    outside = tokens[real & ((tokens < 0) | (tokens >= num_ids))]
    if outside.size:
        msg = f"token id {outside[0]} is outside the vocabulary of {num_ids} (0 to {num_ids - 1})"
        raise RequestError(msg)
    return np.where(real, tokens, spec.pad_token), real


def unpack_outputs(packed: NDArray[np.float32], real: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Put outputs (batch, longest, width) back where their tokens were; padding positions are 0."""
    result = np.zeros((*real.shape, packed.shape[-1]), packed.dtype)
    for row, flags in enumerate(real):
        result[row, flags] = packed[row, : flags.sum()]
    return result


def check_room(prompt_tokens: int, max_new_tokens: int, spec: ModelSpec) -> None:
    """Refuse a request for nothing, or for more than the model can place.

    Raises:
        RequestError: no new tokens, or more than the context holds.
    """
    context = spec.context_tokens
    if max_new_tokens < 1:
        msg = f"max_new_tokens is {max_new_tokens}; ask for at least one"
        raise RequestError(msg)
    if context and prompt_tokens + max_new_tokens > context:
        msg = (
            f"{prompt_tokens} prompt tokens and {max_new_tokens} new ones exceed the context of {context}; "
            f"ask for at most {context - prompt_tokens}"
        )
        raise RequestError(msg)


def check_switches(switches: Mapping[int, str], max_new_tokens: int) -> None:
    """Refuse a change of level before a token that is never generated.

    Raises:
        RequestError: an index outside the new tokens.
    """
    for index in switches:
        if not 0 <= index < max_new_tokens:
            msg = f"a switch at new token {index}, but {max_new_tokens} are asked for (0 to {max_new_tokens - 1})"
            raise RequestError(msg)


def check_pixels(inputs: Any, spec: ModelSpec) -> NDArray[np.float32]:
    """Pixels (batch, channels, height, width) as an engine takes them.

    Raises:
        RequestError: another shape than the model's images.
    """
    pixels = np.ascontiguousarray(inputs, np.float32)
    if pixels.shape[1:] != spec.image_shape or not len(pixels):
        wanted = ", ".join(map(str, spec.image_shape))
        msg = f"pixels are {pixels.shape}; {spec.name} takes (batch, {wanted})"
        raise RequestError(msg)
    return pixels


def is_one_prompt(prompts: Any) -> bool:
    """Whether these are the tokens of one prompt, not a list of prompts."""
    if isinstance(prompts, list | tuple):
        return not prompts or not hasattr(prompts[0], "__len__")
    return getattr(prompts, "ndim", 1) == 1


def _as_matrix(prompts: Any, attention_mask: Any, pad_token: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    rows = [np.asarray(row) for row in ([prompts] if is_one_prompt(prompts) else prompts)]
    for row in rows:
        if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
            msg = f"prompts hold {row.dtype} {row.shape}; give integer token ids, (tokens,) or (batch, tokens)"
            raise RequestError(msg)
    widths = np.array([len(row) for row in rows], np.int64)
    tokens = np.full((len(rows), widths.max(initial=0)), pad_token, np.int64)
    real = np.arange(tokens.shape[1]) < widths[:, None]
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    if attention_mask is not None:
        mask = np.atleast_2d(np.asarray(attention_mask))
        if mask.shape != tokens.shape:
            msg = f"attention_mask is {mask.shape}, but the prompts are {tokens.shape}; give one flag for each token"
            raise RequestError(msg)
        real = real & (mask != 0)
    return tokens, real

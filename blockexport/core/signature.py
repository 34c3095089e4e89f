"""What an engine takes and gives, by name."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class TensorSpec(BaseModel):
    """One input or output; a dimension is a size or the name of a dynamic axis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Signature(BaseModel):
    """Inputs and outputs of one engine, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


WRAPPER = "model."
"""In front of a weight's name within a traced program: what the trace wraps a model in. The weight file has none."""
CachePart = Literal["key", "value"]
CACHE_PARTS: tuple[CachePart, CachePart] = ("key", "value")
LAST_SLOT = "last_slot"
IMAGE_FEATURES = "image_features"
"""Decoder input (image_tokens, hidden): image tokens that enter in this call; none in a decode step."""
IMAGE_POSITIONS = "image_positions"
"""Decoder input (image_tokens, 2): row and column of `input_ids` where each of them enters."""
POSITION_SHIFTS = "position_shifts"
"""Decoder input (3, batch, seq), for models that place tokens in time, row and column; see `core.positions`."""
IMAGE_MASKS = "image_masks"
"""Vision input besides `pixel_values`, for models that are told how much of a patch is picture."""


def past_name(block: int, part: CachePart) -> str:
    """Cache input of an original block, (batch, kv_heads, capacity, head_dim)."""
    return f"past_key_values.{block}.{part}"


def present_name(block: int, part: CachePart) -> str:
    """Cache output of an original block; bound to the same memory as its input."""
    return f"present.{block}.{part}"


def last_slot_name(block: int) -> str:
    """Input of an original block that says where in its cache row the last new token of each row goes, (batch,)."""
    return f"{LAST_SLOT}.{block}"

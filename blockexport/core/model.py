"""What every stage behind the loader needs to know of a model, without the model."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

ModelKind = Literal["decoder", "encoder", "vision"]


class KvSpec(BaseModel):
    """The cache row of one block: keys and values are (batch, num_heads, tokens, head_dim)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_heads: int
    head_dim: int


class VisionSpec(BaseModel):
    """The vision side of a decoder that reads pictures.

    Attributes:
        num_blocks: prunable blocks of the vision tower: those up to the last one whose output is read.
        block_path: dotted name of their list within the model.
        image_shape: what one crop is: (patches, patch_values), or (channels, height, width).
        mask_shape: what says how much of each patch of a crop is picture; empty for models that are not told.
        num_pooled: image tokens of a crop.
        hidden_size: width of an image token.
        joins: whether an image token is added to the embedding that it stands for, or replaces it.
        image_token: id whose occurrences in a prompt are the places of image tokens, in order; None for models that
            are told the places.
        grid: rows and columns of a crop's image tokens, for models whose positions count these (`core.positions`);
            None for models to which they are tokens like others.
        mutual_tokens: ids of tokens that see one another in both directions, those behind them too, as far as they come
            to the model in one call; empty for models that go through a prompt in one direction only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_blocks: int
    block_path: str
    image_shape: tuple[int, ...]
    mask_shape: tuple[int, ...] = ()
    num_pooled: int
    hidden_size: int
    joins: Literal["add", "replace"] = "add"
    image_token: int | None = None
    grid: tuple[int, int] | None = Field(default=None, exclude_if=lambda grid: grid is None)
    mutual_tokens: tuple[int, ...] = Field(default=(), exclude_if=lambda tokens: not tokens)


class ModelSpec(BaseModel):
    """Identity and shape of one trained model.

    Attributes:
        name: folder name or `demo:...`.
        architecture: class name, e.g. `Qwen2ForCausalLM`.
        kind: `decoder` (tokens to next-token logits, cached), `encoder` (tokens to hidden states or logits in one
            pass) or `vision` (pixels to logits or hidden states in one pass).
        num_blocks: prunable blocks.
        digest: SHA-256 over configuration and weights.
        block_path: dotted name of the block list within the model, e.g. `model.layers`.
        kv: per block, its cache row; empty for models without a cache.
        vocab_size: tokens the model reads and writes; 0 for vision.
        num_extra_tokens: ids from `vocab_size` on that it reads and never writes.
        context_tokens: most positions the model can place; 0 when unlimited or not tokens.
        image_shape: one sample's for vision, such as (channels, height, width), else empty.
        output: what the engine returns: `logits` or `last_hidden_state`.
        stop_tokens: ids that end a generation.
        pad_token: id to pad with.
        vision: the vision side of a decoder that reads pictures, also of that side by itself; else None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    architecture: str
    kind: ModelKind
    num_blocks: int
    digest: str
    block_path: str = ""
    kv: tuple[KvSpec, ...] = ()
    vocab_size: int = 0
    context_tokens: int = 0
    image_shape: tuple[int, ...] = ()
    output: Literal["logits", "last_hidden_state"] = "logits"
    stop_tokens: tuple[int, ...] = ()
    pad_token: int = 0
    num_extra_tokens: int = 0
    vision: VisionSpec | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a model does not have is left out, so that a manifest of a text model stays as it always was."""
        fields: dict[str, Any] = serialise(self)
        absent = {"num_extra_tokens": 0, "vision": None}
        return {name: value for name, value in fields.items() if name not in absent or value != absent[name]}

    @property
    def vision_side(self) -> "ModelSpec | None":
        """The vision side as a model by itself: crops to image tokens in one pass."""
        vision = self.vision
        if vision is None or self.kind == "vision":
            return None
        return self.model_copy(
            update={
                "kind": "vision",
                "num_blocks": vision.num_blocks,
                "block_path": vision.block_path,
                "kv": (),
                "context_tokens": 0,
                "vocab_size": 0,
                "num_extra_tokens": 0,
                "image_shape": vision.image_shape,
                "output": "last_hidden_state",
                "stop_tokens": (),
            }
        )

    def kv_layout(self, blocks: Iterable[int]) -> dict[int, tuple[int, int]]:
        """Of these blocks, (kv_heads, head_dim) of their cache rows."""
        return {block: (self.kv[block].num_heads, self.kv[block].head_dim) for block in blocks}

    @property
    def has_axes(self) -> bool:
        """Whether positions count time, rows and columns."""
        return self.vision is not None and self.vision.grid is not None

    @property
    def vision_scores_digest(self) -> str:
        """What scores and ladders of the vision side name as their model, so that they pass for no other's."""
        return f"{self.digest}:vision"

    def to_json(self) -> dict[str, Any]:
        """The specification as a manifest holds it."""
        return self.model_dump(mode="json")

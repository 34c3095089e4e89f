"""What every stage behind the loader needs to know of a model, without the model."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

ModelKind = Literal["decoder", "encoder", "vision"]


class KvSpec(BaseModel):
    """The cache row of one block: keys and values are (batch, num_heads, tokens, head_dim)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_heads: int
    head_dim: int


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
        vocab_size: tokens the embedding knows; 0 for vision.
        context_tokens: most positions the model can place; 0 when unlimited or not tokens.
        image_shape: (channels, height, width) for vision, else empty.
        output: what the engine returns: `logits` or `last_hidden_state`.
        stop_tokens: ids that end a generation.
        pad_token: id to pad with.
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

    def to_json(self) -> dict[str, Any]:
        """The specification as a manifest holds it."""
        return self.model_dump(mode="json")

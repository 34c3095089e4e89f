"""Models with random weights: what a report needs no network for."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.models.loaded import LoadedModel, wrap_module

SMALL_BLOCKS = 4
SMALL_LADDER = DepthLadder.from_masks(
    [DepthMask.from_kept(kept, SMALL_BLOCKS) for kept in ((0, 1, 2, 3), (0, 1, 3), (0, 3), (3,))]
)
LARGE_BLOCKS = 28
# Evenly spread, each within the next; 28 and 14 first, for their ratio is what depth is for.
LARGE_KEPT: dict[int, tuple[int, ...]] = {
    28: tuple(range(28)),
    14: tuple(range(0, 28, 2)),
    21: tuple(block for block in range(28) if block % 4 != 3),
    7: tuple(range(0, 28, 4)),
}


def small_decoder(hidden: int = 256) -> LoadedModel:
    """A decoder of four blocks on the processor, in fp32; 9 MB with 256 channels."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=SMALL_BLOCKS,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return wrap_module(Qwen2ForCausalLM(config).eval(), digest="random")


def qwen2_7b_shape() -> LoadedModel:
    """A decoder in the shape of Qwen2-7B on the GPU, in bf16: 15.2 GB."""
    config = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=LARGE_BLOCKS,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            module = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return wrap_module(module.eval(), digest="random")

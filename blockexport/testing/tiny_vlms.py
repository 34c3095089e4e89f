"""Random decoders that read pictures, from classes of transformers, small enough to run in milliseconds."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from blockexport.testing.tiny_models import CONTEXT_TOKENS, VOCAB_SIZE, vary_constants

IMAGE_TOKEN = VOCAB_SIZE - 1
_HIDDEN = 32


def tiny_llava(num_blocks: int = 4, vision_blocks: int = 4, seed: int = 0) -> PreTrainedModel:
    """A LLaVA in evaluation mode; of its tower the last block is not read, as in the published models.

    Args:
        num_blocks: blocks of the text stack.
        vision_blocks: blocks of the tower, the one that is not read included.
        seed: of the weights; the global random state is left as it was.
    """
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=vision_blocks,
        num_attention_heads=3,
        image_size=8,
        patch_size=4,
    )
    text = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=_HIDDEN,
        intermediate_size=48,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        eos_token_id=None,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        vary_constants(model)
    model.train(mode=False)
    return model

"""Random decoders that read pictures, from classes of transformers, small enough to run in milliseconds."""

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

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
    return _random(LlavaForConditionalGeneration, config, seed)


def tiny_qwen2_vl(num_blocks: int = 4, vision_blocks: int = 3, seed: int = 0) -> PreTrainedModel:
    """A Qwen2-VL in evaluation mode, for pictures of 2 x 3 image tokens.

    Args:
        num_blocks: blocks of the text stack.
        vision_blocks: blocks of the tower.
        seed: of the weights; the global random state is left as it was.
    """
    vision = {
        "depth": vision_blocks,
        "embed_dim": 24,
        "hidden_size": _HIDDEN,
        "num_heads": 3,
        "mlp_ratio": 2,
        "patch_size": 2,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "image_size": [8, 12],
    }
    text = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": _HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [1, 2, 1]},
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config = Qwen2VLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)
    return _random(Qwen2VLForConditionalGeneration, config, seed)


def _random(model_class: Any, config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config)
        vary_constants(model)
    model.train(mode=False)
    return model

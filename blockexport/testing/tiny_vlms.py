"""Random decoders that read pictures, from classes of transformers, small enough to run in milliseconds."""

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Molmo2Config,
    Molmo2ForConditionalGeneration,
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


def tiny_molmo2(num_blocks: int = 4, vision_blocks: int = 4, seed: int = 0) -> PreTrainedModel:
    """A Molmo2 in evaluation mode, for crops of 2 x 2 image tokens; of its tower the last block is not read.

    Args:
        num_blocks: blocks of the text stack.
        vision_blocks: blocks of the tower, the one that is not read included.
        seed: of the weights; the global random state is left as it was.
    """
    vision = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": vision_blocks,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "image_size": [9, 9],
        "patch_size": 3,
    }
    pooling = {
        "vision_feature_layer": [vision_blocks - 2, 0],
        "hidden_size": 24,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "intermediate_size": 40,
        "text_hidden_size": _HIDDEN,
    }
    text = {
        "vocab_size": VOCAB_SIZE,
        "additional_vocab_size": 12,
        "hidden_size": _HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "eos_token_id": None,
    }
    names = ["image_start_token_id", "image_end_token_id", "image_patch_id", "image_col_id"]
    names += ["low_res_image_start_token_id", "frame_start_token_id", "frame_end_token_id"]
    ids = {name: VOCAB_SIZE + index for index, name in enumerate(names)}
    config = Molmo2Config(vision_config=vision, adapter_config=pooling, text_config=text, **ids)
    return _random(Molmo2ForConditionalGeneration, config, seed)


def _random(model_class: Any, config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config)
        vary_constants(model)
    model.train(mode=False)
    return model

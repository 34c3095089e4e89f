"""Random transformers models small enough to run in milliseconds, one for each supported architecture.

No two tensors of a model are equal, normalisation weights and biases included: a test that mistakes one block for
another then sees different numbers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

VOCAB_SIZE = 97
CONTEXT_TOKENS = 64
IMAGE_SHAPE = (1, 8, 8)
NUM_CLASSES = 10
_HIDDEN = 32
_INTERMEDIATE = 64
_NUM_HEADS = 4
_SLIDING_WINDOW = 5
_GLOBAL_EVERY = 3
_SPREAD = 0.1


def _sizes(num_blocks: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": _NUM_HEADS,
        "max_position_embeddings": CONTEXT_TOKENS,
    }


def _grouped(num_blocks: int) -> dict[str, Any]:
    return _sizes(num_blocks) | {"num_key_value_heads": 2}


def _gpt2(num_blocks: int) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=_HIDDEN,
        n_layer=num_blocks,
        n_head=_NUM_HEADS,
        n_positions=CONTEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


def _opt(num_blocks: int) -> PreTrainedModel:
    sizes = _sizes(num_blocks)
    sizes["ffn_dim"] = sizes.pop("intermediate_size")
    return OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=_HIDDEN))


def _vit(num_blocks: int) -> PreTrainedModel:
    channels, height, _ = IMAGE_SHAPE
    sizes = _sizes(num_blocks)
    del sizes["vocab_size"], sizes["max_position_embeddings"]
    config = ViTConfig(**sizes, image_size=height, patch_size=2, num_channels=channels)
    config.num_labels = NUM_CLASSES
    return ViTForImageClassification(config)


def _gemma3(num_blocks: int) -> PreTrainedModel:
    # Every third block attends to everything, so that both kinds of block occur even in small models.
    layer_types = ["full_attention" if (i + 1) % _GLOBAL_EVERY == 0 else "sliding_attention" for i in range(num_blocks)]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**_grouped(num_blocks), head_dim=8, sliding_window=_SLIDING_WINDOW, layer_types=layer_types)
    )


_DECODER_BUILDERS: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": lambda n: LlamaForCausalLM(LlamaConfig(**_grouped(n))),
    "qwen2": lambda n: Qwen2ForCausalLM(Qwen2Config(**_grouped(n))),
    "qwen3": lambda n: Qwen3ForCausalLM(Qwen3Config(**_grouped(n), head_dim=8)),
    "mistral": lambda n: MistralForCausalLM(MistralConfig(**_grouped(n), sliding_window=_SLIDING_WINDOW)),
    "gpt2": _gpt2,
    "opt": _opt,
    "gemma2": lambda n: Gemma2ForCausalLM(Gemma2Config(**_grouped(n), head_dim=8, sliding_window=_SLIDING_WINDOW)),
    "gemma3": _gemma3,
    "olmo2": lambda n: Olmo2ForCausalLM(Olmo2Config(**_grouped(n))),
    "mixtral": lambda n: MixtralForCausalLM(MixtralConfig(**_grouped(n), num_local_experts=4, num_experts_per_tok=2)),
    "olmoe": lambda n: OlmoeForCausalLM(
        OlmoeConfig(**_grouped(n), num_experts=4, num_experts_per_tok=2, eos_token_id=None)
    ),
}
_ENCODER_BUILDERS: dict[str, Callable[[int], PreTrainedModel]] = {"bert": lambda n: BertModel(BertConfig(**_sizes(n)))}
_VISION_BUILDERS: dict[str, Callable[[int], PreTrainedModel]] = {"vit": _vit}
_BUILDERS = _DECODER_BUILDERS | _ENCODER_BUILDERS | _VISION_BUILDERS

DECODERS: tuple[str, ...] = tuple(_DECODER_BUILDERS)
ENCODERS: tuple[str, ...] = tuple(_ENCODER_BUILDERS)
VISION: tuple[str, ...] = tuple(_VISION_BUILDERS)
ARCHITECTURES: tuple[str, ...] = tuple(_BUILDERS)


def tiny_model(architecture: str, num_blocks: int = 6, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """Build a random model in evaluation mode, the same for the same arguments.

    Args:
        architecture: one of `ARCHITECTURES`.
        num_blocks: prunable blocks.
        seed: of the weights; the global random state is left as it was.
        settings: further entries of the configuration, such as `sliding_window`.

    Raises:
        ValueError: `architecture` is not one of `ARCHITECTURES`.
    """
    if architecture not in _BUILDERS:
        msg = f"no tiny model {architecture!r}; there are {', '.join(ARCHITECTURES)}"
        raise ValueError(msg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[architecture](num_blocks)
        if settings:
            model = type(model)(type(model.config).from_dict(model.config.to_dict() | settings))
        vary_constants(model)
    model.train(mode=False)
    return model


def tiny_inputs(
    model: PreTrainedModel, batch_size: int = 2, num_tokens: int = 9, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random inputs for a tiny model, by name.

    Text: `input_ids` and `attention_mask` (batch, tokens), where every row but the first ends in padding.
    Vision: `pixel_values` (batch, channels, height, width).
    """
    source = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(batch_size, *IMAGE_SHAPE, generator=source)}
    mask = torch.ones(batch_size, num_tokens, dtype=torch.long)
    for row in range(1, batch_size):
        mask[row, num_tokens - min(row, num_tokens - 1) :] = 0
    tokens = torch.randint(1, VOCAB_SIZE, (batch_size, num_tokens), generator=source)
    return {"input_ids": tokens * mask, "attention_mask": mask}


def vary_constants(model: nn.Module) -> None:
    """Move every parameter off the constant that transformers initialises norms and biases with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=_SPREAD)

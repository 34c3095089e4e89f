"""The text stack against transformers' own causal language models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from blockexport.models.loaded import LoadedModel
from blockexport.models.loading import load_model
from blockexport.testing.tiny_molmo import MolmoSizes, MolmoVariant, molmo_entries, molmo_shapes

Tensors = dict[str, torch.Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "eos_token_id": None,
}
CONFIGS: dict[MolmoVariant, Any] = {
    "pre-norm": Qwen2Config(**SIZES, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1e6),
    "post-norm": Olmo2Config(**SIZES, rms_norm_eps=1e-6, rope_theta=5e5),
    "mixture": OlmoeConfig(**SIZES, num_experts=6, num_experts_per_tok=2, rms_norm_eps=1e-5, rope_theta=1e4),
}
CLASSES: dict[MolmoVariant, Any] = {
    "pre-norm": Qwen2ForCausalLM,
    "post-norm": Olmo2ForCausalLM,
    "mixture": OlmoeForCausalLM,
}


def native_block(variant: MolmoVariant, theirs: Tensors) -> Tensors:
    """The published tensors of one block under transformers' names."""
    if variant == "mixture":
        theirs = {name.removeprefix("attn."): tensor for name, tensor in theirs.items()}
    kv_size = 16 if variant == "pre-norm" else 32
    block = {"self_attn.o_proj.weight": theirs["attn_out.weight"]}
    for leaf in ("weight", "bias"):
        if f"att_proj.{leaf}" in theirs:
            parts = theirs[f"att_proj.{leaf}"].split([32, kv_size, kv_size])
            block |= {f"self_attn.{part}_proj.{leaf}": tensor for part, tensor in zip("qkv", parts, strict=True)}
    for norm in ("q_norm", "k_norm"):
        if f"{norm}.weight" in theirs:
            block[f"self_attn.{norm}.weight"] = theirs[f"{norm}.weight"]
    names = ("post_attention", "post_feedforward") if variant == "post-norm" else ("input", "post_attention")
    block[f"{names[0]}_layernorm.weight"] = theirs["attn_norm.weight"]
    if variant == "mixture":
        experts = [f"mlp.experts.{expert}." for expert in range(6)]
        pairs = [torch.cat([theirs[f"{e}gate_proj.weight"], theirs[f"{e}up_proj.weight"]]) for e in experts]
        return block | {
            "mlp.gate.weight": theirs["mlp.gate.weight"],
            "mlp.experts.gate_up_proj": torch.stack(pairs),
            "mlp.experts.down_proj": torch.stack([theirs[f"{e}down_proj.weight"] for e in experts]),
            f"{names[1]}_layernorm.weight": theirs["mlp.ff_norm.weight"],
        }
    up, gate = theirs["ff_proj.weight"].chunk(2)
    return block | {
        "mlp.up_proj.weight": up,
        "mlp.gate_proj.weight": gate,
        "mlp.down_proj.weight": theirs["ff_out.weight"],
        f"{names[1]}_layernorm.weight": theirs["ff_norm.weight"],
    }


def native_state(variant: MolmoVariant, tensors: Tensors) -> Tensors:
    head = "lm_head.weight" if variant == "mixture" else "model.transformer.ff_out.weight"
    state = {
        "model.embed_tokens.weight": tensors["model.transformer.wte.embedding"],
        "model.norm.weight": tensors["model.transformer.ln_f.weight"],
        "lm_head.weight": tensors[head],
    }
    for block in range(5):
        prefix = f"model.transformer.blocks.{block}."
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        state |= {f"model.layers.{block}.{name}": tensor for name, tensor in native_block(variant, own).items()}
    return state


@pytest.mark.parametrize("variant", CONFIGS)
def test_text_equals_the_native_class(
    variant: MolmoVariant, checkpoints: Any, models: Callable[[MolmoVariant], LoadedModel]
) -> None:
    native = CLASSES[variant](CONFIGS[variant]).eval()
    native.load_state_dict(native_state(variant, load_file(checkpoints(variant) / "model.safetensors")))
    tokens = torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    mask[1, :6] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    real = mask != 0
    with torch.no_grad():
        expected = native(input_ids=tokens, attention_mask=mask, position_ids=positions).logits[real]
        ours = models(variant)(input_ids=tokens.where(real, -1)).logits[real]
    assert torch.equal(ours, expected)
    chosen = native.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    module: Any = models(variant).module
    got = module.generate(input_ids=tokens.where(real, -1), max_new_tokens=6, do_sample=False)
    assert torch.equal(got[:, 20:], chosen[:, 20:])


def test_a_dense_stack_without_biases_is_llamas(tmp_path: Any) -> None:
    """No published Molmo has it, but a small one trained with the published code may."""
    from safetensors.torch import save_file

    from blockexport.core.jsonio import dump_json

    sizes = MolmoSizes()
    source = torch.Generator().manual_seed(0)
    shapes = {name: s for name, s in molmo_shapes("pre-norm", sizes).items() if not name.endswith("att_proj.bias")}
    tensors = {name: torch.randn(shape, generator=source) * 0.2 for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    entries = molmo_entries("pre-norm", sizes) | {"qkv_bias": False}
    (tmp_path / "config.json").write_text(dump_json(entries))
    native = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1e6)).eval()
    native.load_state_dict(native_state("pre-norm", tensors))
    tokens = torch.randint(0, 97, (2, 9), generator=source)
    with torch.no_grad():
        expected = native(input_ids=tokens).logits
        ours = load_model(tmp_path)(input_ids=tokens).logits
    assert torch.equal(ours, expected)

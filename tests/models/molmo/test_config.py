"""What is read from `config.json`, in both namings, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Olmo2Config, OlmoeConfig, Qwen2Config

from blockexport.errors import ModelSupportError
from blockexport.models.loading import load_model
from blockexport.models.molmo.config import MolmoConfig
from blockexport.testing.tiny_molmo import MOLMO_VARIANTS, MolmoSizes, MolmoVariant, molmo_entries

DENSE_7B_D: dict[str, Any] = {
    "model_type": "molmo",
    "architectures": ["MolmoForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_molmo.MolmoForCausalLM"},
    "attention_layer_norm": False,
    "clip_qkv": None,
    "embedding_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 37888,
    "layer_norm_eps": 1e-6,
    "layer_norm_type": "rms",
    "max_position_embeddings": 4096,
    "norm_after": False,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "qkv_bias": True,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "use_position_ids": True,
    "vocab_size": 152064,
    "weight_tying": False,
}
DENSE_7B_O = DENSE_7B_D | {
    "attention_layer_norm": True,
    "embedding_size": 100352,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "norm_after": True,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": None,
    "qkv_bias": False,
    "rope_theta": 5e5,
    "vocab_size": 100278,
}
DENSE_72B = DENSE_7B_D | {
    "hidden_size": 8192,
    "intermediate_size": 59136,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
}
MIXTURE: dict[str, Any] = {
    "model_type": "molmo",
    "architectures": ["OLMoForCausalLM"],
    "attention_layer_norm": True,
    "clip_qkv": None,
    "d_model": 2048,
    "embedding_size": 50304,
    "image_padding_embed": "pad_and_partial_pad",
    "image_pooling_2d": "attention-meanq",
    "image_projector": "mlp",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
    "mlp_hidden_size": None,
    "mlp_ratio": 1,
    "moe_num_experts": 64,
    "moe_top_k": 8,
    "n_heads": 16,
    "n_kv_heads": None,
    "n_layers": 16,
    "rope_theta": 10000.0,
    "vision_backbone": {
        "image_default_input_size": [336, 336],
        "image_emb_dim": 1024,
        "image_head_dim": 64,
        "image_mlp_activations": "quick_gelu",
        "image_mlp_dim": 4096,
        "image_model_type": "openai",
        "image_norm_eps": 1e-5,
        "image_num_heads": 16,
        "image_num_key_value_heads": 16,
        "image_num_layers": 23,
        "image_num_pos": 577,
        "image_patch_size": 14,
        "image_pos_patch_size": 14,
    },
    "vit_layers": [-2, -9],
    "vocab_size": 50280,
}


def write(folder: Path, entries: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize(
    ("entries", "stack", "num_parameters"),
    [
        (DENSE_7B_D, Qwen2Config, 8_021_025_280),
        (DENSE_7B_O, Olmo2Config, 7_665_032_192),
        (MIXTURE, OlmoeConfig, 7_221_875_712),
    ],
    ids=["7B-D", "7B-O", "MolmoE-1B"],
)
def test_published_models_have_their_parameters(
    entries: dict[str, Any], stack: type, num_parameters: int, tmp_path: Path
) -> None:
    model = load_model(write(tmp_path, entries), config_only=True)
    assert type(model.module.config.text_config) is stack
    assert all(tensor.is_meta for tensor in model.module.state_dict().values())
    assert sum(parameter.numel() for parameter in model.module.parameters()) == num_parameters
    spec = model.spec
    assert (spec.kind, spec.output, spec.num_extra_tokens) == ("decoder", "logits", 128)
    assert spec.vocab_size == entries["embedding_size"]
    assert spec.num_blocks == len(spec.kv) == len(model.blocks)
    assert spec.context_tokens == entries["max_position_embeddings"]
    assert spec.kv[0].head_dim == 128
    assert spec.vision is not None
    assert (spec.vision.num_blocks, spec.vision.num_patches, spec.vision.patch_values) == (23, 576, 588)
    assert (spec.vision.num_pooled, spec.vision.hidden_size) == (144, model.module.config.text_config.hidden_size)
    assert model.module.config.vision.feature_blocks == (21, 14)


def test_the_largest_is_the_same_family() -> None:
    text = MolmoConfig(published=DENSE_72B).text_config
    assert (type(text), text.num_hidden_layers, text.num_key_value_heads) == (Qwen2Config, 80, 8)
    assert (text.intermediate_size, text.rms_norm_eps) == (29568, 1e-5)


@pytest.mark.parametrize("variant", MOLMO_VARIANTS)
def test_either_naming_gives_the_same_model(variant: MolmoVariant) -> None:
    names = {
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "mlp_hidden_size",
    }
    if variant == "mixture":
        names = {native: name for name, native in names.items()}
    entries = molmo_entries(variant, MolmoSizes())
    renamed = {names.get(name, name): value for name, value in entries.items()}
    assert renamed.keys() != entries.keys()
    ours, theirs = MolmoConfig(published=entries), MolmoConfig(published=renamed)
    assert ours.text_config.to_dict() == theirs.text_config.to_dict()
    assert ours.vision == theirs.vision


def test_what_a_file_leaves_out() -> None:
    for name, stack in (("norm_after", Olmo2Config), ("moe_num_experts", OlmoeConfig)):
        entries = {k: v for k, v in DENSE_7B_O.items() if k not in {"attention_layer_norm", "norm_after"}}
        config = MolmoConfig(published=entries | {name: 4, "moe_top_k": 2})
        assert type(config.text_config) is stack
    no_bias = {k: v for k, v in DENSE_7B_D.items() if k != "qkv_bias"}
    assert type(MolmoConfig(published=no_bias).text_config) is LlamaConfig
    assert MolmoConfig(published=DENSE_7B_D | {"vision_backbone": None}).vision is None
    assert MolmoConfig(published=DENSE_7B_D | {"additional_vocab_size": 0}).num_extra_tokens == 0


def test_where_a_file_lies_does_not_matter() -> None:
    moved = DENSE_7B_D | {"_name_or_path": "elsewhere", "transformers_version": "4.43.3", "torch_dtype": "float32"}
    assert MolmoConfig(published=moved).to_dict() == MolmoConfig(published=DENSE_7B_D).to_dict()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": "wide"}, "'wide' for hidden_size or d_model"),
        ({"num_hidden_layers": 0}, "0 for num_hidden_layers"),
        ({"num_hidden_layers": None}, "None for num_hidden_layers"),
        ({"num_attention_heads": 5}, "hidden size 3584 for 5 heads"),
        ({"num_key_value_heads": 3}, "28 heads and 3 of keys"),
        ({"rope_theta": -1}, "-1 for rope_theta"),
        ({"layer_norm_eps": "small"}, "'small' for layer_norm_eps"),
        ({"additional_vocab_size": -1}, "-1 for additional_vocab_size"),
        ({"clip_qkv": 8.0}, "clip_qkv to 8.0"),
        ({"weight_tying": True}, "weight_tying to True"),
        ({"qkv_bias": True, "norm_after": True}, "never published"),
        ({"attention_layer_norm": True}, "never published"),
        ({"moe_num_experts": 4, "moe_top_k": 5, "qkv_bias": False, "attention_layer_norm": True}, "5 of 4 experts"),
        ({"vision_backbone": 3}, "int for vision_backbone"),
        ({"vision_backbone": {"image_mlp_activations": "gelu"}}, "image_mlp_activations to 'gelu'"),
        ({"vision_backbone": {"image_num_pos": 576}}, "image_num_pos to 576"),
        ({"vision_backbone": {"image_default_input_size": [336, 100]}}, "[336, 100] for image_default_input_size"),
        ({"vision_backbone": {"image_num_key_value_heads": 4}}, "image_num_key_value_heads to 4"),
        ({"vision_backbone": {"image_num_layers": 8}}, "the vision tower has 8 blocks"),
        ({"vit_layers": [40]}, "vit_layers is [40]"),
        ({"image_pooling_2d": "stack"}, "image_pooling_2d to 'stack'"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelSupportError) as caught:
        load_model(write(tmp_path, DENSE_7B_D | changes), config_only=True)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)

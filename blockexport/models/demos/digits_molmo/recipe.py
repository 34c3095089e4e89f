"""What `demo:digits-molmo` is made of: its configuration, its geometry and the files its processor is read from."""

from pathlib import Path
from typing import Any

from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.models.demos.digits_molmo.tokenizer import END_OF_TEXT, PICTURE_TOKENS, train_tokenizer
from blockexport.processing import PictureGeometry
from blockexport.processing.processor import MolmoProcessor

GEOMETRY = PictureGeometry(crop_size=24, patch_size=4, margins=(2, 2), max_crops=4)


def model_entries(vocab_size: int) -> dict[str, Any]:
    """`config.json` of a dense Molmo with 16 narrow blocks and a vision tower of four."""
    side, patch = GEOMETRY.crop_size, GEOMETRY.patch_size
    return {
        "model_type": "molmo",
        "architectures": ["MolmoForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 512,
        "num_hidden_layers": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "layer_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "qkv_bias": True,
        "attention_layer_norm": False,
        "norm_after": False,
        "vocab_size": vocab_size,
        "embedding_size": vocab_size,
        "additional_vocab_size": len(PICTURE_TOKENS),
        "eos_token_id": 0,
        "vit_layers": [-1, -3],
        "vision_backbone": {
            "image_default_input_size": [side, side],
            "image_patch_size": patch,
            "image_num_pos": GEOMETRY.crop_patches**2 + 1,
            "image_emb_dim": 64,
            "image_num_heads": 4,
            "image_num_key_value_heads": 4,
            "image_num_layers": 4,
            "image_head_dim": 16,
            "image_mlp_dim": 128,
            "image_mlp_activations": "quick_gelu",
            "image_norm_eps": 1e-5,
        },
    }


def write_processor(out: Path) -> MolmoProcessor:
    """Write the files that a processor is read from, and read one."""
    out.mkdir(parents=True, exist_ok=True)
    train_tokenizer().save(str(out / "tokenizer.json"))
    write_atomically(out / "tokenizer_config.json", dump_json({"eos_token": END_OF_TEXT}) + "\n")
    settings = {
        "base_image_input_size": [GEOMETRY.crop_size] * 2,
        "image_patch_size": GEOMETRY.patch_size,
        "image_token_length_h": GEOMETRY.crop_tokens,
        "image_token_length_w": GEOMETRY.crop_tokens,
        "overlap_margins": list(GEOMETRY.margins),
        "max_crops": GEOMETRY.max_crops,
        "image_mean": list(GEOMETRY.mean),
        "image_std": list(GEOMETRY.std),
    }
    write_atomically(out / "preprocessor_config.json", dump_json(settings) + "\n")
    return MolmoProcessor.from_folder(out)

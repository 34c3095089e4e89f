"""Random Molmo checkpoints in the published layout, as small as wanted.

Keys and shapes are written down here as they are published, and not derived from the model's own code, so that a
loader that confuses two of them is found out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from blockexport.core.jsonio import dump_json, write_atomically

MolmoVariant = Literal["pre-norm", "post-norm", "mixture"]
MOLMO_VARIANTS: tuple[MolmoVariant, ...] = ("pre-norm", "post-norm", "mixture")

_FEATURE_LAYERS = (-2, -9)
_COLOURS = 3
_SPREAD = 0.25

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class MolmoSizes:
    """Sizes of a tiny Molmo.

    Attributes:
        num_blocks: blocks of the text stack.
        hidden_size: its width.
        num_heads: its heads.
        num_kv_heads: heads of keys and values, of the dense variants.
        ff_size: width of the feed-forward branch, or of one expert.
        num_experts: experts of a mixture.
        num_active_experts: experts that a token goes through.
        vocab_size: tokens that can be written.
        num_extra_tokens: tokens behind them that can only be read.
        context_tokens: positions.
        crop_pixels: side of a crop.
        patch_pixels: side of a patch.
        vision_size: width of the vision tower.
        vision_heads: its heads.
        vision_ff_size: width of its feed-forward branch.
        vision_blocks: its blocks, at least as many as `feature_layers` reach back.
        feature_layers: blocks whose outputs are the features, counted from the end.
    """

    num_blocks: int = 5
    hidden_size: int = 32
    num_heads: int = 4
    num_kv_heads: int = 2
    ff_size: int = 24
    num_experts: int = 6
    num_active_experts: int = 2
    vocab_size: int = 97
    num_extra_tokens: int = 8
    context_tokens: int = 128
    crop_pixels: int = 16
    patch_pixels: int = 4
    vision_size: int = 24
    vision_heads: int = 3
    vision_ff_size: int = 20
    vision_blocks: int = 9
    feature_layers: tuple[int, ...] = _FEATURE_LAYERS


def write_tiny_molmo(
    folder: Path, variant: MolmoVariant = "pre-norm", sizes: MolmoSizes | None = None, seed: int = 0
) -> Path:
    """Write a checkpoint; no two of its tensors are alike, norms and biases included.

    Args:
        folder: is made.
        variant: dense with norms before the branches (as 7B-D), dense with norms behind them (as 7B-O), or a mixture
            of experts (as MolmoE-1B).
        sizes: the defaults when None.
        seed: of the weights; the global random state is left as it was.

    Returns:
        `folder`.
    """
    sizes = sizes or MolmoSizes()
    source = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, shape, source) for name, shape in molmo_shapes(variant, sizes).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_atomically(folder / "config.json", dump_json(molmo_entries(variant, sizes)))
    return folder


def molmo_entries(variant: MolmoVariant, sizes: MolmoSizes) -> dict[str, Any]:
    """What the `config.json` of a variant says."""
    shared = {
        "model_type": "molmo",
        "vocab_size": sizes.vocab_size,
        "embedding_size": sizes.vocab_size,
        "additional_vocab_size": sizes.num_extra_tokens,
        "max_position_embeddings": sizes.context_tokens,
        "clip_qkv": None,
        "use_position_ids": True,
        "weight_tying": False,
        "vision_backbone": _vision_entries(sizes),
        "vit_layers": list(sizes.feature_layers),
    }
    if variant == "mixture":
        return shared | _mixture_entries(sizes)
    is_post_norm = variant == "post-norm"
    return shared | {
        "architectures": ["MolmoForCausalLM"],
        "hidden_size": sizes.hidden_size,
        "intermediate_size": 2 * sizes.ff_size,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_heads if is_post_norm else sizes.num_kv_heads,
        "num_hidden_layers": sizes.num_blocks,
        "layer_norm_eps": 1e-6,
        "rope_theta": 500_000.0 if is_post_norm else 1_000_000.0,
        "qkv_bias": not is_post_norm,
        "attention_layer_norm": is_post_norm,
        "norm_after": is_post_norm,
    }


def _mixture_entries(sizes: MolmoSizes) -> dict[str, Any]:
    return {
        "architectures": ["OLMoForCausalLM"],
        "d_model": sizes.hidden_size,
        "n_heads": sizes.num_heads,
        "n_kv_heads": None,
        "n_layers": sizes.num_blocks,
        "mlp_ratio": 1,
        "mlp_hidden_size": 2 * sizes.ff_size,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "attention_layer_norm": True,
        "moe_num_experts": sizes.num_experts,
        "moe_top_k": sizes.num_active_experts,
    }


def _vision_entries(sizes: MolmoSizes) -> dict[str, Any]:
    return {
        "image_default_input_size": [sizes.crop_pixels, sizes.crop_pixels],
        "image_patch_size": sizes.patch_pixels,
        "image_pos_patch_size": sizes.patch_pixels,
        "image_emb_dim": sizes.vision_size,
        "image_num_heads": sizes.vision_heads,
        "image_num_key_value_heads": sizes.vision_heads,
        "image_head_dim": sizes.vision_size // sizes.vision_heads,
        "image_num_layers": sizes.vision_blocks,
        "image_mlp_dim": sizes.vision_ff_size,
        "image_mlp_activations": "quick_gelu",
        "image_num_pos": (sizes.crop_pixels // sizes.patch_pixels) ** 2 + 1,
        "image_norm_eps": 1e-5,
    }


def molmo_shapes(variant: MolmoVariant, sizes: MolmoSizes) -> Shapes:
    """Published name to shape, for every tensor of a variant."""
    width = sizes.hidden_size
    head = "lm_head.weight" if variant == "mixture" else "model.transformer.ff_out.weight"
    shapes: Shapes = {
        "model.transformer.wte.embedding": (sizes.vocab_size, width),
        "model.transformer.wte.new_embedding": (sizes.num_extra_tokens, width),
        "model.transformer.ln_f.weight": (width,),
        head: (sizes.vocab_size, width),
    }
    for block in range(sizes.num_blocks):
        own = (
            _mixture_block(sizes) if variant == "mixture" else _dense_block(sizes, is_post_norm=variant == "post-norm")
        )
        shapes |= {f"model.transformer.blocks.{block}.{name}": shape for name, shape in own.items()}
    return shapes | {f"model.vision_backbone.{name}": shape for name, shape in _vision_shapes(sizes).items()}


def _dense_block(sizes: MolmoSizes, *, is_post_norm: bool) -> Shapes:
    width, ff_size = sizes.hidden_size, sizes.ff_size
    kv_size = width if is_post_norm else width // sizes.num_heads * sizes.num_kv_heads
    shapes: Shapes = {
        "att_proj.weight": (width + 2 * kv_size, width),
        "attn_out.weight": (width, width),
        "attn_norm.weight": (width,),
        "ff_norm.weight": (width,),
        "ff_proj.weight": (2 * ff_size, width),
        "ff_out.weight": (width, ff_size),
    }
    if is_post_norm:
        return shapes | {"q_norm.weight": (width,), "k_norm.weight": (kv_size,)}
    return shapes | {"att_proj.bias": (width + 2 * kv_size,)}


def _mixture_block(sizes: MolmoSizes) -> Shapes:
    width, ff_size = sizes.hidden_size, sizes.ff_size
    shapes: Shapes = {
        "attn.att_proj.weight": (3 * width, width),
        "attn.attn_out.weight": (width, width),
        **{f"attn.{norm}.weight": (width,) for norm in ("attn_norm", "q_norm", "k_norm")},
        "mlp.gate.weight": (sizes.num_experts, width),
        "mlp.ff_norm.weight": (width,),
    }
    for expert in range(sizes.num_experts):
        shapes[f"mlp.experts.{expert}.gate_proj.weight"] = (ff_size, width)
        shapes[f"mlp.experts.{expert}.up_proj.weight"] = (ff_size, width)
        shapes[f"mlp.experts.{expert}.down_proj.weight"] = (width, ff_size)
    return shapes


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _layer_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _vision_shapes(sizes: MolmoSizes) -> Shapes:
    width, features = sizes.vision_size, sizes.vision_size * len(sizes.feature_layers)
    num_patches = (sizes.crop_pixels // sizes.patch_pixels) ** 2
    shapes: Shapes = {
        "pad_embed": (2, features),
        "image_vit.class_embedding": (width,),
        "image_vit.positional_embedding": (num_patches + 1, width),
        "image_vit.patch_embedding.weight": (width, sizes.patch_pixels**2 * _COLOURS),
        **_layer_norm("image_vit.pre_ln", width),
        "image_projector.w1.weight": (sizes.ff_size, width),
        "image_projector.w3.weight": (sizes.ff_size, width),
        "image_projector.w2.weight": (sizes.hidden_size, sizes.ff_size),
        **_linear("image_pooling_2d.wo", width, width),
    }
    for part in ("wq", "wk", "wv"):
        shapes |= _linear(f"image_pooling_2d.{part}", width, features)
    for block in range(sizes.vision_blocks):
        name = f"image_vit.transformer.resblocks.{block}"
        for part in ("wq", "wk", "wv", "wo"):
            shapes |= _linear(f"{name}.attention.{part}", width, width)
        shapes |= _linear(f"{name}.feed_forward.w1", sizes.vision_ff_size, width)
        shapes |= _linear(f"{name}.feed_forward.w2", width, sizes.vision_ff_size)
        shapes |= _layer_norm(f"{name}.attention_norm", width) | _layer_norm(f"{name}.ffn_norm", width)
    return shapes


def _random(name: str, shape: tuple[int, ...], source: torch.Generator) -> torch.Tensor:
    """Matrices that keep the size of what they multiply, norms around 1, biases and embeddings around 0."""
    values = torch.randn(shape, generator=source)
    if len(shape) == 1:
        is_norm = name.endswith("weight")
        return is_norm + _SPREAD * values
    return values if "embed" in name and not name.endswith("weight") else values / shape[1] ** 0.5


def tiny_pictures(sizes: MolmoSizes, num_crops: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """`images` (1, num_crops, patches, patch_values) and `image_masks` (1, num_crops, patches) of random pixels.

    Masks hold every kind of value: full, empty and partly covered patches, and -1 for the last crop.
    """
    source = torch.Generator().manual_seed(seed)
    num_patches = (sizes.crop_pixels // sizes.patch_pixels) ** 2
    images = torch.randn(1, num_crops, num_patches, sizes.patch_pixels**2 * _COLOURS, generator=source)
    masks = torch.tensor([0.0, 0.4, 1.0, 1.0])[torch.randint(4, (1, num_crops, num_patches), generator=source)]
    masks[:, -1] = -1
    return {"images": images, "image_masks": masks}


def tiny_picture_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs for a tiny model of the default sizes, with every kind of -1 and -100.

    Three rows of 24 tokens: a picture of three crops, text padded on the right, and a picture of one crop with padding
    on the left, in the middle and in the last column.
    """
    sizes = MolmoSizes()
    num_tokens = sizes.vocab_size + sizes.num_extra_tokens
    tokens = torch.randint(0, num_tokens, (3, 24), generator=torch.Generator().manual_seed(seed))
    tokens[1, 17:] = -1
    tokens[2, [0, 1, 9, 23]] = -1
    indices = torch.full((3, 3, 4), -1)
    indices[0] = torch.tensor([[3, 1, 2, 5], [-100, 7, 8, -100], [9, 10, -100, 23]])
    indices[2, 0] = torch.tensor([-100, 4, 3, 6])
    images, masks = torch.full((3, 3, 16, 48), -1.0), torch.full((3, 3, 16), -1.0)
    for row, num_crops in ((0, 3), (2, 1)):
        pictures = tiny_pictures(sizes, 3, seed + row)
        images[row, :num_crops] = pictures["images"][0, :num_crops]
        masks[row, :num_crops] = pictures["image_masks"][0, -num_crops:]
    return {"input_ids": tokens, "images": images, "image_masks": masks, "image_input_idx": indices}

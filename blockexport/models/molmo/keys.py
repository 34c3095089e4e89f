"""Which tensors of a published checkpoint make up which parameters of the model.

Published fused matrices are taken apart (`att_proj` is query, key and value, `ff_proj` is up and gate), separate ones
put together (experts into one tensor, the two embeddings into one table). Both are one relation: the rows of a
published tensor lie, in order, in one or more parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from blockexport.models.molmo.config import MolmoConfig

Index = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a published tensor; the pieces of one tensor divide its rows among themselves in order.

    Attributes:
        parameter: where they belong, by the model's own name.
        index: which part of the parameter they are; all of it when empty.
    """

    parameter: str
    index: Index = ()

    def view(self, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        """That part of the parameter."""
        return parameters[self.parameter][self.index]


KeyMap = dict[str, tuple[Piece, ...]]


def published_shape(pieces: tuple[Piece, ...], parameters: dict[str, torch.Tensor]) -> tuple[int, ...]:
    """Shape of the published tensor that has these pieces."""
    views = [piece.view(parameters) for piece in pieces]
    return (sum(view.shape[0] for view in views), *views[0].shape[1:])


def key_map(config: MolmoConfig, module: nn.Module) -> KeyMap:
    """Published name to pieces, for every tensor of a checkpoint of this configuration.

    Args:
        config: of the model.
        module: the model, on any device; only its parameters' names are read.
    """
    own = dict(module.named_parameters())
    table: KeyMap = {name: (Piece(new),) for name, new in _whole(config, own)}
    embedding, num_tokens = "language_model.embed_tokens.weight", config.text_config.vocab_size
    table["model.transformer.wte.embedding"] = (Piece(embedding, (slice(None, num_tokens),)),)
    if config.num_extra_tokens:
        table["model.transformer.wte.new_embedding"] = (Piece(embedding, (slice(num_tokens, None),)),)
    for block in range(config.text_config.num_hidden_layers):
        table |= _block(config, own, block)
    return table


def _whole(config: MolmoConfig, own: dict[str, nn.Parameter]) -> Iterator[tuple[str, str]]:
    """Tensors outside the text blocks that only change their name."""
    yield "model.transformer.ln_f.weight", "language_model.norm.weight"
    yield "lm_head.weight" if config.num_experts else "model.transformer.ff_out.weight", "lm_head.weight"
    for name in own:
        if name.startswith("image_encoder."):
            yield _vision_name(name.removeprefix("image_encoder.")), name


# Prefixes of the vision side, own to published; the first that fits, within each of the two passes.
_VISION_PARTS = (
    ("tower.blocks.", "image_vit.transformer.resblocks."),
    ("tower.pre_norm.", "image_vit.pre_ln."),
    ("tower.position_embedding", "image_vit.positional_embedding"),
    ("tower.", "image_vit."),
    ("padding_marks.embedding", "pad_embed"),
    ("pooling.attention.", "image_pooling_2d."),
    ("projector.gate.", "image_projector.w1."),
    ("projector.up.", "image_projector.w3."),
    ("projector.down.", "image_projector.w2."),
)
_VISION_LEAVES = (
    ("query.", "wq."),
    ("key.", "wk."),
    ("value.", "wv."),
    ("out.", "wo."),
    ("mlp_norm.", "ffn_norm."),
    ("mlp.up.", "feed_forward.w1."),
    ("mlp.down.", "feed_forward.w2."),
)


def _vision_name(name: str) -> str:
    prefix, published = next(pair for pair in _VISION_PARTS if name.startswith(pair[0]))
    name = published + name.removeprefix(prefix)
    for own, new in _VISION_LEAVES:
        name = name.replace(f".{own}", f".{new}")
    return f"model.vision_backbone.{name}"


def _block(config: MolmoConfig, own: dict[str, nn.Parameter], block: int) -> KeyMap:
    theirs, ours = f"model.transformer.blocks.{block}.", f"language_model.layers.{block}."
    if config.num_experts:
        return _attention(own, theirs + "attn.", ours) | _experts(config, theirs + "mlp.", ours)
    return _attention(own, theirs, ours) | _dense(own, theirs, ours)


def _attention(own: dict[str, nn.Parameter], theirs: str, ours: str) -> KeyMap:
    attention = ours + "self_attn."
    table: KeyMap = {theirs + "attn_out.weight": (Piece(attention + "o_proj.weight"),)}
    for leaf in ("weight", "bias"):
        if attention + f"q_proj.{leaf}" in own:
            table[theirs + f"att_proj.{leaf}"] = tuple(Piece(f"{attention}{part}_proj.{leaf}") for part in "qkv")
    for norm in ("q_norm", "k_norm"):
        if attention + f"{norm}.weight" in own:
            table[theirs + f"{norm}.weight"] = (Piece(attention + f"{norm}.weight"),)
    table[theirs + "attn_norm.weight"] = (Piece(ours + _norms(own, ours)[0]),)
    return table


def _dense(own: dict[str, nn.Parameter], theirs: str, ours: str) -> KeyMap:
    return {
        theirs + "ff_norm.weight": (Piece(ours + _norms(own, ours)[1]),),
        theirs + "ff_proj.weight": (Piece(ours + "mlp.up_proj.weight"), Piece(ours + "mlp.gate_proj.weight")),
        theirs + "ff_out.weight": (Piece(ours + "mlp.down_proj.weight"),),
    }


def _experts(config: MolmoConfig, theirs: str, ours: str) -> KeyMap:
    table: KeyMap = {
        theirs + "ff_norm.weight": (Piece(ours + "post_attention_layernorm.weight"),),
        theirs + "gate.weight": (Piece(ours + "mlp.gate.weight"),),
    }
    fused, down, width = ours + "mlp.experts.gate_up_proj", ours + "mlp.experts.down_proj", _expert_size(config)
    for expert in range(config.num_experts or 0):
        name = f"{theirs}experts.{expert}."
        table[name + "gate_proj.weight"] = (Piece(fused, (expert, slice(None, width))),)
        table[name + "up_proj.weight"] = (Piece(fused, (expert, slice(width, None))),)
        table[name + "down_proj.weight"] = (Piece(down, (expert,)),)
    return table


def _expert_size(config: MolmoConfig) -> int:
    return int(config.text_config.intermediate_size)


def _norms(own: dict[str, nn.Parameter], ours: str) -> tuple[str, str]:
    """Names of the norms of attention and feed-forward: in front of them, or behind them."""
    if ours + "input_layernorm.weight" in own:
        return "input_layernorm.weight", "post_attention_layernorm.weight"
    return "post_attention_layernorm.weight", "post_feedforward_layernorm.weight"

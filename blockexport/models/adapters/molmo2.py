"""Molmo2, transformers' own: patches pooled two by two are added to tokens that see one another in both directions.

A crop becomes image tokens by itself here. In a picture of several crops some windows of the pooling lie across two of
them, so such pictures cannot be given. Those of one crop (shown twice, as the model's preprocessing does) can.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from blockexport.core.model import ModelKind, VisionSpec
from blockexport.models.adapter import TreeAdapter

# Side of a window of the pooling in patches; the model's configuration does not say it, its preprocessing does.
_WINDOW = 2
_MUTUAL_TOKENS = (
    "image_patch_id",
    "image_col_id",
    "image_low_res_id",
    "image_start_token_id",
    "low_res_image_start_token_id",
    "image_end_token_id",
    "frame_start_token_id",
    "frame_end_token_id",
)


class Molmo2Adapter(TreeAdapter):
    """A crop is its patches, (patches, patch_values), in the order of the model's own preprocessing."""

    def blocks(self, module: Any) -> nn.ModuleList:
        """The text stack's blocks."""
        blocks: nn.ModuleList = module.model.language_model.layers
        return blocks

    def kind(self, module: nn.Module) -> ModelKind:
        """Decoder; a picture is one more input."""
        return "decoder"

    def vision(self, module: Any) -> VisionSpec:
        """Sizes of crops and image tokens."""
        config, tower = module.config, module.config.vision_config
        mutual = [token for name in _MUTUAL_TOKENS if (token := getattr(config, name, None)) is not None]
        return VisionSpec(
            num_blocks=len(self.vision_blocks(module)),
            block_path="model.vision_tower.layers",
            image_shape=(tower.num_position_embeddings, tower.num_channels * tower.patch_size**2),
            num_pooled=len(_windows(tower)),
            hidden_size=config.text_config.hidden_size,
            joins="add",
            image_token=config.image_patch_id,
            mutual_tokens=tuple(sorted(mutual)),
        )

    def vision_blocks(self, module: Any) -> nn.ModuleList:
        """The tower's blocks up to the last one whose output is read."""
        layers = module.model.vision_tower.layers
        used: nn.ModuleList = layers[: max(layer % len(layers) for layer in _feature_layers(module)) + 1]
        return used

    def encode_images(self, module: Any, images: torch.Tensor, image_masks: torch.Tensor | None) -> torch.Tensor:
        """Tower, pooling and projector; crops have no masks.

        The model's own `get_image_features` makes a list of the pictures, which fixes their number in a trace.
        """
        num_crops = images.shape[0]
        states = module.model.vision_tower(images, output_hidden_states=True).hidden_states
        # The first of them is what enters the first block.
        features = torch.cat([states[layer + 1 if layer >= 0 else layer] for layer in _feature_layers(module)], dim=-1)
        windows = _windows_of_crops(module.config.vision_config, num_crops)
        tokens: torch.Tensor = module.model.multi_modal_projector(features, windows).last_hidden_state
        return tokens.reshape(num_crops, -1, tokens.shape[-1])

    def picture_arguments(
        self, module: Any, pictures: Mapping[str, torch.Tensor], text: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Crops, the windows of their pooling, each crop as a picture of its own, and which tokens see one another."""
        is_real = (pictures["image_input_idx"] >= 0).any(-1)
        if not is_real.any():
            return {}
        images, tower = pictures["images"][is_real], module.config.vision_config
        mutual = torch.tensor(self.vision(module).mutual_tokens)
        rows, columns = (-(-side // _WINDOW) for side in _sides(tower))
        return {
            "pixel_values": images,
            "image_token_pooling": _windows_of_crops(tower, len(images)),
            "image_grids": torch.tensor([[rows, columns, 0, 0]]).repeat(len(images), 1),
            "mm_token_type_ids": torch.isin(text["input_ids"], mutual).long(),
        }

    def prepare_for_export(self, module: Any) -> None:
        """Let the pooling give all tokens, where its own code looks for those that have a patch: all have one."""
        super().prepare_for_export(module)
        projector = module.model.multi_modal_projector
        projector.forward = functools.partial(_pool, projector)


def _feature_layers(module: Any) -> list[int]:
    layers: list[int] = module.config.adapter_config.vision_feature_layer
    return layers


def _sides(tower: Any) -> tuple[int, int]:
    """Rows and columns of a crop's patches."""
    height, width = tower.image_size
    return height // tower.patch_size, width // tower.patch_size


def _windows(tower: Any) -> torch.Tensor:
    """Patches (pooled, window) that each image token of a crop pools, -1 for none: an odd side is filled up behind."""
    rows, columns = _sides(tower)
    patches = torch.arange(rows * columns).reshape(1, rows, columns)
    filled = nn.functional.pad(patches, (0, columns % _WINDOW, 0, rows % _WINDOW), value=-1)[0]
    split = filled.unfold(0, _WINDOW, _WINDOW).unfold(1, _WINDOW, _WINDOW)
    return split.reshape(-1, _WINDOW**2)


def _windows_of_crops(tower: Any, num_crops: int) -> torch.Tensor:
    """The same of several crops, whose patches are counted through, (crops * pooled, window)."""
    windows = _windows(tower)
    begin = torch.arange(num_crops)[:, None, None] * tower.num_position_embeddings
    return torch.where(windows < 0, windows, windows + begin).flatten(0, 1)


class _Pooled:
    """What a projector gives, by the one name that is read of it."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.last_hidden_state = tokens


def _pool(projector: Any, features: torch.Tensor, windows: torch.Tensor) -> _Pooled:
    """The projector on windows (tokens, window) of features (crops, patches, width), none of them empty."""
    attention, is_patch = projector.image_pooling_2d, windows >= 0
    patches = features.flatten(0, 1)[windows.clamp(min=0)] * is_patch[..., None]
    mean = patches.sum(1, keepdim=True) / is_patch.sum(1)[:, None, None]
    by_head = (-1, attention.head_dim)
    query = attention.q_proj(mean).unflatten(-1, by_head)
    key, value = attention.k_proj(patches).unflatten(-1, by_head), attention.v_proj(patches).unflatten(-1, by_head)
    groups = query.shape[2] // key.shape[2]
    key, value = key.repeat_interleave(groups, dim=2), value.repeat_interleave(groups, dim=2)
    scores = (query * key).sum(-1) * attention.scaling
    weights = scores.masked_fill(~is_patch[..., None], float("-inf")).softmax(1)
    pooled = (weights[..., None] * value).sum(1).flatten(1)
    return _Pooled(projector.image_projector(attention.o_proj(pooled)))

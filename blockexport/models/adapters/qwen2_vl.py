"""Qwen2-VL: a tower for pictures of any grid, and positions in time, row and column (arXiv:2409.12191).

Engines of one pass have one shape, so a bundle reads pictures of one size: `image_size` in `vision_config`, in pixels,
a number or height and width. Published configurations do not state one, and get one of 16 x 16 image tokens.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from blockexport.core.model import ModelKind, VisionSpec
from blockexport.core.positions import NUM_AXES
from blockexport.errors import ModelSupportError
from blockexport.models.adapter import TreeAdapter, block_list

_SIDE_TOKENS = 16


class Qwen2VlAdapter(TreeAdapter):
    """A crop is a picture: its patches, (patches, patch_values), in the order of the model's own preprocessing."""

    def blocks(self, module: Any) -> nn.ModuleList:
        """The text stack's blocks."""
        return block_list(module.model.language_model, self._num_blocks(module))

    def kind(self, module: nn.Module) -> ModelKind:
        """Decoder; a picture is one more input."""
        return "decoder"

    def vision(self, module: Any) -> VisionSpec:
        """Sizes of pictures and image tokens."""
        tower, blocks = module.config.vision_config, self.vision_blocks(module)
        rows, columns = _patch_grid(tower)
        grid = (rows // tower.spatial_merge_size, columns // tower.spatial_merge_size)
        return VisionSpec(
            num_blocks=len(blocks),
            block_path=next(path for path, child in module.named_modules() if child is blocks),
            image_shape=(rows * columns, tower.in_channels * tower.temporal_patch_size * tower.patch_size**2),
            num_pooled=grid[0] * grid[1],
            hidden_size=module.config.text_config.hidden_size,
            joins="replace",
            image_token=module.config.image_token_id,
            grid=grid,
        )

    def vision_blocks(self, module: Any) -> nn.ModuleList:
        """The tower's blocks."""
        blocks: nn.ModuleList = module.model.visual.blocks
        return blocks

    def encode_images(self, module: Any, images: torch.Tensor, image_masks: torch.Tensor | None) -> torch.Tensor:
        """Tower and merger; pictures have no masks."""
        tower = module.config.vision_config
        num_crops, num_patches, _ = images.shape
        one = torch.tensor([[1, *_patch_grid(tower)]])
        features = module.model.visual(
            images.flatten(0, 1),
            one.expand(num_crops, 3),
            # What the tower would find from the grids, one after the other.
            position_ids=get_vision_position_ids(one, tower.spatial_merge_size).repeat(num_crops, 1),
            cu_seqlens=torch.arange(num_crops + 1, dtype=torch.int32) * num_patches,
        ).pooler_output
        tokens: torch.Tensor = features.unflatten(0, (num_crops, num_patches // tower.spatial_merge_size**2))
        return tokens

    def picture_arguments(
        self, module: Any, pictures: Mapping[str, torch.Tensor], text: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Patches of all pictures, their grids, and which tokens are of a picture."""
        is_real = (pictures["image_input_idx"] >= 0).any(-1)
        if not is_real.any():
            return {}
        images, config = pictures["images"][is_real], module.config
        return {
            "pixel_values": images.flatten(0, 1),
            "image_grid_thw": torch.tensor([[1, *_patch_grid(config.vision_config)]]).repeat(len(images), 1),
            "mm_token_type_ids": (text["input_ids"] == config.image_token_id).int(),
        }

    def prepare_for_export(self, module: Any) -> None:
        """Let the tower attend within pictures of one size, where its own code asks for the length of each.

        And have angles put together from the three axes before their cosines and sines are taken, not after it: the
        same numbers, in the form in which rotary embeddings are known.
        """
        super().prepare_for_export(module)
        rotary = module.model.language_model.rotary_emb
        rotary.forward = functools.partial(_cos_and_sin, rotary)
        rows, columns = _patch_grid(module.config.vision_config)
        for block in self.vision_blocks(module):
            attention: Any = block.attn
            attention.forward = functools.partial(_attend_within_crops, attention, rows * columns)


def _patch_grid(tower: Any) -> tuple[int, int]:
    """Rows and columns of a picture's patches.

    Raises:
        ModelSupportError: the size is no multiple of what becomes one image token.
    """
    pixels = tower.patch_size * tower.spatial_merge_size
    size = getattr(tower, "image_size", None) or _SIDE_TOKENS * pixels
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 and side % pixels == 0 for side in sides):
        msg = (
            f"vision_config.image_size is {size}; a bundle reads pictures of one size, "
            f"give height and width in multiples of {pixels}"
        )
        raise ModelSupportError(msg)
    return sides[0] // tower.patch_size, sides[1] // tower.patch_size


def _attend_within_crops(
    attention: Any,
    num_patches: int,
    hidden_states: torch.Tensor,
    *,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **_: Any,
) -> torch.Tensor:
    """The tower's attention over (crops * patches, hidden), in which a crop sees itself only."""
    packed = attention.qkv(hidden_states).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    query, key, value = packed.unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    # Each (crops, heads, patches, head_dim) from here on.
    by_crop = [part.unflatten(0, (-1, num_patches)).transpose(1, 2) for part in (query, key, value)]
    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]  # noqa: SLF001  (as in every model)
    attended, _weights = attend(attention, *by_crop, None, scaling=attention.scaling)
    projected: torch.Tensor = attention.proj(attended.reshape(hidden_states.shape))
    return projected


def _cos_and_sin(rotary: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the angles of positions (3 or 1, batch, seq); each (batch, seq, head_dim)."""
    by_axis = position_ids.expand(NUM_AXES, -1, -1)[..., None].float() * rotary.inv_freq
    angles: torch.Tensor = rotary.recomposition_frequencies(by_axis)
    return (angles.cos() * rotary.attention_scaling).to(x.dtype), (angles.sin() * rotary.attention_scaling).to(x.dtype)

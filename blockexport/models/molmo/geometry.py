"""The vision side in numbers: fixed in the dense checkpoints' code, an entry `vision_backbone` in MolmoE's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockexport.errors import ModelSupportError
from blockexport.models.molmo.entries import Entries, check_fixed, number, size

POOLING = 2
_COLOURS = 3
# ViT-L/14 of CLIP at 336 pixels without its last block, whose features nobody reads.
_DEFAULT_PIXELS = (336, 336)
_DEFAULT_LAYERS = (-2, -9)
# Settings of the training code that no published checkpoint uses otherwise.
_FIXED: dict[str, tuple[Any, ...]] = {
    "image_model_type": ("openai",),
    "image_mlp_activations": ("quick_gelu",),
    "image_padding_embed": ("pad_and_partial_pad",),
    "image_pooling_2d": ("attention-meanq", "attention_meanq"),
    "image_pooling_h": (POOLING,),
    "image_pooling_w": (POOLING,),
    "image_projector": ("mlp",),
}


@dataclass(frozen=True, slots=True)
class VisionGeometry:
    """Sizes of the vision tower, the pooling and the projector.

    Attributes:
        grid: patches of a crop, (rows, columns).
        patch_size: side of a patch in pixels.
        hidden_size: width of the tower.
        num_heads: heads of the tower, and of the pooling.
        head_dim: width of a head.
        mlp_size: inner width of the tower's feed-forward branch.
        num_blocks: blocks of the tower.
        feature_blocks: blocks whose outputs are joined into the features, in this order.
        norm_eps: of the tower's layer norms.
        projector_size: inner width of the projector.
        needs_every_pixel: a crop is padding as soon as one of its values is -1 (MolmoE's code), not only when all are
            (the dense models' code); they differ for a picture with a value of exactly -1.
    """

    grid: tuple[int, int]
    patch_size: int
    hidden_size: int
    num_heads: int
    head_dim: int
    mlp_size: int
    num_blocks: int
    feature_blocks: tuple[int, ...]
    norm_eps: float
    projector_size: int
    needs_every_pixel: bool

    @property
    def num_patches(self) -> int:
        """Patches of a crop."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_values(self) -> int:
        """Numbers in a patch: height x width x colours, in this order."""
        return self.patch_size**2 * _COLOURS

    @property
    def feature_size(self) -> int:
        """Width of a patch's features."""
        return self.hidden_size * len(self.feature_blocks)

    @property
    def pooled_grid(self) -> tuple[int, int]:
        """Image tokens of a crop, (rows, columns); an odd row or column of patches is pooled with zeros."""
        rows, columns = self.grid
        return -(-rows // POOLING), -(-columns // POOLING)

    @property
    def num_pooled(self) -> int:
        """Image tokens of a crop."""
        return self.pooled_grid[0] * self.pooled_grid[1]


def read_geometry(entries: Entries, projector_size: int) -> VisionGeometry | None:
    """The vision side that `config.json` describes; None where `vision_backbone` is null.

    Raises:
        ModelSupportError: an entry contradicts another or asks for what no checkpoint uses.
    """
    given = entries.get("vision_backbone", {})
    if given is None:
        return None
    if not isinstance(given, Mapping):
        msg = f"config.json gives a {type(given).__name__} for vision_backbone; give an object, or null for text only"
        raise ModelSupportError(msg)
    check_fixed({**entries, **given}, _FIXED)
    patch_size = size(given, "image_patch_size", default=14)
    hidden_size, num_heads = size(given, "image_emb_dim", default=1024), size(given, "image_num_heads", default=16)
    check_fixed(given, {"image_num_key_value_heads": (num_heads,), "image_pos_patch_size": (patch_size,)})
    num_blocks = size(given, "image_num_layers", default=23)
    return VisionGeometry(
        grid=_grid(given, patch_size),
        patch_size=patch_size,
        hidden_size=hidden_size,
        num_heads=num_heads,
        head_dim=size(given, "image_head_dim", default=hidden_size // num_heads),
        mlp_size=size(given, "image_mlp_dim", default=4096),
        num_blocks=num_blocks,
        feature_blocks=_feature_blocks(entries, num_blocks),
        norm_eps=number(given, "image_norm_eps", 1e-5),
        projector_size=projector_size,
        needs_every_pixel=bool(entries.get("moe_num_experts")),
    )


def _grid(given: Entries, patch_size: int) -> tuple[int, int]:
    pixels = tuple(given.get("image_default_input_size") or _DEFAULT_PIXELS)
    if len(pixels) != 2 or any(not isinstance(side, int) or side < 1 or side % patch_size for side in pixels):
        msg = f"config.json gives {list(pixels)} for image_default_input_size; give two multiples of {patch_size}"
        raise ModelSupportError(msg)
    rows, columns = (side // patch_size for side in pixels)
    check_fixed(given, {"image_num_pos": (rows * columns + 1,)})
    return rows, columns


def _feature_blocks(entries: Entries, num_blocks: int) -> tuple[int, ...]:
    layers = tuple(entries.get("vit_layers") or _DEFAULT_LAYERS)
    if not all(isinstance(layer, int) and -num_blocks <= layer < num_blocks for layer in layers):
        msg = f"vit_layers is {list(layers)}, but the vision tower has {num_blocks} blocks; name blocks that exist"
        raise ModelSupportError(msg)
    return tuple(layer % num_blocks for layer in layers)

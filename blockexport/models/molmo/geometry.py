"""The vision side in numbers: fixed in the dense checkpoints' code, an entry `vision_backbone` in MolmoE's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockexport.errors import ModelSupportError

POOLING = 2
_COLOURS = 3
# ViT-L/14 of CLIP at 336 pixels without its last block, whose features nobody reads.
_DEFAULTS: dict[str, Any] = {
    "image_default_input_size": (336, 336),
    "image_patch_size": 14,
    "image_emb_dim": 1024,
    "image_num_heads": 16,
    "image_num_layers": 23,
    "image_mlp_dim": 4096,
    "image_norm_eps": 1e-5,
}
_DEFAULT_LAYERS = (-2, -9)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
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


def read_geometry(entries: Mapping[str, Any], projector_size: int) -> VisionGeometry | None:
    """The vision side that `config.json` describes; None where `vision_backbone` is null.

    Raises:
        ModelSupportError: an entry contradicts another or asks for what no checkpoint uses.
    """
    given = entries.get("vision_backbone", {})
    if given is None:
        return None
    _check_neutral({**entries, **given})
    values = _DEFAULTS | {name: value for name, value in given.items() if value is not None}
    side, num_heads, width = values["image_patch_size"], values["image_num_heads"], values["image_emb_dim"]
    height, breadth = values["image_default_input_size"]
    grid = (height // side, breadth // side)
    num_blocks = values["image_num_layers"]
    if values.get("image_num_key_value_heads", num_heads) != num_heads:
        msg = "vision_backbone.image_num_key_value_heads differs from image_num_heads; they must be equal"
        raise ModelSupportError(msg)
    if values.get("image_num_pos", grid[0] * grid[1] + 1) != grid[0] * grid[1] + 1 or height % side or breadth % side:
        msg = (
            f"vision_backbone cuts {height}x{breadth} pixels into patches of {side} and gives image_num_pos "
            f"{values.get('image_num_pos')}; it must be one for each whole patch and one more"
        )
        raise ModelSupportError(msg)
    layers = tuple(entries.get("vit_layers") or _DEFAULT_LAYERS)
    if not all(-num_blocks <= layer < num_blocks for layer in layers):
        msg = f"vit_layers is {list(layers)}, but the vision tower has {num_blocks} blocks; name blocks that exist"
        raise ModelSupportError(msg)
    return VisionGeometry(
        grid=grid,
        patch_size=side,
        hidden_size=width,
        num_heads=num_heads,
        head_dim=values.get("image_head_dim") or width // num_heads,
        mlp_size=values["image_mlp_dim"],
        num_blocks=num_blocks,
        feature_blocks=tuple(layer % num_blocks for layer in layers),
        norm_eps=values["image_norm_eps"],
        projector_size=projector_size,
        needs_every_pixel=bool(entries.get("moe_num_experts")),
    )


def _check_neutral(entries: Mapping[str, Any]) -> None:
    for name, allowed in _NEUTRAL.items():
        if name in entries and entries[name] not in allowed:
            msg = f"config.json sets {name} to {entries[name]!r}; for Molmo only {allowed[0]!r} is supported"
            raise ModelSupportError(msg)

"""How a picture is cut: the numbers that a checkpoint fixes, read from its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from blockexport.core.jsonio import read_json
from blockexport.errors import ConfigError, ModelSupportError

# Of OpenAI's CLIP, whose vision tower the published models start from.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class PictureGeometry:
    """Sizes of crops, patches and their overlap; the defaults are those of every published Molmo.

    Attributes:
        crop_size: side of a crop in pixels.
        patch_size: side of a patch in pixels.
        margins: patches of a crop on the left and top, and on the right and bottom, that its neighbour shows as well.
        pooling: patches on a side that become one token.
        max_crops: most crops of a picture, not counting the one that shows all of it.
        mean: subtracted from red, green and blue, which are from 0 to 1.
        std: what they are divided by then.
    """

    crop_size: int = 336
    patch_size: int = 14
    margins: tuple[int, int] = (4, 4)
    pooling: int = 2
    max_crops: int = 12
    mean: tuple[float, float, float] = _CLIP_MEAN
    std: tuple[float, float, float] = _CLIP_STD

    def __post_init__(self) -> None:
        sizes = (self.crop_size, self.patch_size, self.pooling, self.max_crops)
        if min(sizes) < 1 or min(self.margins) < 0 or self.crop_size % self.patch_size:
            msg = f"{self} is no geometry; give positive sizes, and crops of whole patches"
            raise ConfigError(msg)
        # A token must not reach over the border of what a crop keeps.
        if self.window_patches < 1 or any(n % self.pooling for n in (self.crop_patches, *self.margins)):
            msg = f"{self} leaves no window of whole tokens; give margins and crops in multiples of the pooling"
            raise ConfigError(msg)

    @property
    def crop_patches(self) -> int:
        """Patches on a side of a crop."""
        return self.crop_size // self.patch_size

    @property
    def crop_tokens(self) -> int:
        """Tokens on a side of a crop, dropped ones included."""
        return self.crop_patches // self.pooling

    @property
    def window_patches(self) -> int:
        """Patches from the start of one crop to that of the next."""
        return self.crop_patches - sum(self.margins)

    @property
    def margin_pixels(self) -> int:
        """Pixels by which a picture is longer than its windows, in each direction."""
        return sum(self.margins) * self.patch_size

    @property
    def window_pixels(self) -> int:
        """Pixels from the start of one crop to that of the next."""
        return self.window_patches * self.patch_size

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read `preprocessor_config.json` of a model folder; what it leaves out is as published.

        Raises:
            ModelSupportError: the file cannot be read as such, or contradicts the vision tower in `config.json`.
        """
        settings = _read_object(folder / "preprocessor_config.json")
        tower = _read_object(folder / "config.json").get("vision_backbone") or {}
        try:
            geometry = cls(**_geometry_fields(settings, tower))
        except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
            msg = (
                f"{folder / 'preprocessor_config.json'} gives no picture geometry ({error}); fetch the checkpoint again"
            )
            raise ModelSupportError(msg) from error
        _check_tower(folder, geometry, tower)
        return geometry


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        msg = f"{path} holds a {type(value).__name__}, not a JSON object; fetch the checkpoint again"
        raise ModelSupportError(msg)
    return value


def _geometry_fields(settings: dict[str, Any], tower: dict[str, Any]) -> dict[str, Any]:
    """The fields of a geometry that the files state."""
    fields: dict[str, Any] = {}
    size = settings.get("base_image_input_size", tower.get("image_default_input_size"))
    if size is not None:
        fields["crop_size"] = _square(size)
    patch = settings.get("image_patch_size", tower.get("image_patch_size"))
    if patch is not None:
        fields["patch_size"] = int(patch)
    if "overlap_margins" in settings:
        left, right = settings["overlap_margins"]
        fields["margins"] = (int(left), int(right))
    if "max_crops" in settings:
        fields["max_crops"] = int(settings["max_crops"])
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in settings:
            red, green, blue = map(float, settings[theirs])
            fields[ours] = (red, green, blue)
    if "image_token_length_h" in settings:
        known = PictureGeometry()
        patches = fields.get("crop_size", known.crop_size) // fields.get("patch_size", known.patch_size)
        fields["pooling"] = patches // _square([settings["image_token_length_h"], settings["image_token_length_w"]])
    return fields


def _square(size: int | list[int]) -> int:
    sides = [size] if isinstance(size, int) else size
    if len(set(sides)) != 1:
        msg = f"size {size} is not square"
        raise ValueError(msg)
    return int(sides[0])


def _check_tower(folder: Path, geometry: PictureGeometry, tower: dict[str, Any]) -> None:
    stated = {"image_default_input_size": [geometry.crop_size] * 2, "image_patch_size": geometry.patch_size}
    for key, ours in stated.items():
        if key in tower and tower[key] != ours:
            msg = (
                f"{folder} has {key} {tower[key]} in config.json but {ours} in preprocessor_config.json; "
                "fetch the checkpoint again"
            )
            raise ModelSupportError(msg)

"""Pictures in prompts as arrays, the same for every architecture, and the image tokens made of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from blockexport.core.positions import PositionShifts
from blockexport.core.signature import IMAGE_MASKS

PICTURE_INPUTS = ("images", IMAGE_MASKS, "image_input_idx")


def chunk_end(tokens: NDArray[np.int64], end: int, mutual_tokens: tuple[int, ...]) -> int:
    """Where a chunk of a prompt has to end that would end at a column.

    Args:
        tokens: (seq,), the prompt.
        end: the column behind the chunk.
        mutual_tokens: the model's `VisionSpec.mutual_tokens`, which have to come in one call.
    """
    columns = np.flatnonzero(np.isin(tokens, mutual_tokens))
    is_between = columns.size > 0 and columns[0] < end <= columns[-1]
    return int(columns[-1]) + 1 if is_between else end


@dataclass(frozen=True, slots=True, eq=False)
class ImageTokens:
    """Image tokens on their way into a decoder.

    Attributes:
        features: (image_tokens, hidden).
        positions: (image_tokens, 2), row and column of the tokens that they join.
    """

    features: NDArray[np.float32]
    positions: NDArray[np.int64]

    @classmethod
    def none(cls, hidden_size: int) -> Self:
        """What a call without pictures gives to a decoder that could read some."""
        return cls(np.zeros((0, hidden_size), np.float32), np.zeros((0, 2), np.int64))

    def within(self, row: int, begin: int, end: int) -> Self:
        """Those that join columns `begin` to `end` of one row, counted from there, in a batch of that row alone."""
        rows, columns = self.positions.T
        chosen = (rows == row) & (columns >= begin) & (columns < end)
        return type(self)(self.features[chosen], self.positions[chosen] - [row, begin])


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """The crops of a batch that have a place in a prompt.

    Attributes:
        images: (crops, *image_shape) float32.
        image_masks: (crops, *mask_shape) float32, how much of each patch is picture; None for models not told.
        places: (crops, pooled, 2), row and column that each image token joins; a column below 0 for none.
        shifts: what these do to the positions of the batch's tokens; None for models that count tokens only.
    """

    images: NDArray[np.float32]
    image_masks: NDArray[np.float32] | None
    places: NDArray[np.int64]
    shifts: PositionShifts | None = None

    @classmethod
    def of_batch(cls, inputs: Mapping[str, NDArray[Any]], grid: tuple[int, int] | None = None) -> Self | None:
        """Of `images` (batch, crops, ...), `image_masks` and `image_input_idx` (batch, crops, pooled); None without.

        Args:
            inputs: the arrays, among others.
            grid: the model's `VisionSpec.grid`.

        Raises:
            RequestError: the model counts rows and columns, and image tokens of a picture do not stand side by side.
        """
        if "images" not in inputs:
            return None
        columns = inputs["image_input_idx"].astype(np.int64)
        rows = np.arange(len(columns))[:, None, None]
        is_seen = (columns >= 0).any(-1)
        places = np.stack(np.broadcast_arrays(rows, columns), axis=-1)[is_seen]
        masks = inputs.get(IMAGE_MASKS)
        return cls(
            np.ascontiguousarray(inputs["images"][is_seen], np.float32),
            None if masks is None else np.ascontiguousarray(masks[is_seen], np.float32),
            places,
            None if grid is None else PositionShifts.of_places(places, grid, len(columns)),
        )

    @property
    def engine_inputs(self) -> dict[str, NDArray[np.generic]]:
        """What a vision engine takes."""
        masks = {} if self.image_masks is None else {IMAGE_MASKS: self.image_masks}
        return {"pixel_values": self.images, **masks}

    def image_tokens(self, features: NDArray[np.float32]) -> ImageTokens:
        """Image tokens of what a vision engine gave, (crops, pooled, hidden), without those that go nowhere."""
        is_kept = self.places[..., 1] >= 0
        return ImageTokens(np.ascontiguousarray(features[is_kept]), np.ascontiguousarray(self.places[is_kept]))

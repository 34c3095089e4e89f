"""Made-up prompts, with and without pictures, on which engines are held to the reference."""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from blockexport.core.model import ModelSpec, VisionSpec
from blockexport.core.signature import IMAGE_MASKS

_PLACES = "image_input_idx"
# What the preprocessing says of patches: none, some or all of it is picture; a crop of -1 throughout occurs too.
_SHARES = (0.0, 0.4, 1.0)
_UNKNOWN_SHARE = -1.0
_NO_CROP = -1
_DROPPED = -100
# Crops of each row; the last has no picture.
_CROPS = (2, 1, 0)
_IMAGES_BEGIN = 1


@dataclass(frozen=True, slots=True, eq=False)
class MadeUpPrompts:
    """A batch of prompts.

    Attributes:
        tokens: (batch, seq), padded on the right.
        lengths: (batch,).
        pictures: `images`, `image_masks` and `image_input_idx` by name, (batch, crops, ...); empty without pictures.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    pictures: dict[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of_text(cls, spec: ModelSpec, lengths: tuple[int, ...], rng: np.random.Generator) -> Self:
        """Random tokens."""
        counts = np.array(lengths)
        tokens = rng.integers(0, spec.vocab_size, (len(counts), int(counts.max())))
        tokens[np.arange(tokens.shape[1]) >= counts[:, None]] = spec.pad_token
        return cls(tokens, counts)

    @classmethod
    def with_pictures(cls, spec: ModelSpec, lengths: tuple[int, ...], rng: np.random.Generator) -> Self:
        """Random tokens of so many words each, and among them pictures of two, one and no crop."""
        vision = spec.vision
        assert vision is not None
        num_crops = _CROPS[: len(lengths)]
        columns = np.full((len(lengths), max(num_crops), vision.num_pooled), _NO_CROP, np.int64)
        rows = []
        for length, count, places in zip(lengths, num_crops, columns, strict=True):
            places[:count] = _places(vision, count)
            columns_of_images = np.sort(places[places >= 0])
            image_tokens = rng.integers(0, spec.vocab_size, len(columns_of_images))
            words = rng.integers(0, spec.vocab_size, length)
            if vision.image_token is not None:
                image_tokens[:] = vision.image_token
                words[words == vision.image_token] = (vision.image_token + 1) % spec.vocab_size
            # `insert` counts columns before anything is inserted.
            rows.append(np.insert(words, columns_of_images - np.arange(len(columns_of_images)), image_tokens))
        counts = np.array([len(row) for row in rows], np.int64)
        tokens = np.full((len(rows), int(counts.max())), spec.pad_token, np.int64)
        for row, padded in zip(rows, tokens, strict=True):
            padded[: len(row)] = row
        is_crop = np.arange(columns.shape[1]) < np.array(num_crops)[:, None]
        return cls(tokens, counts, _batch_of_crops(vision, is_crop, rng) | {_PLACES: columns})

    @property
    def padded_left(self) -> Self:
        """The same prompts with their padding in front."""
        width = self.tokens.shape[1]
        shifts = width - self.lengths
        tokens = np.stack([np.roll(row, shift) for row, shift in zip(self.tokens, shifts, strict=True)])
        if not self.pictures:
            return type(self)(tokens, self.lengths)
        columns = self.pictures[_PLACES]
        moved = np.where(columns >= 0, columns + shifts[:, None, None], columns)
        return type(self)(tokens, self.lengths, self.pictures | {_PLACES: moved})

    def row(self, index: int) -> Self:
        """One prompt without padding."""
        only, length = slice(index, index + 1), self.lengths[index]
        pictures = {name: array[only] for name, array in self.pictures.items()}
        return type(self)(self.tokens[only, :length], self.lengths[only], pictures)


def make_up_crops(vision: VisionSpec, count: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Inputs of a vision side, `pixel_values` and for models that take them `image_masks`, (count, ...)."""
    inputs = {"pixel_values": rng.standard_normal((count, *vision.image_shape)).astype(np.float32)}
    if vision.mask_shape:
        masks = rng.choice(np.array(_SHARES, np.float32), (count, *vision.mask_shape))
        masks[1:2] = _UNKNOWN_SHARE
        inputs[IMAGE_MASKS] = masks
    return inputs


def _batch_of_crops(
    vision: VisionSpec, is_crop: NDArray[np.bool_], rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Crops where there is one, -1 where there is none, (batch, crops, ...)."""
    batch = {}
    for name, crops in make_up_crops(vision, int(is_crop.sum()), rng).items():
        array = np.full((*is_crop.shape, *crops.shape[1:]), _NO_CROP, np.float32)
        array[is_crop] = crops
        batch["images" if name == "pixel_values" else name] = array
    return batch


def _places(vision: VisionSpec, num_crops: int) -> NDArray[np.int64]:
    """Columns of image tokens, (num_crops, pooled).

    Of a second crop half the tokens are seen in the first. Where positions are counted for each picture, a word parts
    two of them.
    """
    places = np.full((num_crops, vision.num_pooled), _DROPPED, np.int64)
    is_placed = np.ones_like(places, np.bool_)
    if vision.image_token is None:
        is_placed[1:, : vision.num_pooled // 2] = False
    places[is_placed] = _IMAGES_BEGIN + np.arange(is_placed.sum())
    if vision.grid is not None:
        places += np.arange(num_crops)[:, None]
    return places

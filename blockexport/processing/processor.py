"""What turns a question and its pictures into the inputs of a Molmo model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from blockexport.core.data import pad_stack, stack_pictures
from blockexport.core.jsonio import read_json
from blockexport.errors import ModelSupportError, RequestError
from blockexport.processing.crops import cut_picture
from blockexport.processing.geometry import PictureGeometry
from blockexport.processing.layout import (
    DROPPED,
    PictureTokens,
    num_crops,
    num_image_tokens,
    picture_tokens,
    token_indices,
)
from blockexport.processing.pictures import Picture, read_picture

PADDING = -1
"""What every array of a batch is padded with."""

_PICTURE_TOKENS = {"start": "<im_start>", "end": "<im_end>", "patch": "<im_patch>", "column": "<im_col>"}


class MolmoProcessor:
    """Prompts with pictures in front, as a checkpoint's tokenizer and geometry write them."""

    def __init__(self, tokenizer: Tokenizer, geometry: PictureGeometry, end_token: int) -> None:
        ids = {name: tokenizer.token_to_id(token) for name, token in _PICTURE_TOKENS.items()}
        missing = [_PICTURE_TOKENS[name] for name, token_id in ids.items() if token_id is None]
        if missing:
            msg = f"the tokenizer has no {', '.join(missing)}; give the tokenizer.json of a Molmo checkpoint"
            raise ModelSupportError(msg)
        self.tokenizer = tokenizer
        self.geometry = geometry
        # The models have no begin token of their own: what ends a text also stands in front of each prompt.
        self.end_token = end_token
        self._picture_tokens = PictureTokens(**{name: token_id or 0 for name, token_id in ids.items()})

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read `tokenizer.json`, `tokenizer_config.json` and `preprocessor_config.json` of a model folder.

        Raises:
            ModelSupportError: a file is missing or damaged, or is not of a Molmo checkpoint.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            # The library raises nothing more precise.
            msg = f"{path} is no tokenizer ({error}); fetch the checkpoint again"
            raise ModelSupportError(msg) from error
        # Padding is the batch's business.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(tokenizer, PictureGeometry.from_folder(folder), _end_token(folder, tokenizer))

    def prompt_tokens(self, text: str) -> list[int]:
        """Tokens of a question, without what stands in front of it.

        Raises:
            RequestError: the text is empty.
        """
        if not text.strip():
            msg = f"the prompt is {text!r}; give a question or an instruction"
            raise RequestError(msg)
        tokens: list[int] = self.tokenizer.encode(f" User: {text} Assistant:", add_special_tokens=False).ids
        return tokens

    def predict(self, width: int, height: int) -> tuple[int, int]:
        """Prompt tokens and crops that a picture of this size adds, from its size alone.

        Raises:
            RequestError: no picture of this size can be processed.
        """
        return num_image_tokens(width, height, self.geometry), num_crops(width, height, self.geometry)

    def __call__(self, text: str, pictures: Sequence[Picture] = ()) -> dict[str, NDArray[np.generic]]:
        """Inputs for one question, its pictures in front of the text.

        Returns:
            `input_ids` (tokens,) int64 and, with pictures, `images` (crops, patches, patch_pixels) float32,
            `image_masks` (crops, patches) float32 and `image_input_idx` (crops, tokens of a crop) int64: where in
            `input_ids` each pooled patch is added, negative for none.

        Raises:
            RequestError: the text is empty, or a picture cannot be read or is too narrow.
        """
        prompt = self.prompt_tokens(text)
        tokens = [np.array([self.end_token], np.int64)]
        images, masks, indices = [], [], []
        for picture in pictures:
            patches, shares, tiling = cut_picture(read_picture(picture), self.geometry)
            places = token_indices(tiling, self.geometry)
            indices.append(np.where(places >= 0, places + sum(map(len, tokens)), DROPPED))
            tokens.append(picture_tokens(tiling, self.geometry, self._picture_tokens))
            images.append(patches)
            masks.append(shares)
        inputs: dict[str, NDArray[np.generic]] = {"input_ids": np.concatenate([*tokens, np.array(prompt, np.int64)])}
        if images:
            inputs["images"] = np.concatenate(images)
            inputs["image_masks"] = np.concatenate(masks)
            inputs["image_input_idx"] = np.concatenate(indices)
        return inputs


def collate(rows: Sequence[dict[str, NDArray[np.generic]]]) -> dict[str, NDArray[np.generic]]:
    """Stack inputs of several questions, with or without pictures, padded with -1 at the end."""
    return {"input_ids": pad_stack([row["input_ids"] for row in rows], PADDING), **stack_pictures(rows)}


def _end_token(folder: Path, tokenizer: Tokenizer) -> int:
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    name: Any = settings.get("eos_token") or "<|endoftext|>"
    name = name["content"] if isinstance(name, dict) else name
    token = tokenizer.token_to_id(str(name))
    if token is None:
        msg = f"{folder} names {name!r} as its end token, but tokenizer.json has none such; fetch the checkpoint again"
        raise ModelSupportError(msg)
    return int(token)

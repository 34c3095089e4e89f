"""Prompts of one request, with their pictures, in the form of the engines."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from blockexport.core.model import ModelSpec
from blockexport.core.pictures import Pictures
from blockexport.errors import RequestError
from blockexport.runtime.pictures import read_pictures
from blockexport.runtime.prompts import Prompts, pack_rows, read_prompts


@dataclass(frozen=True, slots=True, eq=False)
class PromptBatch:
    """What a decoder continues.

    Attributes:
        tokens: (batch, tokens), padded on the right.
        lengths: (batch,).
        pictures: what joins them; None without.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    pictures: Pictures | None

    @classmethod
    def of(
        cls, spec: ModelSpec, prompts: Prompts, attention_mask: Any, images: Any, image_masks: Any, image_input_idx: Any
    ) -> Self:
        """Check and pack what a caller gave.

        Raises:
            RequestError: the model cannot serve it.
        """
        if spec.kind != "decoder":
            msg = f"{spec.name} is no decoder and cannot generate; use forward"
            raise RequestError(msg)
        tokens, real = read_prompts(prompts, attention_mask, spec)
        pictures = read_pictures(images, image_masks, image_input_idx, tokens=tokens, real=real, spec=spec)
        return cls(*pack_rows(tokens, real), pictures)

    @property
    def num_crops(self) -> int:
        """Crops that the vision side has to read."""
        return 0 if self.pictures is None else len(self.pictures.images)

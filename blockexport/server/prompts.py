"""What callers ask to be continued, as tokens."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockexport.errors import RequestError
from blockexport.server.model import ServedModel
from blockexport.server.pictures import decode_pictures


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Tokens, and the arrays of pictures as `GenerationRequest` has them."""

    tokens: tuple[int, ...]
    pictures: Mapping[str, Any] | None = None


class PromptReader:
    """Tokenizes, and prepares pictures, beside the event loop.

    Args:
        model: what the prompts are for.
        max_picture_pixels: most pixels of one picture.
    """

    def __init__(self, model: ServedModel, max_picture_pixels: int) -> None:
        self._model = model
        self._max_pixels = max_picture_pixels
        # Decoded pictures are large: one request at a time holds some.
        self._decoding = asyncio.Semaphore(1)

    async def read(self, text: str, *, special_tokens: bool = True, urls: Sequence[str] = ()) -> Prompt:
        """A prompt of text and pictures.

        Args:
            text: for a model that is asked in a form of its own, the question alone.
            special_tokens: whether the tokenizer adds its own; templates write them themselves.
            urls: pictures.

        Raises:
            RequestError: the model cannot be asked so.
        """
        if not urls:
            return await asyncio.to_thread(self._read, text, special_tokens, ())
        async with self._decoding:
            return await asyncio.to_thread(self._read, text, special_tokens, urls)

    def _read(self, text: str, special_tokens: bool, urls: Sequence[str]) -> Prompt:
        processor, tokenizer = self._model.processor, self._model.tokenizer
        if processor is not None:
            inputs = dict(processor(text, decode_pictures(urls, self._max_pixels)))
            tokens = tuple(inputs.pop("input_ids").tolist())
            return Prompt(tokens, inputs or None)
        if urls:
            msg = f"{self._model.name} cannot be asked about pictures here; leave image_url out"
            raise RequestError(msg)
        if tokenizer is None:
            msg = f"the bundle of {self._model.name} has no tokenizer; send token ids to /v1/completions"
            raise RequestError(msg)
        return Prompt(tuple(tokenizer.encode(text, add_special_tokens=special_tokens).ids))

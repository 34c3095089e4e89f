"""What profiling measures of a bundle: calls prepared outside the clock."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from blockexport.core.engine import StepInputs
from blockexport.core.model import ModelKind, ModelSpec
from blockexport.core.signature import IMAGE_MASKS
from blockexport.runtime.engines import Engines

# Text that an encoder is profiled on; embedding models mostly see sentences of about this length.
_ENCODER_TOKENS = 64


class RuntimeWorkload:
    """The engines of a bundle as `blockexport.profiling` wants them."""

    def __init__(self, engines: Engines, spec: ModelSpec, levels: Sequence[tuple[str, int]]) -> None:
        self._engines = engines
        self._spec = spec
        self._levels = tuple(levels)

    @property
    def levels(self) -> Sequence[tuple[str, int]]:
        """Names and depths."""
        return self._levels

    @property
    def kind(self) -> ModelKind:
        """Decoder, encoder or vision."""
        return self._spec.kind

    @property
    def context_tokens(self) -> int:
        """Most positions the model can place."""
        return self._spec.context_tokens

    def prefill_call(self, level: str, batch: int, prompt_tokens: int) -> Callable[[], None]:
        """A call that runs one prompt (batch, prompt_tokens) from an empty cache."""
        bound = self._engines.decoder(level).bind(self._engines.new_cache(batch, prompt_tokens).rows)
        lengths = np.full(batch, prompt_tokens, np.int64)
        inputs = StepInputs.prompt(np.ones((batch, prompt_tokens), np.int64), lengths)
        return lambda: _discard(bound.step(inputs))

    def decode_call(self, level: str, batch: int, kv_tokens: int) -> Callable[[], None]:
        """A call that runs one decode step behind `kv_tokens` cached tokens of each row."""
        bound = self._engines.decoder(level).bind(self._engines.new_cache(batch, kv_tokens + 1).rows)
        inputs = StepInputs.following(np.ones((batch, 1), np.int64), np.full(batch, kv_tokens, np.int64))
        return lambda: _discard(bound.step(inputs))

    def forward_call(self, level: str, batch: int) -> Callable[[], None]:
        """A call that runs one single pass over `batch` samples."""
        runner = self._engines.single_pass(level)
        inputs: dict[str, NDArray[np.generic]]
        if self._spec.kind == "vision":
            inputs = {"pixel_values": np.zeros((batch, *self._spec.image_shape), np.float32)}
            if self._spec.vision is not None and self._spec.vision.mask_shape:
                inputs[IMAGE_MASKS] = np.ones((batch, *self._spec.vision.mask_shape), np.float32)
        else:
            shape = (batch, min(self._spec.context_tokens or _ENCODER_TOKENS, _ENCODER_TOKENS))
            inputs = {"input_ids": np.ones(shape, np.int64), "attention_mask": np.ones(shape, np.int64)}
        return lambda: _discard(runner.forward(inputs))


def _discard(_: NDArray[np.float32]) -> None:
    return None
